"""Runs: one execution of a flow and of its tasks, and how a state change is made and applied; no I/O."""

from __future__ import annotations

import hashlib
from typing import Any

from engine.states import Failure, Origin, State, StateChange, follow, utc


def run_id_of(app: str, flow: str, source: str, event_id: str) -> str:
    """The id of the run that an event makes of an app's flow: a digest, so that a redelivered event makes the same run.

    The app belongs to it because apps may share a scheduler and a topic, and a run's id names its keys on the cluster.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (app, flow, source, event_id):
        text = part.encode()
        digest.update(len(text).to_bytes(4, "big"))  # so that no two identities run together into the same bytes
        digest.update(text)
    return digest.hexdigest()


def task_run_id_of(run_id: str, task: str, index: int) -> str:
    """The id of a task run: its run, its task and its place in the order of calls."""
    return f"{run_id}/{task}/{index}"


class TaskRun:
    """What is known of one task run."""

    __slots__ = ("attempt", "state")

    def __init__(self) -> None:
        self.state: State | None = None
        self.attempt = 0


class FlowRun:
    """What is known of one flow run: enough to go on with it."""

    __slots__ = (
        "attempt",
        "event",
        "failure",
        "flow",
        "key",
        "offset",
        "parameters",
        "record_key",
        "run_id",
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
        #: Where the SCHEDULED lies: the partition may be committed no further while the run is open.
        self.offset = offset
        self.state: State = scheduled.state
        self.seq = scheduled.seq
        self.attempt = 0
        #: The first task that failed or crashed, which decides the end of the run; None while there is none.
        self.failure: tuple[State, Failure] | None = None
        self.tasks: dict[str, TaskRun] = {}

    def apply(self, change: StateChange) -> bool:
        """Take in a change read from the state topic; False for one that was taken in before.

        Raises IllegalTransition.
        """
        if change.seq <= self.seq:
            return False
        if change.task_run_id is None:
            self.state = follow(self.run_id, self.state, change.state)
            self.attempt = change.attempt
        else:
            task = self.tasks.setdefault(change.task_run_id, TaskRun())
            task.state = follow(change.task_run_id, task.state, change.state)
            task.attempt = change.attempt
            if change.error is not None and change.state.is_end and self.failure is None:
                self.failure = (change.state, change.error)
        self.seq = change.seq
        return True

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
