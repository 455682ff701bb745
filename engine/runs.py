"""Runs: one execution of a flow and of its tasks, and how a state change is made and applied; no I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from engine.states import ABSENT, Failure, Origin, Reuse, State, StateChange, follow, utc
from engine.trace_contexts import run_context, start_context, trace_id_of


def digest(*parts: str) -> str:
    """32 hex digits that stand for these parts, and for no others."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = part.encode(errors="surrogatepass")
        made.update(len(text).to_bytes(4, "big"))  # so that no two identities run together into the same bytes
        made.update(text)
    return made.hexdigest()


def is_run_id(text: str) -> bool:
    """Whether ``text`` is the whole id of a run, not a beginning of it."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def run_id_of(app: str, flow: str, source: str, event_id: str) -> str:
    """The id of the run that an event makes of an app's flow: a digest, so that a redelivered event makes the same run.

    The app belongs to it because apps may share a scheduler and a topic, and a run's id names its keys on the cluster.
    """
    return digest(app, flow, source, event_id)


def repeat_id_of(run_id: str, request_id: str) -> str:
    """The id of the run that repeats another: the same request, repeated, makes the same run."""
    return digest(run_id, request_id)


def task_run_id_of(run_id: str, task: str, index: str) -> str:
    """The id of a task run: its run, its task and its place in the order of calls."""
    return f"{run_id}/{task}/{index}"


def logical(index: str) -> str:
    """The index of a call within its flow: what follows ``~`` says in which attempt of the flow it was made anew."""
    return index.partition("~")[0]


def index_of_task_run(task_run_id: str) -> str:
    """The index that a task run has on the cluster."""
    return task_run_id.rpartition("/")[2]


def stored_places(run_id: str, index: str, reuse: tuple[str, int] | None) -> Iterator[tuple[str, str]]:
    """Where the result of a call may be in the result store, as run and index: its own first, then that of the run it may
    reuse, from the latest attempt of that run's flow to the first."""
    yield run_id, index
    if reuse is not None:
        reused_id, attempts = reuse
        first = logical(index)
        for attempt in range(attempts, 0, -1):
            yield reused_id, first if attempt == 1 else f"{first}~{attempt}"


class TaskRun(msgspec.Struct, array_like=True, omit_defaults=True, eq=False):
    """What is known of one task run. Checkpoints hold it as it stands here, by place: a new field goes last."""

    state: State | None = None
    attempt: int = 0
    error: Failure | None = None
    #: The task run that is to blame, where that is another one.
    cause: str | None = None
    #: Its encoded value, where it was told (to an async flow).
    result: bytes | None = None
    length: int | None = None
    spawned_by: str | None = None
    wakes_at: datetime | None = None


class FlowRun:
    """What is known of one flow run: enough to go on with it."""

    __slots__ = (
        "attempt",
        "began_at",
        "called",
        "cancelled",
        "ended",
        "event",
        "flow",
        "handled",
        "key",
        "offset",
        "parameters",
        "record_key",
        "reuse",
        "run_id",
        "running_at",
        "scheduled_at",
        "seq",
        "state",
        "tasks",
        "traceparent",
    )

    def __init__(self, scheduled: StateChange, offset: int) -> None:
        self.run_id = scheduled.run_id
        self.flow = scheduled.flow
        self.key = scheduled.key
        self.record_key = (scheduled.key if scheduled.key is not None else scheduled.run_id).encode()
        self.parameters = bytes(scheduled.parameters or b"{}")
        self.event: Origin | None = scheduled.event
        self.traceparent = scheduled.traceparent
        self.scheduled_at = scheduled.at.timestamp()
        #: Where the SCHEDULED lies.
        self.offset = offset
        #: What it may take of another run's results.
        self.reuse: Reuse | None = scheduled.reuse
        self.state: State = scheduled.state
        self.seq = scheduled.seq
        self.attempt = 0
        #: When its first attempt began, and its current one.
        self.began_at = 0.0
        self.running_at = 0.0
        self.tasks: dict[str, TaskRun] = {}
        #: The ends of its tasks, in order: id and time.
        self.ended: list[tuple[str, float]] = []
        #: The tasks that the current attempt of the flow has called, by index.
        self.called: dict[str, str] = {}
        #: Indices of the children whose failure the task that started them has dealt with.
        self.handled: set[str] = set()
        #: Why it is to end as soon as its owner comes to it, where somebody wants that.
        self.cancelled: str | None = None

    @property
    def context(self) -> str:
        """The context of its span; empty where it is in no trace."""
        return run_context(self.traceparent or "", self.run_id)

    def apply(self, change: StateChange) -> bool:
        """Take in a change read from the state topic; False for one that was taken in before.

        Raises IllegalTransition.
        """
        if change.seq <= self.seq:
            return False
        if change.task_run_id is None:
            self.state = follow(self.run_id, self.state, change.state)
            self.attempt = change.attempt
            if change.state is State.RUNNING:
                self.running_at = change.at.timestamp()
                self.began_at = self.began_at or self.running_at
                self.called.clear()
                self._stay_in_trace(change)
        else:
            self._apply_task(change.task_run_id, change)
        self.seq = change.seq
        return True

    def _stay_in_trace(self, running: StateChange) -> None:
        """The trace of a run is the one in which it has begun, whichever of its producer's repeats was read first."""
        told = running.traceparent
        if told is not None and trace_id_of(told) != trace_id_of(self.traceparent):
            # What scheduled it there is not known here: below the span that says the run has begun, which is.
            self.traceparent = start_context(run_context(told, self.run_id), self.run_id, running.attempt)

    def _apply_task(self, task_run_id: str, change: StateChange) -> None:
        task = self.tasks.get(task_run_id)
        if task is None:
            task = self.tasks[task_run_id] = TaskRun()
        task.state = follow(task_run_id, task.state, change.state)
        task.attempt = change.attempt
        self.handled.update(change.handled)
        if change.state is State.SCHEDULED:
            task.wakes_at = change.wakes_at
            if change.spawned_by is None:
                self.called[logical(index_of_task_run(task_run_id)).partition(".")[0]] = change.task or ""
            else:
                task.spawned_by = change.spawned_by
        elif change.state.is_end:
            self.ended.append((task_run_id, change.at.timestamp()))
            task.error = change.error
            task.cause = change.cause
            task.length = change.length
            if change.result is not ABSENT:
                task.result = bytes(change.result)

    def advance(self, state: State, at: float, epoch: int, **details: Any) -> StateChange:
        """The flow run's next change, applied. Raises IllegalTransition."""
        attempt = self.attempt + 1 if state is State.RUNNING else self.attempt
        return self._advance(state, attempt, at, epoch, **details)

    def advance_task(
        self, task: str, task_run_id: str, state: State, attempt: int, at: float, epoch: int, **details: Any
    ) -> StateChange:
        """A task run's next change, applied. Raises IllegalTransition."""
        return self._advance(state, attempt, at, epoch, task=task, task_run_id=task_run_id, **details)

    def _advance(self, state: State, attempt: int, at: float, epoch: int, **details: Any) -> StateChange:
        change = StateChange(
            run_id=self.run_id,
            flow=self.flow,
            state=state,
            seq=self.seq + 1,
            epoch=epoch,
            attempt=attempt,
            at=utc(at),
            **details,
        )
        self.apply(change)
        return change

    def state_of(self, task_run_id: str) -> State | None:
        """The state of one of its task runs; None before it is scheduled."""
        known = self.tasks.get(task_run_id)
        return None if known is None else known.state

    def has_told_retry(self, task_run_id: str, attempt: int) -> bool:
        """Whether nothing need be told of this failed attempt of a task run: its end was told, or that it waits for another."""
        task = self.tasks.get(task_run_id)
        if task is None or task.state is None:
            return False
        return task.state.is_end or (task.state is State.RETRYING and task.attempt >= attempt)

    def has_ended(self, task_run_id: str) -> bool:
        """Whether one of its task runs has ended."""
        state = self.state_of(task_run_id)
        return state is not None and state.is_end

    def generation(self, task_run_id: str) -> int:
        """The attempt of the flow in which a task run of its own was made."""
        return int(index_of_task_run(task_run_id).partition("~")[2] or 1)

    def actual_index(self, task: str, index: str) -> str:
        """The index on the cluster of a flow's call in this attempt of the flow: what has completed is not made anew."""
        if self.attempt <= 1:
            return index
        for generation in range(self.attempt, 0, -1):
            made = index if generation == 1 else f"{index}~{generation}"
            known = self.tasks.get(task_run_id_of(self.run_id, task, made))
            if known is not None and (generation == self.attempt or known.state is State.COMPLETED):
                return made
        return f"{index}~{self.attempt}"
