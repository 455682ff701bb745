"""Attempts at the tasks of a packed run: each runs where it is called, in a context of its own, and is noted.

They are counted, timed and retried as in the unpacked lane; a wait that is long enough ends the try instead.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from contextvars import Context, ContextVar
from types import FrameType
from typing import Any

import msgspec

from engine.attempts import current
from engine.deadlines import TimeIsOver, run_within
from engine.errors import TaskTimeout
from engine.failures import failure_of
from engine.handles import recorder
from engine.log_outbox import LogOutbox, Quota, RunLog, Voice
from engine.logs import context_variables
from engine.packed_handles import Absent, Suspended
from engine.packed_memos import Key, Wait
from engine.parcels import PackedRun, TaskOutcome
from engine.retries import judge, next_wait_seconds
from engine.states import Failure, State
from engine.tasks import Task
from engine.telemetry import Tracer
from engine.trace_contexts import is_sampled

#: A retry that comes so soon is waited for on the worker; a way to the engine and back takes longer.
MAX_WAIT_SECONDS = 0.005

_TASK: ContextVar[Any] = context_variables()["task"]


#: Told, from another thread, that code of a run cannot be stopped.
OnStuck = Callable[[PackedRun, TaskTimeout], None]


class PackedCall(msgspec.Struct, frozen=True, gc=False):
    """What ``engine.attempt()`` needs to know of a task that runs."""

    flow: str
    run_id: str
    task: str
    index: str
    attempt: int
    timeout_seconds: float | None


class PackedSpeaker:
    """Who speaks in a packed run: the task whose code runs in the context, else the flow; together they have one quota."""

    __slots__ = ("_flow", "_logs", "_outbox", "_quota", "_run", "_worker")

    def __init__(self, outbox: LogOutbox, flow: str, run: PackedRun, worker: str) -> None:
        self._outbox, self._flow, self._run, self._worker = outbox, flow, run, worker
        #: By index, task and attempt; made when the first one speaks.
        self._logs: dict[tuple[str, str, int] | None, RunLog] | None = None
        self._quota: Quota

    @property
    def log(self) -> RunLog:
        """Where lines go that are said in this context."""
        if self._logs is None:
            self._logs, self._quota = {}, Quota()
        running = current.get()
        if running is None:
            return self._log_of(None)
        call = running[0]
        return self._log_of((call.index, call.task, call.attempt))

    def close(self) -> None:
        """The try of the run is over."""
        if self._logs is not None:
            self._log_of(None).close()
            self._quota.dropped = 0  # it is told
            for log in self._logs.values():
                log.close()

    def _log_of(self, key: tuple[str, str, int] | None) -> RunLog:
        assert self._logs is not None  # noqa: S101
        log = self._logs.get(key)
        if log is None:
            log = self._logs[key] = RunLog(self._outbox, self._voice(key), self._quota)
        return log

    def _voice(self, key: tuple[str, str, int] | None) -> Voice:
        run = self._run
        index, task, attempt = key or (None, None, run.attempt)
        return Voice(
            run_id=run.run_id,
            flow=self._flow,
            attempt=attempt,
            traceparent=run.traceparent,
            worker=self._worker,
            task=task,
            task_run_id=None if task is None else f"{run.run_id}/{task}/{index}",
        )


class Attempts:
    """All attempts of one try of a run, and what they came to."""

    __slots__ = ("_context", "_flow", "_on_stuck", "_run", "_tracer", "_worker", "failures", "spawner_of", "tasks", "waits")

    def __init__(
        self,
        flow: str,
        run: PackedRun,
        context: Context,
        spawner_of: Callable[[str], Any] | None,
        tracer: Tracer | None,
        worker: str,
        on_stuck: OnStuck | None,
    ) -> None:
        self._on_stuck = on_stuck
        self._flow = flow
        self._run = run
        self._context = context
        #: Makes the recorder of a running task from its index; None where tasks cannot spawn.
        self.spawner_of = spawner_of
        self._worker = worker
        self._tracer = tracer if tracer is not None and is_sampled(run.traceparent) else None
        #: What became of the calls so far, in the order of their ends.
        self.tasks: list[TaskOutcome] = []
        self.failures: list[Absent] = []
        self.waits: dict[Key, Wait] = {}

    def run(self, task: Task[Any, Any], index: str, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int) -> Any:
        """The value of a plain task, after as many attempts as it takes; Absent where there is none."""
        name, function, seconds = task.name, task.function, task.timeout_seconds
        while True:
            context = self._context.copy()  # nothing that a task binds stays
            context.run(_TASK.set, name)
            if self.spawner_of is not None:
                context.run(recorder.set, self.spawner_of(index))
            started_at = time.time()
            context.run(current.set, (self._called(task, index, attempt), started_at))
            try:
                if seconds is None:
                    value = context.run(function, *args, **kwargs)
                else:
                    stuck = functools.partial(self._stuck, name, seconds)
                    value = run_within(seconds, stuck, context.run, (function, *args), kwargs)
            except Suspended:  # it waits for a child that waits: it is run again with it
                return Absent(State.RETRYING)
            except BaseException as error:  # SystemExit too: the task has failed, nothing else has
                failed = self._failed(task, index, attempt, started_at, error)
                if failed.__class__ is Absent:
                    return failed
                time.sleep(failed)
                attempt += 1
            else:
                self._completed(name, index, attempt, started_at)
                return value

    async def run_async(
        self, task: Task[Any, Any], index: str, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int
    ) -> Any:
        """The same for an ``async def`` task, in the context of the asyncio task that this runs in."""
        _TASK.set(task.name)
        recorder.set(None if self.spawner_of is None else self.spawner_of(index))
        while True:
            started_at = time.time()
            current.set((self._called(task, index, attempt), started_at))
            try:
                async with asyncio.timeout(task.timeout_seconds) as deadline:
                    value = await task.function(*args, **kwargs)
            except asyncio.CancelledError:
                raise  # the run is over
            except Suspended:  # as above
                return Absent(State.RETRYING)
            except BaseException as error:  # as above
                is_over = isinstance(error, TimeoutError) and deadline.expired()
                failed = self._failed(task, index, attempt, started_at, TimeIsOver() if is_over else error)
                if failed.__class__ is Absent:
                    return failed
                await asyncio.sleep(failed)
                attempt += 1
            else:
                self._completed(task.name, index, attempt, started_at)
                return value

    def skip(self, name: str, index: str, needed: Absent) -> Absent:
        """A call needs what is not there: it is cancelled, or waits for a later try with it."""
        if needed.root.failure is None:
            return needed
        self.tasks.append(TaskOutcome(name, index, State.CANCELLED, 0))
        return Absent(State.CANCELLED, root=needed.root)

    def tasks_beside(self, failure: Failure) -> list[TaskOutcome]:
        """What became of the calls, to stand beside ``failure``, whose traceback need not be told twice."""
        return [_without_traceback(task) if task.error is failure else task for task in self.tasks]

    def _called(self, task: Task[Any, Any], index: str, attempt: int) -> PackedCall:
        return PackedCall(self._flow, self._run.run_id, task.name, index, attempt, task.timeout_seconds)

    def _stuck(self, name: str, seconds: float, frame: FrameType | None) -> None:
        if self._on_stuck is not None:
            self._on_stuck(self._run, TaskTimeout(name, seconds, "restarted"))

    def _completed(self, name: str, index: str, attempt: int, started_at: float) -> None:
        ended_at = time.time()
        self.tasks.append(TaskOutcome(name, index, State.COMPLETED, attempt, started_at, ended_at))
        if self._tracer is not None:
            self._tell_span(name, index, attempt, started_at, ended_at, None)

    def _failed(self, task: Task[Any, Any], index: str, attempt: int, started_at: float, error: BaseException) -> Any:
        """An attempt has failed: how long to wait for the next one here, or what stands for the value that is not there."""
        ended_at = time.time()
        if isinstance(error, TimeIsOver):
            error = TaskTimeout(task.name, task.timeout_seconds or 0.0)
        failure = failure_in_user_code(error)
        if self._tracer is not None:
            self._tell_span(task.name, index, attempt, started_at, ended_at, failure)
        verdict = judge(task.retry, error)
        wait_seconds = next_wait_seconds(
            task.retry, attempt, is_final=verdict.is_final, retry_after_seconds=verdict.retry_after_seconds
        )
        if wait_seconds is not None and wait_seconds <= MAX_WAIT_SECONDS:
            return wait_seconds
        state = State.FAILED if wait_seconds is None else State.RETRYING
        self.tasks.append(TaskOutcome(task.name, index, state, attempt, started_at, ended_at, failure))
        if wait_seconds is not None:
            self.waits[index, task.name] = Wait(attempt + 1, ended_at + wait_seconds, failure)
            return Absent(State.RETRYING)
        absent = Absent(State.FAILED, failure)
        self.failures.append(absent)
        return absent

    def _tell_span(
        self, name: str, index: str, attempt: int, started_at: float, ended_at: float, failure: Failure | None
    ) -> None:
        run = self._run
        assert self._tracer is not None  # noqa: S101
        self._tracer.attempt(
            run.traceparent,
            flow=self._flow,
            run_id=run.run_id,
            task=name,
            task_run_id=f"{run.run_id}/{name}/{index}",
            attempt=attempt,
            scheduled_at=run.scheduled_at,
            started_at=started_at,
            ended_at=ended_at,
            worker=self._worker,
            failure=failure,
        )


def failure_in_user_code(error: BaseException) -> Failure:
    """An error as text, without the frames of this lane."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in _OUR_MODULES:
        frames = frames.tb_next
    return failure_of(error.with_traceback(frames))


_OUR_MODULES = frozenset(
    {__name__, "engine.packing", "engine.packed_calls", "engine.packed_loops", "asyncio.tasks", "asyncio.futures"}
)


def _without_traceback(task: TaskOutcome) -> TaskOutcome:
    assert task.error is not None  # noqa: S101
    return msgspec.structs.replace(task, error=Failure(task.error.type, task.error.message))
