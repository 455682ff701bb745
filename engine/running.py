"""One attempt of a call on a worker, from its beginning to its report; knows nothing of Dask, and calls no user code.

A report leaves before the value or the error does. An attempt that is stopped, because its run was cancelled, reports nothing.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import cloudpickle
import msgspec
import structlog

from engine import deadlines
from engine.arguments import dump, load
from engine.attempts import current
from engine.deadlines import TimeIsOver
from engine.errors import ResultMissing, ResultStoreError, ResultStuck, TaskFailed, TaskTimeout, WiringError
from engine.executor import TAKEN, Call, Report, index_of, values_at
from engine.failures import MAX_MESSAGE, failure_of, frames_of_coroutine, frames_of_thread, stack_of
from engine.log_catcher import speaker
from engine.log_outbox import LogOutbox, Speaker, Voice
from engine.logs import logger, run_fields
from engine.retries import judge, next_wait_seconds
from engine.runs import stored_places, task_run_id_of
from engine.spawning import Nursery, Spawner, resolved
from engine.states import Failure, State, encode
from engine.tasks import Task, resolve
from engine.telemetry import Tracer

#: What the span of an attempt says whose run was cancelled meanwhile.
_CANCELLED = Failure("Cancelled", "its run was cancelled")
#: The attempts of this process by key, so that they can be stopped.
_running: dict[str, Attempt] = {}
#: What the states say of an attempt that took its worker with it.
RESTARTED = "worker restarted"
#: Always pickled without a look.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
#: What puts a value together whose parts were not there when its task returned.
_COLLECTED = "engine.arguments:collected"
#: Their frames are no part of a user's traceback.
_OWN_FILES = (__file__, str(Path(__file__).with_name("worker.py")), deadlines.__file__)


class Postponed(Exception):
    """The call is not over: another attempt follows, or its value waits for its children. Its report has said so."""


class Store(Protocol):
    """Where results go that do not travel (engine.results)."""

    def save(self, run_id: str, task: str, index: str, value: Any, *, type: Any = None) -> str:
        """Write a result; answers where it is."""
        ...

    def load(self, run_id: str, task: str, index: str, type: Any = Any) -> Any:
        """The value of a result. Raises ResultMissing."""
        ...


class Reporter(Nursery, Protocol):
    """Takes reports off a worker's threads, at once and without waiting."""

    #: Where the worker is.
    address: str
    tracer: Tracer
    #: Where log lines go.
    logs: LogOutbox

    def begin(self, report: Report) -> None:
        """An attempt has begun; need not be passed on if it ends soon."""
        ...

    def end(self, report: Report) -> None:
        """An attempt has ended."""
        ...

    def store(self, app: str) -> Store:
        """The result store of an app. Raises ResultStoreError where this worker has none."""
        ...

    #: Whether ``stuck`` ends this process.
    restarts: bool

    def stuck(self, report: Report, key: str) -> None:
        """An attempt has ended while its code goes on in its thread and cannot be stopped; called from another thread."""
        ...


def stop(key: str) -> None:
    """Stop the attempt of a call, whose run is over, where it runs in this process; called on the event loop of async tasks.

    Nobody is told what becomes of it. Code that cannot be stopped is dealt with as at a timeout.
    """
    if (attempt := _running.get(key)) is not None:
        attempt.stop()


def check_pickles(task: str, value: Any) -> None:
    """Raises ResultStuck where a result could not leave this worker."""
    try:
        try:
            # Large buffers (arrays, frames) are left out, the rest goes nowhere: this costs time, no memory.
            pickle.Pickler(_Nowhere(), protocol=5, buffer_callback=lambda buffer: False).dump(value)
        except Exception:  # Dask has a second way, which takes functions and classes of a notebook, too
            cloudpickle.dumps(value)
    except Exception as error:  # whatever user code raises there
        raise ResultStuck(task, type(value).__qualname__, failure_of(error).message) from None


def _voice_of(reporter: Reporter, call: Call) -> Voice:
    return Voice(
        run_id=call.run_id,
        flow=call.flow,
        attempt=call.attempt,
        traceparent=call.traceparent,
        worker=reporter.address,
        task=call.task or None,
        task_run_id=task_run_id_of(call.run_id, call.task, call.index) if call.task else None,
    )


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


class Attempt:
    """One execution of a call, from its begin to its report."""

    def __init__(self, call: Call, reporter: Reporter) -> None:
        self._call = call
        self._reporter = reporter
        self._started_at, self._worker = call.hung or (time.time(), reporter.address)
        current.set((call, self._started_at))
        self._speaker = Speaker(reporter, _voice_of, call)
        speaker.set(self._speaker)
        self._is_continuation = bool(call.task) and call.function == _COLLECTED
        self._task: Task[..., Any] | None = None
        self.value: Any = None
        #: Whether the value was in the result store already, and the run that had put it there.
        self.is_known = False
        self._taken_from = ""
        self._is_stopped = False
        #: Whether its end is told though its code goes on.
        self.is_given_up = False
        #: Of an ``async def`` function.
        self.limit: asyncio.Timeout | None = None
        _running[call.key] = self
        self.spawner = Spawner(call, reporter, self._worker, self._started_at)
        structlog.contextvars.clear_contextvars()  # threads are reused: what the last task bound must not stay
        structlog.contextvars.bind_contextvars(**run_fields(call.run_id, call.flow, call.traceparent, call.task))
        if not self._is_continuation:
            reporter.begin(self._report(State.RUNNING, self._started_at))

    def stop(self) -> None:
        """Its run is over."""
        self._is_stopped = True
        if self.limit is None:
            deadlines.stop(self._call.key)
        else:
            with suppress(RuntimeError):  # it is over, or about to be
                self.limit.reschedule(0.0)

    def close(self) -> None:
        """It is over: nothing can be stopped."""
        speaker.set(None)  # threads are reused
        if _running.get(self._call.key) is self:
            del _running[self._call.key]

    def prepare(self, results: Sequence[Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The function and its arguments. Raises WiringError where it is not here, and what unpickling raises."""
        call = self._call
        try:
            target = resolve(call.function)
        except (ImportError, AttributeError) as error:  # fails the task: another worker is likely to be like this one
            cause = f"the engine has loaded {call.function}, but the worker {self._reporter.address} has not: {error!r}"
            remedy = "Give the workers the same handlers (installed, or on PYTHONPATH); `engine doctor` asks all of them."
            raise WiringError(call.task, cause, remedy) from error
        args, kwargs = load(call.arguments, values_at(call.places, results))
        if isinstance(target, Task):
            self._task = target
            if call.persist:
                self._look_up()
            return target.function, args, kwargs
        return target, args, kwargs

    def _look_up(self) -> None:
        """A result that was stored is taken from there rather than made again."""
        call, store = self._call, self._store()
        for run_id, index in stored_places(call.run_id, call.index, call.reuse):
            try:
                self.value = store.load(run_id, call.task, index, self._result_type)
            except ResultMissing:
                continue  # as is usual: the first attempt, or one before it failed
            except ResultStoreError as error:  # it can be made again, which may mend the store as well
                logger.warning("a stored result cannot be read and is made again", error=str(error))
                continue
            self.is_known, self._taken_from = True, run_id
            return

    def _store(self) -> Store:
        call = self._call
        if not call.store:
            cause = f"the task {call.task} is declared with persist=True, but there is no result store"
            raise ResultStoreError(f"{call.run_id}/{call.task}-{call.index}", cause, "Set `results` to a URL, e.g. file:///….")
        return self._reporter.store(call.store)

    @property
    def _result_type(self) -> Any:
        """What the task says it returns; a continuation stands for the task, but knows the name alone."""
        return Any if self._task is None else self._task.result_type

    def returned(self) -> tuple[Any, Exception | None]:
        """Report the end. Answers the value, which stays on the worker, or why it is not there yet. Raises ResultStuck."""
        call, value = self._call, self.value
        if self.spawner.has_children:
            dumped = dump(((value,), {}), call.task or "result", call.run_id)
            if dumped.inputs:
                return None, self._wait_for_children(dumped.data, *resolved(dumped.inputs))
        details = self._describe(value)
        if self.is_known:
            details["remark"] = TAKEN if self._taken_from == call.run_id else f"taken from run {self._taken_from}"
        if call.persist and self._taken_from != call.run_id:
            # Also what another run had stored: it may be deleted before this one.
            details["stored"] = self._store().save(call.run_id, call.task, call.index, value, type=self._result_type)
        elif not self.is_known and call.is_final and call.store and "kept" in details:
            details["stored"] = self._store().save(call.run_id, call.task or "result", call.index, value)
        # Dask would compute a result that it cannot send anew, for ever.
        if (call.is_taken or "kept" in details) and type(value) not in _PLAIN:
            check_pickles(call.task, value)
        if self._is_continuation:
            details["tail"] = tuple(index_of(key) for key in call.dependencies)
        if call.has_news or not self._is_continuation:
            self._end(self._report(State.COMPLETED, time.time(), handled=tuple(self.spawner.handled), **details))
        return value, None

    def failed(self, error: BaseException) -> tuple[None, Exception]:
        """Report the end; answers what to raise, which unlike ``error`` always pickles."""
        if self._is_stopped:
            self._conclude(self._report(State.CANCELLED, time.time(), error=_CANCELLED))
            return None, TaskFailed(_CANCELLED.type, _CANCELLED.message, "")
        if isinstance(error, TimeIsOver):
            error = self._timeout().with_traceback(error.__traceback__)
        failure = failure_of(error, _OWN_FILES)
        report = self._failed(error, failure)
        self._end(report)
        if report.retry_in_seconds is not None:
            return None, Postponed()
        return None, TaskFailed(failure.type, failure.message, failure.traceback)

    def stuck(self, frame: FrameType | None, coroutine: object = None) -> None:
        """Report the end of an attempt whose code cannot be stopped; called by the watchdog, in its thread."""
        frames = frames_of_thread(frame, _OWN_FILES) or frames_of_coroutine(coroutine, _OWN_FILES)
        error = self._timeout("restarted" if self._reporter.restarts else "abandoned")
        failure = failure_of(error)
        failure = Failure(failure.type, failure.message, stack_of(frames) + failure.traceback)
        remark = RESTARTED if self._reporter.restarts else "thread abandoned"
        report = msgspec.structs.replace(self._failed(error, failure), remark=remark)
        self._conclude(report)
        self.is_given_up = True
        self._reporter.stuck(report, self._call.key)

    def hung(self) -> TaskTimeout:
        """What the attempt has failed with whose process was ended because nothing in it got on; its code is not called."""
        with suppress(ImportError, AttributeError):  # then it has no policy either, and is not tried again
            target = resolve(self._call.function)
            self._task = target if isinstance(target, Task) else None
        return self._timeout("ended")

    def _timeout(self, how: str = "") -> TaskTimeout:
        return TaskTimeout(self._call.task, self._call.timeout_seconds or 0.0, how)

    def _failed(self, error: BaseException, failure: Failure) -> Report:
        wait_seconds = None
        if self._task is not None:
            verdict = judge(self._task.retry, error)
            wait_seconds = next_wait_seconds(
                self._task.retry,
                self._call.attempt - self._call.deaths,  # the policy is for what user code raises
                is_final=verdict.is_final,
                retry_after_seconds=verdict.retry_after_seconds,
            )
        details: dict[str, Any] = {"retry_in_seconds": wait_seconds, "remark": RESTARTED if self._call.hung else None}
        return self._report(State.FAILED, time.time(), error=failure, handled=tuple(self.spawner.handled), **details)

    def _wait_for_children(self, data: bytes, keys: tuple[str, ...], places: tuple[tuple[int, int, int], ...]) -> Postponed:
        """The function has returned, its children go on: put the value together when theirs are there."""
        continuation = msgspec.structs.replace(
            self._call, function=_COLLECTED, arguments=data, dependencies=keys, places=places, is_async=False
        )
        tail, handled = tuple(index_of(key) for key in keys), tuple(self.spawner.handled)
        self._end(self._report(State.COMPLETED, time.time(), tail=tail, continuation=continuation, handled=handled))
        return Postponed()

    def _describe(self, value: Any) -> dict[str, Any]:
        """What the report says of the value: itself, where it travels, or why not; how many elements it has."""
        call = self._call
        details: dict[str, Any] = {}
        if call.returns:
            try:
                encoded = encode(value)
            except Exception as error:  # any value may come back; one that is no JSON stays on the cluster
                details["kept"] = f"not encodable: {error}"[:MAX_MESSAGE]
            else:
                if len(encoded) <= call.inline_result_bytes:
                    details["result"] = encoded
                else:
                    details["kept"] = f"too large: {len(encoded):,} bytes"
        if call.has_news and isinstance(value, Sequence) and not isinstance(value, str | bytes):
            details["length"] = len(value)
        return details

    def _end(self, report: Report) -> None:
        if self.is_given_up:
            return  # its code has come back after all
        self._conclude(report)
        self._reporter.end(report)

    def _conclude(self, report: Report) -> None:
        """What goes before the report: the last line of its log, and its span."""
        self._speaker.close()
        call = self._call
        if call.task and not self._is_continuation:
            self._reporter.tracer.attempt(
                call.traceparent,
                flow=call.flow,
                run_id=call.run_id,
                task=call.task,
                task_run_id=task_run_id_of(call.run_id, call.task, call.index),
                attempt=call.attempt,
                scheduled_at=call.scheduled_at,
                started_at=report.started_at,
                ended_at=report.at,
                worker=report.worker,
                failure=report.error,
            )

    def _report(self, state: State, at: float, **details: Any) -> Report:
        call = self._call
        return Report(call.run_id, call.index, state, call.attempt, self._started_at, at, self._worker, **details)
