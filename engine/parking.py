"""Parking: what an async flow waits for that is not on the cluster, time and events, as task runs of its own; pure."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.events import Position
from engine.planning import SLEEP, WAIT, Feed, PlannedSleep, PlannedWait
from engine.runs import FlowRun, task_run_id_of
from engine.states import Failure, State, StateChange, utc


class _Found(msgspec.Struct):
    """What of a found event says where it lay."""

    position: Position | None = None


class Parking:
    """The sleeps and waits of one run."""

    def __init__(self, run: FlowRun, epoch: int) -> None:
        self._run = run
        self._epoch = epoch
        self._parked: dict[str, PlannedSleep | PlannedWait] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, planned: PlannedSleep | PlannedWait, now: float) -> tuple[list[StateChange], float | None] | None:
        """The changes that tell of it, and when it ends at the latest; None where it has ended before."""
        index, changes = planned.index, []
        task_run_id, name = self._id_of(planned), _name_of(planned)
        if task_run_id not in self._run.tasks:
            until = planned.until if isinstance(planned, PlannedSleep) else None
            if isinstance(planned, PlannedWait) and planned.timeout_seconds is not None:
                until = planned.at + planned.timeout_seconds
            wakes_at = None if until is None else utc(until)
            changes.append(self._tell(name, task_run_id, State.SCHEDULED, now, 0, wakes_at=wakes_at))
        task = self._run.tasks[task_run_id]
        if task.state is not None and task.state.is_end:
            return None  # the flow hears of it from the run's history
        if task.state is State.SCHEDULED:
            changes.append(self._tell(name, task_run_id, State.RUNNING, now, 1))
        self._parked[index] = planned
        return changes, None if task.wakes_at is None else task.wakes_at.timestamp()

    def drop(self, index: str, now: float) -> list[StateChange]:
        """Nobody waits for it any more."""
        planned = self._parked.pop(index, None)
        if planned is None:
            return []
        return [self._tell(_name_of(planned), self._id_of(planned), State.CANCELLED, now, 1, reason="dropped")]

    def wake(
        self, index: str, now: float, event: bytes | None = None, error: Failure | None = None
    ) -> tuple[StateChange, Feed] | None:
        """A sleep is over, an event has come, or waiting for one is over: without it, or with an error."""
        planned = self._parked.pop(index, None)
        if planned is None:
            return None
        details: dict[str, Any]
        if error is not None:
            state, details = State.FAILED, {"error": error}
        elif event is not None:
            state, details = State.COMPLETED, {"result": msgspec.Raw(event)}
        elif isinstance(planned, PlannedWait):
            state, details = State.CANCELLED, {"reason": "timeout"}
        else:
            state, details = State.COMPLETED, {}
        change = self._tell(_name_of(planned), self._id_of(planned), state, now, 1, **details)
        return change, Feed(index, change.at.timestamp(), state, value=event, failure=error)

    def found(self) -> frozenset[Position]:
        """Where the events lay that earlier waits of this run have found."""
        had: set[Position] = set()
        for task_run_id, task in self._run.tasks.items():
            if task.result is not None and task_run_id.split("/")[1] == WAIT:
                position = msgspec.json.decode(task.result, type=_Found).position
                if position is not None:
                    had.add(position)
        return frozenset(had)

    def _id_of(self, planned: PlannedSleep | PlannedWait) -> str:
        return task_run_id_of(self._run.run_id, _name_of(planned), planned.index)

    def _tell(self, task: str, task_run_id: str, state: State, at: float, attempt: int, **details: object) -> StateChange:
        return self._run.advance_task(task, task_run_id, state, attempt, at, self._epoch, **details)


def _name_of(planned: PlannedSleep | PlannedWait) -> str:
    return SLEEP if isinstance(planned, PlannedSleep) else WAIT
