"""The worker's side of a task: runs one call and reports; knows nothing of Dask (engine.reporter calls it).

Whatever user code does, a report leaves before the value or the error: unpicklable errors, ``sys.exit`` and timeouts
included. Only the death of the process goes unreported; the scheduler notices that.
"""

from __future__ import annotations

import asyncio
import ctypes
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

import cloudpickle
import structlog

from engine.errors import ResultStuck, TaskFailed, TaskTimeout
from engine.executor import Call, Report
from engine.graph import load
from engine.logs import run_fields
from engine.runs import task_run_id_of
from engine.states import Failure, State, encode
from engine.tasks import Task, resolve
from engine.telemetry import Tracer

#: Longer texts of errors are cut: they travel in headers, state changes and logs.
_MAX_MESSAGE = 4_096
_MAX_TRACEBACK = 32_768
#: Always pickled without a look.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})


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


def execute(call: Call, results: Sequence[Any], reporter: Reporter) -> Any:
    """Run a call of a plain function. Raises TaskFailed for whatever user code raised."""
    attempt = _Attempt(call, reporter)
    try:
        function, args, kwargs = _prepare(call, results)
        with _Deadline(call):
            value = function(*args, **kwargs)
        result, kept = attempt.encode(value)
    except BaseException as error:  # SystemExit too: it must end the task, not the worker; the run ends FAILED
        failed = attempt.failed(error)
    else:
        return attempt.completed(value, result, kept)
    # Out here it has no context: Dask pickles an error with its context, which may be what does not pickle.
    raise failed


async def execute_async(call: Call, results: Sequence[Any], reporter: Reporter) -> Any:
    """Run a call of an ``async def`` function. Raises TaskFailed for whatever user code raised."""
    attempt = _Attempt(call, reporter)
    try:
        function, args, kwargs = _prepare(call, results)
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
    raise failed


def failure_of(error: BaseException) -> Failure:
    """An error as text, without the engine's own frames. Its ``__str__`` may be broken: that is said instead."""
    try:
        message = str(error)
    except Exception as broken:  # user code in __str__: the report must leave all the same
        message = f"<its text cannot be had: {type(broken).__name__}>"
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception as broken:  # as above
        text = f"<its traceback cannot be had: {type(broken).__name__}>"
    return Failure(type(error).__qualname__, _sendable(message[:_MAX_MESSAGE]), _sendable(text[-_MAX_TRACEBACK:]))


def _sendable(text: str) -> str:
    """``text`` as valid Unicode: names of files from outside may hold what no JSON can."""
    return text.encode(errors="backslashreplace").decode()


def _prepare(call: Call, results: Sequence[Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    target = resolve(call.function)
    args, kwargs = load(call.arguments, results)
    return (target.function if isinstance(target, Task) else target), args, kwargs


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
        self._started_at = time.time()
        structlog.contextvars.clear_contextvars()  # threads are reused: what the last task bound must not stay
        structlog.contextvars.bind_contextvars(**run_fields(call.run_id, call.flow, call.traceparent, call.task))
        reporter.begin(self._report(State.RUNNING, self._started_at))

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
        if isinstance(error, _TimeIsOver):
            error = TaskTimeout(self._call.task, self._call.timeout_seconds or 0.0)
        failure = failure_of(error)
        self._end(self._report(State.FAILED, time.time(), error=failure))
        return TaskFailed(failure.type, failure.message, failure.traceback)

    def _end(self, report: Report) -> None:
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
        self._reporter.end(report)

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


class _Deadline:
    """Stops the Python code of this thread when the call's time is over, by raising TaskTimeout in it.

    Code that is inside a C call notices when that returns.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._thread_id = threading.get_ident()
        self._lock = threading.Lock()
        self._is_over = False
        self._has_fired = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> None:
        if self._call.timeout_seconds is not None:
            self._timer = threading.Timer(self._call.timeout_seconds, self._fire)
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            if self._has_fired:
                # It may not have been raised yet: take it back, so that it cannot hit the next task of this thread.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), None)
        if self._has_fired:
            raise _TimeIsOver

    def _fire(self) -> None:
        with self._lock:
            if not self._is_over:
                self._has_fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), ctypes.py_object(_TimeIsOver))


class _TimeIsOver(BaseException):
    """Raised inside user code; a BaseException, so that ``except Exception`` in a loop does not swallow it."""
