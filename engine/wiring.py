"""Wiring: goes through flows in a thread of its own, so that what user code does there blocks no heartbeat.

Async flows live in that thread, too; they hold no thread while they wait.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import structlog

from engine.errors import FlowBlocked
from engine.failures import failure_of
from engine.flows import Flow
from engine.logs import logger, run_fields
from engine.planning import Advance, Feed, Limits, Outcome
from engine.recording import Recording
from engine.runs import FlowRun
from engine.states import Failure, State
from engine.telemetry import run_context

#: The type of the failure of a run whose flow no loaded handler declares.
UNKNOWN_FLOW = "UnknownFlow"
#: A flow that goes on for so long without awaiting anything is named in the log.
_SLOW_SECONDS = 1.0


class Start(msgspec.Struct, frozen=True):
    """A run whose flow is to be gone through."""

    run: FlowRun
    #: What an earlier owner has told of its calls.
    history: Sequence[Feed]
    #: Where its clock begins.
    at: float


class Wirer:
    """Goes through flows."""

    def __init__(self, flows: Mapping[str, Flow[..., Any]], limits: Limits, flow_timeout_seconds: float) -> None:
        self._flows = flows
        self._limits = limits
        self._timeout_seconds = flow_timeout_seconds
        self._thread = ThreadPoolExecutor(1, "engine-wiring")
        #: Async flows that wait, by run. Only the thread touches them.
        self._recordings: dict[str, Recording] = {}
        self._lock = threading.Lock()
        self._step: _FlowStep | None = None

    async def start(self, starts: Sequence[Start]) -> list[Advance]:
        """What each flow does first, or has done so far; one trip to the thread for all."""
        return await self._in_thread(lambda: [self._start(start) for start in starts])

    async def feed(self, feeds: Sequence[tuple[str, list[Feed]]]) -> list[Advance]:
        """What the flows of these runs do when they hear of these ends, each in order."""
        return await self._in_thread(lambda: [self._feed(run_id, heard) for run_id, heard in feeds])

    def forget(self, run_id: str) -> None:
        """The run is somebody else's now."""
        self._thread.submit(self._forget, run_id)

    def close(self) -> None:
        """Go through no more; a flow that blocks the thread is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], list[Advance]]) -> list[Advance]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _start(self, start: Start) -> Advance:
        run = start.run
        flow = self._flows.get(run.flow)
        if flow is None:
            known = ", ".join(sorted(self._flows)) or "none"
            text = f"no handler declares the flow {run.flow!r}; loaded: {known}"
            return Advance(outcome=Outcome(State.CRASHED, Failure(UNKNOWN_FLOW, text)))
        context = run_context(run.traceparent or "", run.run_id)
        recording = Recording(flow, run, context, start.at, self._limits)
        advance = self._watched(run, functools.partial(recording.start, start.history))
        if advance.outcome is None:
            self._recordings[run.run_id] = recording
        return advance

    def _feed(self, run_id: str, feeds: list[Feed]) -> Advance:
        recording = self._recordings.get(run_id)
        if recording is None:
            return Advance()
        advance = self._watched(recording.run, functools.partial(recording.feed, feeds))
        if advance.outcome is not None:
            del self._recordings[run_id]
        return advance

    def _forget(self, run_id: str) -> None:
        recording = self._recordings.pop(run_id, None)
        if recording is not None:
            recording.close()

    def watch(self) -> None:
        """Look whether a flow keeps all others waiting: name it, and stop it in the end. Call it now and then."""
        with self._lock:
            step = self._step
            seconds = time.monotonic() - step.began_at if step is not None else 0.0
            if step is None or seconds < _SLOW_SECONDS or step.is_stopped:
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

    def _watched(self, run: FlowRun, work: Callable[[], Advance]) -> Advance:
        """One step of a flow, which must not take long: every other flow waits for it."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**run_fields(run.run_id, run.flow, run.traceparent))
        self._step = step = _FlowStep(run)
        try:
            advance = work()
        except _TakesTooLong:  # raised outside of the flow's own code: that has come to an end just before
            advance = Advance()
        with self._lock:
            self._step = None
            if step.is_stopped:
                # It may not have been raised yet: take it back, so that it cannot hit the next flow.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(step.thread_id), None)
        if step.is_stopped:
            seconds = time.monotonic() - step.began_at
            return Advance(outcome=Outcome(State.FAILED, failure_of(FlowBlocked(run.flow, round(seconds, 1)))))
        return advance


class _FlowStep:
    """A flow that has the thread now."""

    def __init__(self, run: FlowRun) -> None:
        self.run = run
        self.began_at = time.monotonic()
        self.thread_id = threading.get_ident()
        self.is_named = False
        self.is_stopped = False


class _TakesTooLong(BaseException):
    """Raised inside a flow; a BaseException, so that ``except Exception`` in a loop does not swallow it."""
