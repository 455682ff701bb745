"""An Executor without a cluster: calls run in threads of this process; for tests and first steps, not for load."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine.errors import TaskFailed
from engine.executor import Call, OnReports, Report, Submission
from engine.telemetry import Tracer
from engine.worker import execute, execute_async

#: What a call that failed, or that depends on one, leaves to its dependents: they do not run.
_FAILED = object()


class InlineExecutor:
    """Runs calls as soon as their dependencies are done."""

    def __init__(self, threads: int = 4, tracer: Tracer | None = None) -> None:
        self.trouble = ""
        self.address = "inline"
        self.restarts = False
        self.tracer = tracer or Tracer(None, None, None)
        self._pool = ThreadPoolExecutor(threads, "engine-inline")
        #: Calls by run and index, whether they run, wait or are done.
        self._calls: dict[str, dict[int, asyncio.Task[Any]]] = {}
        self._reports: dict[tuple[str, int], Report] = {}
        self._on_reports: OnReports = lambda reports: None
        self._loop: asyncio.AbstractEventLoop

    async def start(self, on_reports: OnReports, on_reset: Callable[[], None]) -> None:
        """See engine.executor.Executor; there is nothing to connect to."""
        self._on_reports = on_reports
        self._loop = asyncio.get_running_loop()

    def own(self, partition: int, epoch: int) -> None:
        """One process, one owner: nothing to refuse."""

    def submit(self, submissions: Sequence[Submission]) -> None:
        """See engine.executor.Executor."""
        for submission in submissions:
            calls = self._calls.setdefault(submission.run_id, {})
            for call in submission.calls:  # in call order: what a call depends on is there before it
                if call.index not in calls:
                    calls[call.index] = self._loop.create_task(self._run(call, calls), name=call.key)
                elif (report := self._reports.get((call.run_id, call.index))) is not None:
                    self._loop.call_soon(self._on_reports, [report])

    def forget(self, run_id: str, keys: Sequence[str]) -> None:
        """See engine.executor.Executor."""
        for key in keys:
            index = int(key.rpartition("-")[2])
            self._reports.pop((run_id, index), None)
            if (task := self._calls.get(run_id, {}).pop(index, None)) is not None:
                task.cancel()

    def release(self, run_id: str, keep_seconds: float) -> None:
        """Drop what the run has left; results are not kept for anybody here."""
        for index, task in self._calls.pop(run_id, {}).items():
            self._reports.pop((run_id, index), None)
            task.cancel()

    async def close(self) -> None:
        """Stop what waits; a thread that runs is waited for."""
        running = [task for calls in self._calls.values() for task in calls.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)

    def begin(self, report: Report) -> None:
        """See engine.worker.Reporter."""
        self._loop.call_soon_threadsafe(self._on_reports, [report])

    def end(self, report: Report) -> None:
        """See engine.worker.Reporter."""
        self._reports[report.run_id, report.index] = report
        self._loop.call_soon_threadsafe(self._on_reports, [report])

    def stuck(self, report: Report, key: str) -> None:
        """See engine.worker.Reporter. The thread is lost to us until its code comes back."""
        self.end(report)

    async def _run(self, call: Call, calls: dict[int, asyncio.Task[Any]]) -> Any:
        results = [await asyncio.shield(calls[index]) for index in call.dependencies]
        if any(result is _FAILED for result in results):
            return _FAILED  # unreported: the engine knows what is downstream of a failure
        try:
            if call.is_async:
                return await execute_async(call, results, self)
            return await self._loop.run_in_executor(self._pool, functools.partial(execute, call, results, self))
        except TaskFailed:
            return _FAILED  # its report has said why
