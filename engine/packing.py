"""The worker's side of a parcel: runs many small runs, flow and tasks, one after the other; knows nothing of Dask.

Whatever one run does (unpicklable errors, ``sys.exit``, timeouts) touches no other run. Only the death of the process does;
outcomes are told on the way, so that little is in doubt then. Nobody sleeps here: a run that has to wait for a retry goes
back to the engine, with what it has finished.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

import structlog

from engine.errors import EventError, TaskTimeout
from engine.flows import Flow
from engine.log_catcher import speaker
from engine.log_outbox import LogOutbox
from engine.logs import context_variables
from engine.packed_attempts import PackedSpeaker, failure_in_user_code
from engine.packed_calls import PackedRecording
from engine.packed_handles import Suspended, Unavailable, filled
from engine.parcels import Outcome, PackedRun, Parcel, encode_tasks
from engine.running import check_pickles
from engine.states import Failure, State, encode
from engine.tasks import resolve
from engine.telemetry import Tracer
from engine.trace_contexts import trace_id_of

#: Outcomes wait for others at most so long, and for the end of the run that is under way.
_TELL_SECONDS = 0.02
_MAX_KEPT = 4_096

Tell = Callable[[list[Outcome]], None]
#: Takes the result of a run that does not travel; answers where it is, where that is not the cluster.
Keep = Callable[[str, Any], str | None]


def run_parcel(
    parcel: Parcel,
    tell: Tell,
    *,
    tracer: Tracer,
    logs: LogOutbox | None = None,
    worker: str = "",
    pending: deque[Outcome] | None = None,
    on_stuck: Callable[[Outcome], None] | None = None,
    keep: Keep | None = None,
    is_stopped: Callable[[str], bool] | None = None,
) -> None:
    """Run each run of the parcel and ``tell`` every outcome, some at a time, in this thread.

    Outcomes are put into ``pending`` first, from which another thread may take them (``popleft``) at any time, so that none
    waits behind a long run. ``on_stuck`` is told, from another thread, of a run whose code cannot be stopped. ``keep``
    puts results that do not travel somewhere else. Runs for which ``is_stopped`` says yes are left out, untold.
    Raises nothing but what ``tell`` raises.
    """
    pending = deque() if pending is None else pending
    context = copy_context()  # what one run binds is gone with its copy of this
    context.run(_bind_flow, parcel.flow)
    try:
        flow = resolve(parcel.reference)
        if not isinstance(flow, Flow):
            raise TypeError(f"{parcel.reference} is no flow")  # noqa: TRY301  # told like all else that goes wrong here
    except BaseException as error:  # whatever a handler does while it is imported: all its runs end FAILED with it
        failure, now = failure_in_user_code(error), time.time()
        tell([Outcome(run.run_id, run.attempt, State.FAILED, now, now, error=failure) for run in parcel.runs])
        return
    packed = _PackedFlow(flow, parcel, tracer, LogOutbox() if logs is None else logs, worker, context, on_stuck, keep)
    told_at = time.monotonic()
    for run in parcel.runs:
        if is_stopped is not None and is_stopped(run.run_id):
            continue
        pending.append(packed.run(run))
        if (now := time.monotonic()) - told_at >= _TELL_SECONDS:
            told_at = now
            _tell_all(pending, tell)
    _tell_all(pending, tell)


def _tell_all(pending: deque[Outcome], tell: Tell) -> None:
    outcomes: list[Outcome] = []
    try:
        while True:
            outcomes.append(pending.popleft())
    except IndexError:  # empty, perhaps because the other thread was faster
        pass
    if outcomes:
        tell(outcomes)


class _PackedFlow:
    """A flow, ready to run many times."""

    __slots__ = ("_context", "_flow", "_is_async", "_keep", "_limit", "_logs", "_on_stuck", "_tracer", "_worker")

    def __init__(
        self,
        flow: Flow[..., Any],
        parcel: Parcel,
        tracer: Tracer,
        logs: LogOutbox,
        worker: str,
        context: Context,
        on_stuck: Callable[[Outcome], None] | None,
        keep: Keep | None,
    ) -> None:
        self._on_stuck, self._keep = on_stuck, keep
        self._flow, self._logs = flow, logs
        self._is_async = flow.is_async
        self._limit = parcel.inline_result_bytes
        self._tracer = tracer if tracer.is_on else None
        self._worker = worker
        self._context = context

    def run(self, run: PackedRun) -> Outcome:
        """One try of one run."""
        speaks = PackedSpeaker(self._logs, self._flow.name, run, self._worker)
        try:
            return self._run(run, speaks)
        finally:
            speaks.close()

    def _run(self, run: PackedRun, speaks: PackedSpeaker) -> Outcome:
        started_at = time.time()
        context = self._context.copy()
        context.run(_bind_run, run.run_id, trace_id_of(run.traceparent), speaks)
        recording = PackedRecording(self._flow.name, run, context, self._tracer, self._worker, self._stuck)
        try:
            returned, failure = self._call(recording, run)
            if failure is None and recording.has_news:
                failure = recording.failure
            if failure is None and not recording.is_waiting:
                result, kept = self._encode(returned)
                stored = None
                if kept is not None:
                    check_pickles("result", returned)
                    stored = None if self._keep is None else self._keep(run.run_id, returned)
                tasks = encode_tasks(recording.tasks)
                now = time.time()
                return Outcome(run.run_id, run.attempt, State.COMPLETED, started_at, now, result, kept, stored, None, tasks)
        except BaseException as error:  # e.g. what user code started in the background, or a __str__ that exits
            failure = failure_in_user_code(error)
        if failure is None:
            return recording.to_be_continued(started_at)
        tasks = encode_tasks(recording.tasks_beside(failure))
        memo = recording.memo_of_completed() if self._flow.retry is not None else b""
        now = time.time()
        return Outcome(run.run_id, run.attempt, State.FAILED, started_at, now, error=failure, tasks=tasks, memo=memo)

    def _stuck(self, run: PackedRun, error: TaskTimeout) -> None:
        if self._on_stuck is not None:
            now = time.time()
            self._on_stuck(Outcome(run.run_id, run.attempt, State.FAILED, now, now, error=failure_in_user_code(error)))

    def _call(self, recording: PackedRecording, run: PackedRun) -> tuple[Any, Failure | None]:
        """What the flow returned, with values for handles; or the failure that is the flow's own."""
        try:
            arguments = self._flow.arguments(run.parameters)
        except EventError as error:  # the flow has changed since the event was bound
            return None, Failure("InvalidParameters", error.cause)
        try:
            call = recording.run_async_flow if self._is_async else recording.run_flow
            returned = call(self._flow.function, arguments)
            return (filled(returned) if recording.has_handles else returned), None
        except Suspended:  # it asked for what a later try will have
            return None, None
        except Unavailable as missing:  # it returned what failed, or what a later try will have
            return None, None if recording.is_waiting else missing.absent.root.failure
        except BaseException as error:  # user code, sys.exit included: this run ends FAILED with it
            return None, recording.failure_of(error)
        finally:
            recording.close()

    def _encode(self, value: Any) -> tuple[bytes | None, str | None]:
        try:
            encoded = encode(value)
        except Exception as error:  # any value may come back; one that is no JSON does not travel
            return None, f"not encodable: {error}"[:_MAX_KEPT]
        return (encoded, None) if len(encoded) <= self._limit else (None, f"too large: {len(encoded):,} bytes")


_VARIABLES = context_variables()
_RUN_ID, _TRACE_ID = _VARIABLES["run_id"], _VARIABLES["trace_id"]


def _bind_flow(flow: str) -> None:
    structlog.contextvars.clear_contextvars()  # threads are reused: what the last task bound must not stay
    structlog.contextvars.bind_contextvars(flow=flow)


def _bind_run(run_id: str, trace_id: str, speaks: PackedSpeaker) -> None:
    speaker.set(speaks)
    _RUN_ID.set(run_id)
    _TRACE_ID.set(trace_id)
