"""What runs inside Dask's workers: the function of every task, and the plugin that sends what becomes of it.

With the other rooms of the cluster the only importer of distributed.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin
from tornado.ioloop import PeriodicCallback

from engine.deadlines import end_hung_process
from engine.executor import Call, Report, encode_reports
from engine.logs import logger
from engine.restarter import Restarter, owns_process
from engine.telemetry import Tracer
from engine.worker import execute, execute_async

NAME = "engine"
#: A RUNNING report of its own is sent for attempts that last longer; shorter ones are told with their end.
_LIVE_INTERVAL_MS = 50
#: Reports that nobody waits for share a message for so long.
_SHARING_SECONDS = 0.005


class ReportPlugin(WorkerPlugin):  # type: ignore[misc]
    """A worker's reporter: buffers what its threads say and sends it from the worker's event loop."""

    name = NAME
    idempotent = True

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = tuple(modules)

    def setup(self, worker: Worker) -> None:
        """Called by the worker, once."""
        self.address = worker.address
        self.tracer = Tracer.from_environment("engine-worker")
        self._worker = worker
        #: Whether a task that cannot be stopped ends this process.
        self.restarts = owns_process(worker)
        if self.restarts:
            end_hung_process()
        self._restarter = Restarter(worker)
        self._ended: deque[Report] = deque()
        self._begun: dict[tuple[str, int], Report] = {}
        self._is_urgent = False
        self._sharing: object | None = None
        self._live = PeriodicCallback(self._tell_live, _LIVE_INTERVAL_MS)
        worker.loop.add_callback(self._live.start)
        worker.loop.add_callback(self._preload)

    async def _preload(self) -> None:
        """Import the handlers now, so that the first task does not wait for it."""
        for module in self._modules:
            try:
                await asyncio.to_thread(importlib.import_module, module)
            except BaseException as error:  # the tasks that need it will fail with the same error, and say so
                logger.warning("the worker cannot import a handler", module=module, error=repr(error))

    def teardown(self, worker: Worker) -> None:
        """Called by the worker when it closes."""
        self._live.stop()
        self._flush()
        self.tracer.close()

    def begin(self, report: Report) -> None:
        """See engine.worker.Reporter."""
        self._begun[report.run_id, report.index] = report

    def end(self, report: Report) -> None:
        """See engine.worker.Reporter."""
        self._begun.pop((report.run_id, report.index), None)
        if report.error is not None or report.result is not None or report.kept is not None:
            self._is_urgent = True  # before it can be seen in the buffer: this is not the event loop's thread
        self._ended.append(report)

    def stuck(self, report: Report, key: str) -> None:
        """See engine.worker.Reporter: report the task, and start this process anew where it is ours to end."""
        if self.restarts:
            self._restarter.begin(key, lambda: self._send_stuck(report))
        else:
            self._worker.loop.add_callback(self._send_stuck, report)

    def hold_if_stuck(self, key: str) -> None:
        """Do not come back with a task that was given up: Dask's worker, which is about to end, knows it no longer."""
        if self._restarter.has_given_up(key):
            threading.Event().wait()

    def _send_stuck(self, report: Report) -> None:
        self._begun.pop((report.run_id, report.index), None)
        self._flush()
        self._send([report])

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Called in the event loop while a task ends, before Dask's own message of it is sent.

        Nothing wakes the loop for a report alone: that would cost a task more than all else the engine does with it.
        A failure must be there before the scheduler marks the task as erred, and nobody waits longer than needed for a
        result; other reports share a message. One that is lost with its worker is made again with its lost value.
        """
        if not self._ended:
            return
        if self._is_urgent:
            self._is_urgent = False
            self._flush()
        elif self._sharing is None:
            self._sharing = self._worker.loop.call_later(_SHARING_SECONDS, self._flush)

    def _flush(self) -> None:
        if self._sharing is not None:
            self._worker.loop.remove_timeout(self._sharing)
            self._sharing = None
        reports: list[Report] = []
        while self._ended:
            reports.append(self._ended.popleft())
        if reports:
            self._send(reports)

    def _tell_live(self) -> None:
        if self._begun:
            keys = list(self._begun)
            reports = [report for key in keys if (report := self._begun.pop(key, None)) is not None]
            self._send(reports)

    def _send(self, reports: list[Report]) -> None:
        self._worker.batched_send({"op": "engine-report", "reports": encode_reports(reports)})


def run_call(call: Call, *results: Any) -> Any:
    """The function of every task on the cluster."""
    plugin: ReportPlugin = get_worker().plugins[NAME]
    try:
        return execute(call, results, plugin)
    finally:
        plugin.hold_if_stuck(call.key)


async def run_async_call(call: Call, *results: Any) -> Any:
    """The same for ``async def`` tasks, which run on the worker's event loop."""
    return await execute_async(call, results, get_worker().plugins[NAME])


def warm_up(_: int) -> None:
    """Does nothing; running it makes a worker import what its first task would have to wait for."""
