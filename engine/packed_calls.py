"""The recorder of a packed run: executes each task where its flow calls it, and notes what became of it.

It differs from the unpacked lane in nothing that a flow can see: a failed task cancels what needs it and nothing else, and
attempts are counted and timed the same way.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from datetime import datetime
from typing import Any

from engine import packed_memos as memos
from engine.errors import WiringError
from engine.handles import Recorder, Unmapped, recorder
from engine.packed_attempts import MAX_WAIT_SECONDS, Attempts, failure_in_user_code
from engine.packed_deadlines import Watch
from engine.packed_handles import Absent, PackedHandle, PackedMap, PackedRows, Unavailable, filled, filled_all
from engine.packed_loops import Running, filled_later, is_on_loop
from engine.parcels import Outcome, PackedRun, TaskOutcome, encode_tasks
from engine.states import Failure, State, utc
from engine.tasks import Task
from engine.telemetry import Tracer


class PackedRecording:
    """One try of one packed run: the recorder while its flow runs."""

    __slots__ = ("_attempts", "_calls", "_chance", "_context", "_handles", "_memo", "_run", "_running")
    takes_calls = True

    def __init__(self, flow: str, run: PackedRun, context: Context, tracer: Tracer | None, worker: str, watch: Watch) -> None:
        self._run = run
        self._context = context
        self._calls = 0
        self._chance: random.Random | None = None
        self._handles: list[PackedHandle] = []
        self._attempts = Attempts(flow, run, context, self._spawner, tracer, worker, watch)
        self._running: Running | None = None
        self._memo = memos.read(run.memo) if run.memo else None
        if self._memo is not None:
            self._attempts.tasks.extend(self._memo.tasks)

    @property
    def tasks(self) -> list[TaskOutcome]:
        """What became of the calls so far, in the order of their ends."""
        return self._attempts.tasks

    def tasks_beside(self, failure: Failure) -> list[TaskOutcome]:
        """See Attempts."""
        return self._attempts.tasks_beside(failure)

    @property
    def has_handles(self) -> bool:
        """Whether anything was called."""
        return bool(self._handles)

    @property
    def has_news(self) -> bool:
        """Whether anything failed."""
        return bool(self._attempts.failures)

    @property
    def is_waiting(self) -> bool:
        """Whether a call waits for its next attempt."""
        return bool(self._attempts.waits)

    @property
    def failure(self) -> Failure | None:
        """The first failure that the flow was not told of, which decides the end of the run once nothing waits."""
        if self._attempts.waits:
            return None
        return next((absent.failure for absent in self._attempts.failures if not absent.is_told), None)

    def failure_of(self, error: BaseException) -> Failure:
        """The failure that an error of the flow's stands for: a task's own, where it came from awaiting one."""
        for absent in self._attempts.failures:
            if absent.raised is error and absent.failure is not None:
                return absent.failure
        return failure_in_user_code(error)

    def to_be_continued(self, started_at: float) -> Outcome:
        """The outcome of a run that waits for the next attempt of a task."""
        now, run = time.time(), self._run
        next_one = min(self._attempts.waits.values(), key=lambda wait: wait.due_at)
        return Outcome(
            run.run_id,
            run.attempt,
            State.RETRYING,
            started_at,
            now,
            error=next_one.failure,
            tasks=encode_tasks(self._attempts.tasks_beside(next_one.failure)),
            wait_seconds=max(0.0, next_one.due_at - now),
            memo=memos.write(self._handles, self._attempts.waits, self._attempts.tasks),
        )

    def memo_of_completed(self) -> bytes:
        """What another attempt of the flow need not do again."""
        return memos.write(self._handles, {}, self._attempts.tasks, with_failures=False)

    def run_flow(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call a ``def`` flow. Raises whatever that raises."""
        return self._context.copy().run(_record, self, function, arguments)

    def run_async_flow(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Run an ``async def`` flow on this thread's loop. Raises whatever that raises, and Suspended."""
        context = self._context.copy()
        context.run(recorder.set, self)
        return self._on_loop().run(function(**arguments), context)

    def close(self) -> None:
        """End what user code has left on the thread's event loop."""
        self._attempts.spawner_of = None  # else each run would be garbage for the collector to find
        if self._running is not None:
            self._running.close()

    def call(self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedHandle:
        """Run ``task`` here and now (an ``async def`` one of an async flow: soon); answers its handle. Raises WiringError."""
        index = str(self._calls)
        self._calls += 1
        return self.call_as(index, task, args, kwargs)

    def map(self, task: Task[Any, Any], columns: Sequence[Any], fixed: dict[str, Any]) -> Any:
        """Run ``task`` for each row; columns may be handles of sequences. Raises WiringError."""
        index = str(self._calls)
        self._calls += 1
        return self.map_as(index, task, columns, fixed)

    def now(self) -> datetime:
        """See engine.durable: when the run was scheduled, which is the same in each of its tries."""
        return utc(self._run.scheduled_at)

    def random(self) -> float:
        """See engine.durable; the series is that of the unpacked lane."""
        if self._chance is None:
            self._chance = random.Random(self._run.run_id)  # noqa: S311 - for flows, not for secrets
        return self._chance.random()

    def wait(self, handle: Any) -> Any:
        """See engine.handles.Recorder; packed handles ask nobody."""
        return handle

    def result(self, handle: Any) -> Any:
        """The same for ``handle.result()``."""
        return handle.result()

    def call_as(self, index: str, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedHandle:
        """``call`` with an index of its own."""
        attempt = 1
        if self._memo is not None:
            known, attempt = self._recall(self._memo, (index, task.name))
            if known is not None:
                return known
        handle = PackedHandle(task.name, index, None)
        if self._handles:
            try:
                args = filled_all(args)
                if kwargs:
                    kwargs = filled(kwargs)
            except Unavailable as missing:
                self._handles.append(handle)
                if missing.absent.running is not None:
                    self._start(handle, self._call_later(handle, task, args, kwargs, attempt))
                else:
                    handle._value = self._attempts.skip(task.name, index, missing.absent)
                return handle
        self._handles.append(handle)
        if not task.is_async:
            self._settle(handle, self._attempts.run(task, index, args, kwargs, attempt))
        elif is_on_loop():
            self._start(handle, self._call_later(handle, task, args, kwargs, attempt))
        else:
            self._on_loop().run(self._call_later(handle, task, args, kwargs, attempt), self._context.copy())
        return handle

    def map_as(self, index: str, task: Task[Any, Any], columns: Sequence[Any], fixed: dict[str, Any]) -> Any:
        """``map`` with an index of its own."""
        if not any(isinstance(column, PackedHandle) for column in columns):
            return self._rows(index, task, columns, fixed)
        rows = PackedRows(task.name, index, None)
        self._handles.append(rows)
        self._map(rows, task, columns, fixed)
        return rows

    def _map(self, rows: PackedRows, task: Task[Any, Any], columns: Sequence[Any], fixed: dict[str, Any]) -> None:
        """Run a map over results, or have it run when they are there."""
        for column in columns:
            if isinstance(column, PackedHandle) and column._value.__class__ is Absent:
                if column._value.running is not None:
                    self._start(rows, self._map_later(rows, task, columns, fixed))
                else:
                    rows._value = self._attempts.skip(task.name, rows.index, column._value)
                return
        try:
            walked = [_elements(task, column._value) if isinstance(column, PackedHandle) else column for column in columns]
            rows._value = self._rows(rows.index, task, walked, fixed)
        except WiringError as error:  # the lengths, or what a result is, were not known to the flow: this map fails, no more
            rows._value = self._fail(rows, error)

    def _rows(self, index: str, task: Task[Any, Any], columns: Sequence[Any], fixed: dict[str, Any]) -> PackedMap:
        lengths = {len(column) for column in columns if not isinstance(column, Unmapped)}
        if len(lengths) != 1:
            cause = f"map over columns of unequal length: {', '.join(map(str, sorted(lengths)))}"
            raise WiringError(task.name, cause, "Make them equally long.")
        [length] = lengths
        walked = [[column.value] * length if isinstance(column, Unmapped) else column for column in columns]
        rows = zip(*walked, strict=True)
        return PackedMap([self.call_as(f"{index}.{place}", task, row, fixed) for place, row in enumerate(rows)])

    def _settle(self, handle: PackedHandle, value: Any) -> None:
        """Give a handle its value, which may hold handles of tasks that the call has spawned."""
        if self._handles[-1] is not handle:
            try:
                value = filled(value)
            except Unavailable as missing:
                if missing.absent.running is not None:
                    self._start(handle, self._settle_later(handle, value))
                    return
                value = missing.absent  # the child's end decides: what needs the value is cancelled with it
        handle._value = value

    def _start(self, handle: PackedHandle, work: Coroutine[Any, Any, None]) -> None:
        handle._value = Absent(State.RUNNING)
        handle._value.running = self._on_loop().start(self._see_through(handle, work), self._context.copy())

    async def _see_through(self, handle: PackedHandle, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work``, at the end of which the handle has a value, or what stands for it."""
        try:
            await work
        except asyncio.CancelledError:
            raise  # the run is over
        except BaseException as error:  # e.g. an argument that does not pickle: nobody must wait for the value for ever
            handle._value = self._fail(handle, error)

    def _fail(self, handle: PackedHandle, error: BaseException) -> Absent:
        """A call that could not even be made."""
        failed = Absent(State.FAILED, failure_in_user_code(error))
        self._attempts.failures.append(failed)
        self._attempts.tasks.append(TaskOutcome(handle.task, handle.index, State.FAILED, 0, error=failed.failure))
        return failed

    async def _call_later(
        self, handle: PackedHandle, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int
    ) -> None:
        try:
            args, kwargs = await filled_later(args), await filled_later(kwargs)
        except Unavailable as missing:
            handle._value = self._attempts.skip(task.name, handle.index, missing.absent)
            return
        attempt_at = self._attempts.run_async if task.is_async else self._attempts.run
        value = attempt_at(task, handle.index, args, kwargs, attempt)
        await self._settle_later(handle, await value if task.is_async else value)

    async def _settle_later(self, handle: PackedHandle, value: Any) -> None:
        try:
            handle._value = await filled_later(value)
        except Unavailable as missing:
            handle._value = missing.absent  # as in _settle

    async def _map_later(self, rows: PackedRows, task: Task[Any, Any], columns: Sequence[Any], fixed: dict[str, Any]) -> None:
        for column in columns:
            while isinstance(column, PackedHandle) and column._value.__class__ is Absent and column._value.running is not None:
                await column._value.running
        self._map(rows, task, columns, fixed)

    def _on_loop(self) -> Running:
        if self._running is None:
            self._running = Running()
        return self._running

    def _spawner(self, index: str) -> Recorder:
        return _Spawner(self, index)

    def _recall(self, memo: memos.Memo, key: memos.Key) -> tuple[PackedHandle | None, int]:
        """The handle of a call that an earlier try has dealt with; else the number of the attempt to make."""
        index, name = key
        if (wait := memo.waits.get(key)) is not None:
            if wait.due_at <= MAX_WAIT_SECONDS:
                return None, wait.attempt
            self._attempts.waits[key] = memos.Wait(wait.attempt, time.time() + wait.due_at, wait.failure)
            value: Any = Absent(State.RETRYING)
        elif (failure := memo.failures.get(key)) is not None:
            value = Absent(State.FAILED, failure)
            self._attempts.failures.append(value)
        elif key in memo.values:
            try:
                value = memos.value_in(memo, key)
            except LookupError:  # it is made again
                self._attempts.tasks[:] = [task for task in self._attempts.tasks if (task.index, task.task) != key]
                return None, 1
        else:
            return None, 1
        handle = PackedHandle(name, index, value)
        self._handles.append(handle)
        return handle, 0


class _Spawner:
    """The recorder while a task runs: what it spawns is run in its place, as a call of its own."""

    __slots__ = ("_count", "_index", "_recording")
    takes_calls = False

    def __init__(self, recording: PackedRecording, index: str) -> None:
        self._recording = recording
        self._index = index
        self._count = 0

    def call(self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedHandle:
        """See PackedRecording.call."""
        return self._recording.call_as(self._next(), task, args, kwargs)

    def map(self, task: Task[Any, Any], columns: Sequence[Any], fixed: dict[str, Any]) -> Any:
        """See PackedRecording.map."""
        return self._recording.map_as(self._next(), task, columns, fixed)

    def wait(self, handle: Any) -> Any:
        """See PackedRecording.wait."""
        return handle

    def result(self, handle: Any) -> Any:
        """See PackedRecording.result."""
        return handle.result()

    def _next(self) -> str:
        self._count += 1
        return f"{self._index}+{self._count - 1}"


def _record(recording: PackedRecording, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    recorder.set(recording)
    return function(**arguments)


def _elements(task: Task[Any, Any], value: Any) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        return value
    try:
        return [value[place] for place in range(len(value))]
    except (TypeError, LookupError) as error:
        kind = type(value).__name__
        raise WiringError(task.name, f"map over a value of type {kind}, which has no elements", "Give a sequence.") from error
