"""The worker's side of a task: runs one call and reports; knows nothing of Dask (engine.reporter calls it).

Whatever user code does, a report leaves before the value or the error: unpicklable errors, ``sys.exit`` and timeouts
included. Only the death of the process goes unreported; the scheduler notices that.
"""

from __future__ import annotations

import asyncio
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

import cloudpickle
import structlog

from engine import deadlines
from engine.attempts import current
from engine.deadlines import TimeIsOver, run_within
from engine.errors import ResultStuck, TaskFailed, TaskTimeout
from engine.executor import Call, Report
from engine.graph import load
from engine.logs import run_fields
from engine.retries import Retry, judge
from engine.runs import task_run_id_of
from engine.states import Failure, State, encode
from engine.tasks import Task, resolve
from engine.telemetry import Tracer

#: Longer texts of errors are cut: they travel in headers, state changes and logs.
_MAX_MESSAGE = 4_096
_MAX_TRACEBACK = 32_768
#: Always pickled without a look.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
#: Their frames are no part of a user's traceback.
_OWN_FILES = frozenset({__file__, deadlines.__file__})


class Reporter(Protocol):
    """Takes reports off a worker's threads, at once and without waiting."""

    #: Where the worker is.
    address: str
    tracer: Tracer

    def begin(self, report: Report) -> None:
        """An attempt has begun; need not be passed on if it ends soon."""
        ...

    def end(self, report: Report) -> None:
        """An attempt has ended."""
        ...

    #: Whether ``stuck`` ends this process.
    restarts: bool

    def stuck(self, report: Report, key: str) -> None:
        """An attempt has ended while its code goes on in its thread and cannot be stopped; called from another thread."""
        ...


def execute(call: Call, results: Sequence[Any], reporter: Reporter) -> Any:
    """Run a call of a plain function. Raises TaskFailed for whatever user code raised."""
    attempt = _Attempt(call, reporter)
    try:
        function, args, kwargs = attempt.prepare(results)
        value = run_within(call.timeout_seconds, attempt.stuck, function, args, kwargs)
        result, kept = attempt.encode(value)
    except BaseException as error:  # SystemExit too: it must end the task, not the worker; the run ends FAILED
        failed = attempt.failed(error)
    else:
        return attempt.completed(value, result, kept)
    finally:
        current.set(None)  # threads are reused
    # Out here it has no context: Dask pickles an error with its context, which may be what does not pickle.
    raise failed


async def execute_async(call: Call, results: Sequence[Any], reporter: Reporter) -> Any:
    """Run a call of an ``async def`` function. Raises TaskFailed for whatever user code raised."""
    attempt = _Attempt(call, reporter)
    try:
        function, args, kwargs = attempt.prepare(results)
        try:
            async with asyncio.timeout(call.timeout_seconds):
                value = await function(*args, **kwargs)
        except TimeoutError as error:
            raise TaskTimeout(call.task, call.timeout_seconds or 0.0) if call.timeout_seconds else error from error
        result, kept = attempt.encode(value)
    except asyncio.CancelledError:
        raise  # the worker is closing: the scheduler gives the call to another one
    except BaseException as error:  # as above
        failed = attempt.failed(error)
    else:
        return attempt.completed(value, result, kept)
    finally:
        current.set(None)
    raise failed


def failure_of(error: BaseException) -> Failure:
    """An error as text, without the engine's own frames. Its ``__str__`` may be broken: that is said instead."""
    try:
        message = str(error)
    except Exception as broken:  # user code in __str__: the report must leave all the same
        message = f"<its text cannot be had: {type(broken).__name__}>"
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in _OWN_FILES:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception as broken:  # as above
        text = f"<its traceback cannot be had: {type(broken).__name__}>"
    return Failure(type(error).__qualname__, _sendable(message[:_MAX_MESSAGE]), _sendable(text[-_MAX_TRACEBACK:]))


def _sendable(text: str) -> str:
    """``text`` as valid Unicode: names of files from outside may hold what no JSON can."""
    return text.encode(errors="backslashreplace").decode()


def _stack_of(frame: FrameType | None) -> str:
    """Where code is, as text, without the engine's own frames."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_code.co_filename not in _OWN_FILES:
        frames.append(frame)
        frame = frame.f_back
    lines = [traceback.format_stack(at, limit=1)[0] for at in reversed(frames)]
    return "".join(["It is stuck here (most recent call last):\n", *lines])[-_MAX_TRACEBACK:]


def _check_pickles(task: str, value: Any) -> None:
    try:
        try:
            # Large buffers (arrays, frames) are left out, the rest goes nowhere: this costs time, no memory.
            pickle.Pickler(_Nowhere(), protocol=5, buffer_callback=lambda buffer: False).dump(value)
        except Exception:  # Dask has a second way, which takes functions and classes of a notebook, too
            cloudpickle.dumps(value)
    except Exception as error:  # whatever user code raises there
        raise ResultStuck(task, type(value).__qualname__, failure_of(error).message) from None


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


class _Attempt:
    """One execution of a call, from its begin to its report."""

    def __init__(self, call: Call, reporter: Reporter) -> None:
        self._call = call
        self._reporter = reporter
        self._retry: Retry | None = None
        self._started_at = time.time()
        current.set((call, self._started_at))
        structlog.contextvars.clear_contextvars()  # threads are reused: what the last task bound must not stay
        structlog.contextvars.bind_contextvars(**run_fields(call.run_id, call.flow, call.traceparent, call.task))
        reporter.begin(self._report(State.RUNNING, self._started_at))

    def prepare(self, results: Sequence[Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """What to call, with what. Raises whatever importing the function and loading its arguments raise."""
        target = resolve(self._call.function)
        args, kwargs = load(self._call.arguments, results)
        if not isinstance(target, Task):
            return target, args, kwargs
        self._retry = target.retry
        return target.function, args, kwargs

    def encode(self, value: Any) -> tuple[bytes | None, str | None]:
        """The value as it travels with the report, or why it does not. Raises ResultStuck."""
        call = self._call
        result, kept = self._encode(value) if call.returns else (None, None)
        # Dask would compute a result that it cannot send anew, for ever.
        if (call.is_taken or kept is not None) and type(value) not in _PLAIN:
            _check_pickles(call.task, value)
        return result, kept

    def completed(self, value: Any, result: bytes | None, kept: str | None) -> Any:
        """Report the end; answers the value, which stays on the worker."""
        self._end(self._report(State.COMPLETED, time.time(), result=result, kept=kept))
        return value

    def failed(self, error: BaseException) -> TaskFailed:
        """Report the end; answers what to raise, which unlike ``error`` always pickles."""
        is_told = isinstance(error, TimeIsOver) and error.is_stuck  # by ``stuck``, before the code came back after all
        if isinstance(error, TimeIsOver):
            error = self._timeout().with_traceback(error.__traceback__)
        failure = failure_of(error)
        if not is_told:
            self._end(self._failed(error, failure))
        return TaskFailed(failure.type, failure.message, failure.traceback)

    def stuck(self, frame: FrameType | None) -> None:
        """Report the end of an attempt whose code cannot be stopped; called by the watchdog."""
        error = self._timeout(is_stuck=True, is_restarted=self._reporter.restarts)
        failure = failure_of(error)
        failure = Failure(failure.type, failure.message, _sendable(_stack_of(frame)) + failure.traceback)
        report = self._failed(error, failure)
        self._trace(report)
        self._reporter.stuck(report, self._call.key)

    def _timeout(self, **details: bool) -> TaskTimeout:
        return TaskTimeout(self._call.task, self._call.timeout_seconds or 0.0, **details)

    def _failed(self, error: BaseException, failure: Failure) -> Report:
        verdict = judge(self._retry, error)
        details = {"is_final": verdict.is_final, "retry_after_seconds": verdict.retry_after_seconds}
        return self._report(State.FAILED, time.time(), error=failure, **details)

    def _end(self, report: Report) -> None:
        self._trace(report)
        self._reporter.end(report)

    def _trace(self, report: Report) -> None:
        call = self._call
        if call.task:
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
        return Report(call.run_id, call.index, state, call.attempt, self._started_at, at, self._reporter.address, **details)

    def _encode(self, value: Any) -> tuple[bytes | None, str | None]:
        try:
            encoded = encode(value)
        except Exception as error:  # any value may come back; one that is no JSON stays on the cluster
            return None, f"not encodable: {error}"[:_MAX_MESSAGE]
        limit = self._call.inline_result_bytes
        return (encoded, None) if len(encoded) <= limit else (None, f"too large: {len(encoded):,} bytes")
