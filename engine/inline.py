"""An Executor without a cluster: calls run in threads of this process; for tests and first steps, not for load."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from engine.errors import ResultStoreError, TaskFailed
from engine.executor import Call, Listener, Report, RunEnd, Submission, index_of
from engine.log_catcher import catcher
from engine.log_outbox import LogOutbox
from engine.packing import run_parcel
from engine.parcels import Outcome, Parcel
from engine.results import ResultStore
from engine.run_logs import LogMail
from engine.running import Postponed, stop
from engine.spawning import ChildFailed
from engine.states import State
from engine.telemetry import Tracer
from engine.worker import execute, execute_async

#: What a call that failed, or that depends on one, leaves to its dependents: they do not run.
_FAILED = object()


class _Entry:
    """A call, what runs it, and what it has come to."""

    __slots__ = ("again", "call", "report", "running")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.again = asyncio.Event()
        self.running: asyncio.Task[Any]
        self.report: Report | None = None


class InlineExecutor:
    """Runs calls as soon as their dependencies are done."""

    def __init__(self, threads: int = 4, tracer: Tracer | None = None, results: ResultStore | None = None) -> None:
        self._results = results
        self.trouble = ""
        self.slots = threads
        self.address = "inline"
        self.restarts = False
        self.logs = LogOutbox()
        self.on_logs: Callable[[Sequence[LogMail]], None] = lambda mails: None
        self.tracer = tracer or Tracer(None, None, None)
        self._free = asyncio.Semaphore(threads)
        #: A thread that waits for a child gives its place up, and another one takes it: there are more than places.
        self._pool = ThreadPoolExecutor(10_000, "engine-inline")
        #: By run and index.
        self._calls: dict[str, dict[str, _Entry]] = {}
        #: Packed runs that are to be left out.
        self._stopped: set[str] = set()
        self._parcels: set[asyncio.Future[None]] = set()
        self._listener: Listener
        self._loop: asyncio.AbstractEventLoop

    async def start(self, listener: Listener) -> None:
        """See engine.executor.Executor; there is nothing to connect to."""
        self._listener = listener
        loop = self._loop = asyncio.get_running_loop()
        self.logs.wake = lambda: loop.call_soon_threadsafe(self._pass_logs_on)
        catcher.begin(self)

    def own(self, partition: int, epoch: int) -> None:
        """One process, one owner: nothing to refuse."""

    async def held(self, partition: int, epoch: int) -> list[str]:
        """One process, one owner: nobody left any."""
        return []

    def submit(self, submissions: Sequence[Submission]) -> None:
        """See engine.executor.Executor."""
        for submission in submissions:
            for call in submission.calls:
                self._submit(call)

    def release(self, run_id: str, keep_seconds: float, end: RunEnd | None = None) -> None:
        """Drop what the run has left; results are not kept for anybody here."""
        for entry in self._calls.pop(run_id, {}).values():
            entry.running.cancel()

    def cancel(self, run_id: str) -> None:
        """See engine.executor.Executor."""
        for entry in self._calls.get(run_id, {}).values():
            stop(entry.call.key)
        self.release(run_id, 0.0)

    def cancel_packed(self, run_ids: Sequence[str]) -> None:
        """See engine.executor.Executor."""
        self._stopped.update(run_ids)

    def send(self, parcel: Parcel, owners: Sequence[tuple[int, int]]) -> None:
        """See engine.executor.Executor."""
        running = self._loop.run_in_executor(self._pool, self._run_parcel, parcel)
        self._parcels.add(running)
        running.add_done_callback(self._parcels.discard)

    def release_parcels(self, run_ids: Sequence[str], keep_seconds: float) -> None:
        """Nothing was kept."""

    async def fetch(self, call: Call) -> Any:
        """See engine.executor.Executor."""
        entry = self._calls.get(call.run_id, {}).get(call.index)
        if entry is None:
            raise LookupError(f"the result of {call.key} is not there")
        return await asyncio.shield(entry.running)

    async def close(self) -> None:
        """Stop what waits; a thread that runs is waited for."""
        running = [entry.running for calls in self._calls.values() for entry in calls.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *self._parcels, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)
        catcher.end(self)

    def begin(self, report: Report) -> None:
        """See engine.worker.Reporter."""
        self._loop.call_soon_threadsafe(self._listener.on_reports, [report])

    def end(self, report: Report) -> None:
        """See engine.worker.Reporter."""
        self._loop.call_soon_threadsafe(self._hear, report)

    def store(self, app: str) -> ResultStore:
        """See engine.worker.Reporter."""
        if self._results is None:
            raise ResultStoreError(app, "there is no result store", "Give the settings a `results` URL.")
        return self._results

    def stuck(self, report: Report, key: str) -> None:
        """See engine.worker.Reporter. The thread is lost to us until its code comes back."""
        self.end(report)

    def spawn(self, report: Report) -> None:
        """See engine.spawning.Nursery."""
        self._loop.call_soon_threadsafe(self._hear, report)

    def ended(self, call: Call, key: str) -> Future[Any]:
        """See engine.spawning.Nursery."""
        return asyncio.run_coroutine_threadsafe(self._wait_for(call.run_id, index_of(key)), self._loop)

    def secede(self, call: Call) -> None:
        """See engine.spawning.Nursery."""
        if not call.is_async:
            self._loop.call_soon_threadsafe(self._free.release)

    def _pass_logs_on(self) -> None:
        self.on_logs(self.logs.take_all())

    def _run_parcel(self, parcel: Parcel) -> None:
        def tell(outcomes: list[Outcome]) -> None:
            self._loop.call_soon_threadsafe(self._listener.on_outcomes, outcomes)

        def keep(run_id: str, value: Any) -> str | None:
            return self.store(parcel.store).save(run_id, "result", "result", value) if parcel.store else None

        is_stopped = self._stopped.__contains__
        run_parcel(parcel, tell, tracer=self.tracer, logs=self.logs, worker=self.address, keep=keep, is_stopped=is_stopped)

    def _submit(self, call: Call) -> None:
        calls = self._calls.setdefault(call.run_id, {})
        entry = calls.get(call.index)
        if entry is None:
            entry = calls[call.index] = _Entry(call)
            entry.running = self._loop.create_task(self._run(entry, calls), name=call.key)
        elif call.attempt > entry.call.attempt:
            entry.call = call
            entry.again.set()
        elif entry.report is not None:
            self._loop.call_soon(self._listener.on_reports, [entry.report])

    def _hear(self, report: Report) -> None:
        for child in report.spawned:
            self._submit(child)
        entry = self._calls.get(report.run_id, {}).get(report.index)
        if entry is not None and report.state is not State.RUNNING:
            entry.report = report
        self._listener.on_reports([report])

    async def _run(self, entry: _Entry, calls: dict[str, _Entry]) -> Any:
        while True:
            call = entry.call
            # Children may be on their way: what starts them was told before what needs them, but runs in another thread.
            results = [await asyncio.shield(calls[index_of(key)].running) for key in call.dependencies]
            if any(result is _FAILED for result in results):
                return _FAILED  # unreported: the engine knows what is downstream of a failure
            try:
                return await self._execute(call, results)
            except TaskFailed:
                await asyncio.sleep(0)  # its report, from another thread, is heard first
                return _FAILED
            except Postponed:
                await self._until_reported(entry)
                if entry.report is not None and entry.report.continuation is not None:
                    entry.call = entry.report.continuation
                    entry.report = None
                    continue
                await entry.again.wait()
                entry.again.clear()
                entry.report = None

    async def _until_reported(self, entry: _Entry) -> None:
        # It is on its way from the thread through the loop, and was sent before the exception.
        while entry.report is None:  # noqa: ASYNC110 - a turn or two of the loop
            await asyncio.sleep(0)

    async def _execute(self, call: Call, results: Sequence[Any]) -> Any:
        if call.is_async:
            return await execute_async(call, results, self)
        await self._free.acquire()
        seceded = _Seceded(self, call)
        try:
            return await self._loop.run_in_executor(self._pool, functools.partial(execute, call, results, seceded))
        finally:
            if not seceded.has_left:
                self._free.release()

    async def _wait_for(self, run_id: str, index: str) -> Any:
        value = await asyncio.shield(self._calls[run_id][index].running)
        if value is not _FAILED:
            return value
        entry = self._calls[run_id][index]
        while entry.report is None or entry.report.error is None:
            # It has no value because of a child of its own, or of what it was given.
            needed = [self._calls[run_id][index_of(key)] for key in entry.call.dependencies]
            failed = [one for one in needed if await self._has_failed(one)]
            entry = failed[0]
        raise ChildFailed(entry.report)

    async def _has_failed(self, entry: _Entry) -> bool:
        return await asyncio.shield(entry.running) is _FAILED


class _Seceded:
    """The reporter of one call in a thread, which notes that the call has given its place up."""

    def __init__(self, executor: InlineExecutor, call: Call) -> None:
        self._executor = executor
        self.address = executor.address
        self.restarts = False
        self.tracer, self.logs = executor.tracer, executor.logs
        self.stuck, self.store = executor.stuck, executor.store
        self.begin, self.end, self.spawn, self.ended = executor.begin, executor.end, executor.spawn, executor.ended
        self.has_left = False

    def secede(self, call: Call) -> None:
        """See engine.spawning.Nursery; only the first time counts."""
        if not self.has_left:
            self.has_left = True
            self._executor.secede(call)
