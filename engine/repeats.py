"""Repeats: what is known of a run and of its repeats, and the SCHEDULED of the next one; pure."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from engine.command_errors import NotFound, NotRepeatable
from engine.reruns import Calls, Plan
from engine.runs import repeat_id_of
from engine.states import State, StateChange, utc


class Kind(StrEnum):
    """How a run is repeated; both are new runs, from the beginning."""

    RETRY = "retry"  #: of what did not complete
    RERUN = "rerun"  #: of whatever has ended


class Story(msgspec.Struct):
    """What is known of a run and of those that repeat it."""

    scheduled: StateChange | None = None
    #: Of the state topic, where it lies; None where nothing is known of the run.
    partition: int | None = None
    #: The ordering key.
    key: str | None = None
    end: State | None = None
    #: Repeats by run id, and whether each has ended.
    repeats: dict[str, bool] = msgspec.field(default_factory=dict)
    calls: Calls = msgspec.field(default_factory=Calls)

    def take(self, run_id: str, change: StateChange, partition: int = 0) -> None:
        """Take in a change, in the order of its partition."""
        if change.run_id == run_id:
            self.calls.take(change)
        if not change.is_flow_run:
            return
        if change.run_id == run_id:
            if change.seq == 0:
                self.scheduled, self.partition, self.key = change, partition, change.key
            if change.state.is_end:
                self.end = change.state
        elif change.repeats == run_id:
            self.repeats.setdefault(change.run_id, False)
        if change.run_id in self.repeats and change.state.is_end:
            self.repeats[change.run_id] = True

    @property
    def next_number(self) -> int:
        """Which repeat the next one is: while one is open, that one."""
        return 1 + sum(self.repeats.values())


def repeat(
    run_id: str, story: Story, kind: Kind, request_id: str | None, now: float, *, from_task: str = "", plan: Plan | None = None
) -> StateChange:
    """The SCHEDULED of a run that repeats another. The same request makes the same run, however often it is sent.

    Without ``request_id`` the request is the n-th repeat of its kind, where one that is still open counts as this one. A
    ``plan`` is of a rerun from a task. Raises NotFound or NotRepeatable.
    """
    scheduled = check_repeatable(run_id, story, kind)
    request = f"request {request_id}" if request_id is not None else f"number {story.next_number}"
    if from_task and request_id is None:
        request += f" from {from_task}"
    return msgspec.structs.replace(
        scheduled,
        run_id=repeat_id_of(run_id, request),
        at=utc(now),
        repeats=run_id,
        reuse=None if plan is None else plan.reuse,
        traceparent=None,
    )


def check_repeatable(run_id: str, story: Story, kind: Kind) -> StateChange:
    """The SCHEDULED of a run that may be repeated. Raises NotFound or NotRepeatable."""
    scheduled, state = story.scheduled, story.end
    if story.partition is not None and scheduled is None:
        raise NotRepeatable(run_id, "there, but its SCHEDULED has expired", "Send its event again, or `engine flows run`.")
    if scheduled is None:
        raise NotFound("run", run_id, "Its changes may have expired, or it belongs to another app (--app).")
    if state is None:
        raise NotRepeatable(run_id, "still open", f"Wait for its end: `engine runs watch {run_id}`.")
    if kind is Kind.RETRY and state is State.COMPLETED:
        raise NotRepeatable(run_id, "COMPLETED", f"There is nothing to retry; `engine runs rerun {run_id}` runs it again.")
    return scheduled
