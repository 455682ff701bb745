"""What runs inside Dask's workers: the function of every task, and the plugin that sends what becomes of it.

With the other rooms of the cluster the only importer of distributed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from distributed import Reschedule, Worker, get_worker, secede
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.utils_comm import gather_from_workers
from distributed.worker_state_machine import SecedeEvent
from tornado.ioloop import PeriodicCallback

from engine.dask_logs import LOGS
from engine.deadlines import end_hung_process
from engine.errors import ResultStoreError
from engine.executor import Call, Report, decode_call, decode_reports, encode_reports, run_of
from engine.log_catcher import catcher
from engine.log_outbox import LogOutbox
from engine.logs import logger
from engine.packing import run_parcel
from engine.parcels import Outcome, decode_parcel, encode_outcomes
from engine.restarter import Restarter, owns_process
from engine.results import ResultStore
from engine.run_logs import encode_mail
from engine.running import Postponed, stop
from engine.spawning import ChildFailed
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
        self.logs = LogOutbox()
        catcher.begin(self)
        self._worker = worker
        #: Whether a task that cannot be stopped ends this process.
        self.restarts = owns_process(worker)
        if self.restarts:
            end_hung_process()
        self._restarter = Restarter(worker)
        self._ended: deque[Report] = deque()
        self._begun: dict[tuple[str, str], Report] = {}
        self._is_urgent = False
        self._sharing: object | None = None
        #: Who waits for which key.
        self._awaited: dict[str, list[Future[Any]]] = {}
        #: Outcomes of each parcel that runs here, on their way.
        self._parcels: dict[str, deque[Outcome]] = {}
        #: Packed runs that are to be left out.
        self._stopped: set[str] = set()
        worker.stream_handlers["engine-ended"] = self._hear_ended
        worker.stream_handlers["engine-stop"] = self._stop
        self._live = PeriodicCallback(self._tell_live, _LIVE_INTERVAL_MS)
        worker.loop.add_callback(self._live.start)
        # As on the scheduler: nobody needs the last thousand messages.
        worker.batched_stream.recent_message_log = deque(maxlen=1)
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
        catcher.end(self)
        self.tracer.close()

    def begin(self, report: Report) -> None:
        """See engine.worker.Reporter."""
        self._begun[report.run_id, report.index] = report

    def end(self, report: Report) -> None:
        """See engine.worker.Reporter."""
        self._begun.pop((report.run_id, report.index), None)
        if report.is_urgent:
            self._is_urgent = True  # before it can be seen in the buffer: this is not the event loop's thread
        self._ended.append(report)

    def stuck(self, report: Report, key: str) -> None:
        """See engine.worker.Reporter: report the task, and start this process anew where it is ours to end."""
        if self.restarts:
            self._restarter.begin(key, lambda: self._send_stuck(report), goes_on=report.retry_in_seconds is not None)
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

    def store(self, app: str) -> ResultStore:
        """See engine.worker.Reporter."""
        plugin = self._worker.plugins.get(ResultsPlugin.name_of(app))
        if plugin is None:
            cause = f"this worker was not told of the result store of the app {app}"
            raise ResultStoreError(self.address, cause, "Is an engine with `results` set connected?")
        store: ResultStore = plugin.store
        return store

    def spawn(self, report: Report) -> None:
        """See engine.spawning.Nursery."""
        self._ended.append(report)
        self._worker.loop.add_callback(self._flush)

    def ended(self, call: Call, key: str) -> Future[Any]:
        """See engine.spawning.Nursery."""
        future: Future[Any] = Future()
        self._worker.loop.add_callback(self._await, key, future)
        return future

    def secede(self, call: Call) -> None:
        """See engine.spawning.Nursery."""
        if not call.is_async:
            secede()
            return
        # distributed's own function is for threads; the state machine takes the same event from a coroutine.
        stimulus_id = f"engine-secede-{time.time()}"
        self._worker.handle_stimulus(SecedeEvent(key=call.key, compute_duration=0.0, stimulus_id=stimulus_id))

    def _stop(self, keys: Sequence[str] = (), packed: Sequence[str] = ()) -> None:
        """Runs were cancelled: stop their tasks, and begin none of these packed runs."""
        for key in keys:
            stop(key)
        runs = {run_of(key) for key in keys}
        for key in [key for key in self._awaited if run_of(key) in runs]:
            del self._awaited[key]  # who waits for it is stopped, and nobody tells
        self._stopped.update(packed)

    def _await(self, key: str, future: Future[Any]) -> None:
        if key in self._worker.data:
            future.set_result(self._worker.data[key])
            return
        self._flush()  # the scheduler has to know of the child before it is asked about it
        futures = self._awaited.setdefault(key, [])
        futures.append(future)
        if len(futures) == 1:
            self._worker.batched_send({"op": "engine-await", "key": key})

    async def _hear_ended(self, key: str, who_has: Sequence[str], report: bytes | None) -> None:
        """The scheduler says what a key that is waited for has come to."""
        futures = self._awaited.pop(key, [])
        if report is not None:
            [failed] = decode_reports(report)
            for future in futures:
                if not future.cancelled():  # who waited may have run out of time
                    future.set_exception(ChildFailed(failed))
            return
        try:
            if key in self._worker.data:
                value = self._worker.data[key]
            else:
                data, _, _, _ = await gather_from_workers({key: list(who_has)}, rpc=self._worker.rpc)
                value = data[key]
        except Exception as error:  # its worker died, or was not there to answer: it is made again, so ask again
            logger.info("the result of a child is not where it was; asking again", key=key, error=repr(error))
            for future in futures:
                self._await(key, future)
            return
        for future in futures:
            if not future.cancelled():
                future.set_result(value)

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
        self._send_logs()  # an attempt's lines go before its end, after which nobody may listen
        if reports := [self._ended.popleft() for _ in range(len(self._ended))]:
            self._send(reports)

    def run_parcel(self, key: str, parcel: bytes) -> dict[str, Any]:
        """Run a parcel in this thread, telling outcomes on the way. Answers the results that stay here, by run."""
        pending = self._parcels[key] = deque()
        decoded = decode_parcel(parcel)
        kept: dict[str, Any] = {}
        keep = functools.partial(self._keep, decoded.store, kept)
        try:
            run_parcel(
                decoded,
                self._tell_outcomes,
                tracer=self.tracer,
                logs=self.logs,
                worker=self.address,
                pending=pending,
                on_stuck=functools.partial(self._stuck_in_parcel, key),
                keep=keep,
                is_stopped=self._stopped.__contains__,
            )
        finally:
            del self._parcels[key]
            self._stopped.difference_update([run.run_id for run in decoded.runs])
            self.hold_if_stuck(key)
        return kept

    def _keep(self, app: str, kept: dict[str, Any], run_id: str, value: Any) -> str | None:
        if app:
            return self.store(app).save(run_id, "result", "result", value)
        kept[run_id] = value
        return None

    def _tell_outcomes(self, outcomes: list[Outcome]) -> None:
        # From the parcel's own thread: this is in the event loop's queue before Dask's word that the parcel is over.
        message = {"op": "engine-outcomes", "outcomes": encode_outcomes(outcomes)}
        self._worker.loop.add_callback(self._send_logs)
        self._worker.loop.add_callback(self._worker.batched_send, message)

    def _stuck_in_parcel(self, key: str, outcome: Outcome) -> None:
        """Code of a run cannot be stopped: it has failed; the runs that wait behind it go to another worker."""
        self._tell_outcomes([outcome])
        if self.restarts:
            self._restarter.begin(key, lambda: None)

    def _tell_live(self) -> None:
        self._send_logs()
        for pending in list(self._parcels.values()):
            # They would wait behind a run that takes long.
            outcomes: list[Outcome] = []
            with contextlib.suppress(IndexError):  # empty, or the parcel's own thread was faster
                while True:
                    outcomes.append(pending.popleft())
            if outcomes:
                self._tell_outcomes(outcomes)
        if self._begun:
            keys = list(self._begun)
            reports = [report for key in keys if (report := self._begun.pop(key, None)) is not None]
            self._send(reports)

    def _send_logs(self) -> None:
        if self.logs:
            mails = [(mail.run_id, encode_mail(mail)) for mail in self.logs.take_all()]
            self._worker.batched_send({"op": LOGS, "mails": mails})

    def _send(self, reports: list[Report]) -> None:
        self._worker.batched_send({"op": "engine-report", "reports": encode_reports(reports)})


class ResultsPlugin(WorkerPlugin):  # type: ignore[misc]
    """Tells a worker of the result store of an app."""

    idempotent = False

    def __init__(self, app: str, url: str, max_bytes: int) -> None:
        self.name = self.name_of(app)
        self._app, self._url, self._max_bytes = app, url, max_bytes
        self._store: ResultStore | None = None

    @staticmethod
    def name_of(app: str) -> str:
        """Name of the plugin of an app."""
        return f"{NAME}-results-{app}"

    @property
    def store(self) -> ResultStore:
        """The store, made when it is needed first. Raises SettingsError."""
        if self._store is None:
            self._store = ResultStore(self._url, self._app, self._max_bytes)
        return self._store


def run_call(call: bytes, *results: Any) -> Any:
    """The function of every task on the cluster."""
    plugin: ReportPlugin = get_worker().plugins[NAME]
    decoded = decode_call(call)
    try:
        return execute(decoded, results, plugin)
    except Postponed:
        pass
    finally:
        plugin.hold_if_stuck(decoded.key)
    # Outside of the handler, so that it has no context. The scheduler plugin has heard already what the call waits for.
    raise Reschedule


async def run_async_call(call: bytes, *results: Any) -> Any:
    """The same for ``async def`` tasks, which run on the worker's event loop."""
    try:
        return await execute_async(decode_call(call), results, get_worker().plugins[NAME])
    except Postponed:
        pass
    raise Reschedule


def run_packed(key: str, parcel: bytes) -> dict[str, Any]:
    """The function of every parcel on the cluster. Its value are the results that did not travel, by run."""
    kept: dict[str, Any] = get_worker().plugins[NAME].run_parcel(key, parcel)
    return kept


def take_kept(kept: dict[str, Any], run_id: str) -> Any:
    """One of those results, as the value of a task of its own."""
    return kept[run_id]


def warm_up(_: int) -> None:
    """Does nothing; running it makes a worker import what its first task would have to wait for."""
