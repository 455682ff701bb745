"""Repeats: what the state topic says of a run and of its repeats, and the SCHEDULED of the next one."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from engine.broker import Broker
from engine.command_errors import NotFound, NotRepeatable
from engine.errors import EventError
from engine.runs import repeat_id_of
from engine.settings import Settings
from engine.snapshots import snapshot
from engine.states import Ownership, State, StateChange, is_ownership, read, type_of, utc
from engine.subscriber import Deduplicator


class Kind(StrEnum):
    """How a run is repeated; both are new runs, from the beginning."""

    RETRY = "retry"  #: of what did not complete
    RERUN = "rerun"  #: of whatever has ended


class History(msgspec.Struct):
    """What is known of a run and of those that repeat it."""

    scheduled: StateChange | None = None
    #: Of the state topic, where it lies.
    partition: int = 0
    end: State | None = None
    #: Repeats by run id, and whether each has ended.
    repeats: dict[str, bool] = {}

    def take(self, run_id: str, change: StateChange, partition: int = 0) -> None:
        """Take in a change, in the order of its partition."""
        if not change.is_flow_run:
            return
        if change.run_id == run_id:
            if change.seq == 0:
                self.scheduled, self.partition = change, partition
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


async def history_of(settings: Settings, broker: Broker, run_id: str) -> History:
    """Reads the whole state topic. Raises KafkaUnavailable or TopicError."""
    history = History()
    known: dict[int, Deduplicator] = {}
    async for record in snapshot(broker, settings.states_topic):
        counted = known.setdefault(record.partition, Deduplicator())
        if is_ownership(type_of(record.headers)):
            counted.begin_epoch(record.offset)
            continue
        try:
            change = read(record.value, record.headers)
        except EventError:
            continue  # The dispatcher that owns the partition says so; it is no change of any run.
        if change is not None and not isinstance(change, Ownership) and counted.is_new(change):
            history.take(run_id, change, record.partition)
    return history


def repeat(run_id: str, history: History, kind: Kind, request_id: str | None, now: float) -> StateChange:
    """The SCHEDULED of a run that repeats another. The same request makes the same run, however often it is sent.

    Without ``request_id`` the request is the n-th repeat of its kind, where one that is still open counts as this one.
    Raises NotFound or NotRepeatable.
    """
    scheduled, state = history.scheduled, history.end
    if scheduled is None:
        raise NotFound("run", run_id, "Its changes may have expired, or it belongs to another app (--app).")
    if state is None:
        raise NotRepeatable(run_id, "still open", f"Wait for its end: `engine runs watch {run_id}`.")
    if kind is Kind.RETRY and state is State.COMPLETED:
        raise NotRepeatable(run_id, "COMPLETED", f"There is nothing to retry; `engine runs rerun {run_id}` runs it again.")
    request = f"request {request_id}" if request_id is not None else f"number {history.next_number}"
    return msgspec.structs.replace(
        scheduled, run_id=repeat_id_of(run_id, request), at=utc(now), repeats=run_id, traceparent=None
    )
