"""The flow watch: names a flow that keeps all others waiting, and stops it in the end; it starts no thread of its own.

It stops Python code as a task's timeout does, by an exception in its thread. Code stuck in C notices when it comes back.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from engine.errors import FlowBlocked
from engine.logs import logger
from engine.runs import FlowRun

R = TypeVar("R")

#: A flow that goes on for so long without awaiting anything is named in the log.
_SLOW_SECONDS = 1.0


class _Step:
    """A flow that has the thread now."""

    def __init__(self, run: FlowRun) -> None:
        self.run = run
        self.began_at = time.monotonic()
        self.thread_id = threading.get_ident()
        self.is_named = False
        self.is_stopped = False


class FlowWatch:
    """Watches the one flow that is gone through at a time."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._step: _Step | None = None

    def run(self, run: FlowRun, work: Callable[[], R]) -> R:
        """What ``work`` answers, in this thread. Raises FlowBlocked where it had to be stopped."""
        self._step = step = _Step(run)
        done: list[R] = []
        with contextlib.suppress(_TakesTooLong):  # outside of the flow's own code, which has come to an end just before
            done.append(work())
        with self._lock:
            self._step = None
            if step.is_stopped:
                # It may not have been raised yet: take it back, so that it cannot hit the next flow.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(step.thread_id), None)
        if step.is_stopped:
            raise FlowBlocked(run.flow, round(time.monotonic() - step.began_at, 1))
        return done[0]

    def look(self) -> None:
        """Call it now and then, from another thread."""
        with self._lock:
            step = self._step
            seconds = time.monotonic() - step.began_at if step is not None else 0.0
            if step is None or seconds < min(_SLOW_SECONDS, self._timeout_seconds) or step.is_stopped:
                return
            if seconds >= self._timeout_seconds:
                step.is_stopped = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(step.thread_id), ctypes.py_object(_TakesTooLong))
            if step.is_named:
                return
            step.is_named = True
        frame = sys._current_frames().get(step.thread_id)
        place = traceback.extract_stack(frame)[-1] if frame is not None else None
        logger.warning(
            "a flow keeps all others waiting: it computes or blocks where it should await",
            flow=step.run.flow,
            run_id=step.run.run_id,
            at=f"{place.filename}:{place.lineno}" if place is not None else "",
        )


class _TakesTooLong(BaseException):
    """Raised inside a flow; a BaseException, so that ``except Exception`` in a loop does not swallow it."""
