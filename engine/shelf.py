"""The shelf: runs of one partition that the log keeps for us, because too many of their flow or key wait; pure.

A lane is all runs of a flow, or those of one of its ordering keys. What is on a lane has not been opened: of it only the offset
from where to read the log again is kept, so a lane costs the same however many runs are on it. Every SCHEDULED of a lane from
that offset on belongs to it, so the order within a key stays what it is on the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.states import StateChange

#: Flow and ordering key; None for all of the flow.
Lane = tuple[str, str | None]


class Shelf:
    """The lanes of one partition."""

    __slots__ = ("cancelled", "lanes", "passed", "told")

    def __init__(self) -> None:
        #: From where to read each one again.
        self.lanes: dict[Lane, int] = {}
        #: Offsets on a lane of what was taken in before it was put there.
        self.passed: set[int] = set()
        #: What an earlier owner told of runs that it had opened from a lane, after the checkpoint that has the lanes: by run,
        #: and nothing of one that has ended. We meet their SCHEDULED only when we read the lane.
        self.told: dict[str, list[StateChange]] = {}
        #: Runs that are to end as soon as they are opened, and why.
        self.cancelled: dict[str, str] = {}

    def restore(
        self,
        lanes: Mapping[Lane, int],
        told: Mapping[str, list[StateChange]],
        cancelled: Mapping[str, str],
        passed: Iterable[int] = (),
    ) -> None:
        """What a checkpoint holds."""
        self.lanes = dict(lanes)
        self.told = {run_id: list(changes) for run_id, changes in told.items()}
        self.cancelled = dict(cancelled)
        self.passed = set(passed)

    def covers(self, flow: str, key: str | None, offset: int) -> bool:
        """Whether a run whose SCHEDULED lies at ``offset`` has to wait on the log, among those that do."""
        lanes = self.lanes
        return bool(lanes) and (lanes.get((flow, None), offset + 1) <= offset or lanes.get((flow, key), offset + 1) <= offset)

    def put(self, lane: Lane, offset: int) -> None:
        """From ``offset`` on, leave what belongs to the lane on the log."""
        self.lanes.setdefault(lane, offset)

    def belongs(self, lane: Lane, flow: str, key: str | None) -> bool:
        """Whether a run met while reading a lane again is to be opened there: a key's own lane goes before its flow's."""
        if lane[1] is not None:
            return lane == (flow, key)
        return lane[0] == flow and (key is None or (flow, key) not in self.lanes)

    def bound(self, lane: Lane, next_offset: int) -> int:
        """Up to where a lane has to be read. Where its flow has a lane, that one has what follows."""
        if lane[1] is None:
            return next_offset
        return self.lanes.get((lane[0], None), next_offset)

    def move(self, lane: Lane, offset: int) -> None:
        """All that belongs to the lane below ``offset`` was opened, or put on a lane of its own."""
        self.lanes[lane] = max(self.lanes[lane], offset)

    def close(self, lane: Lane) -> None:
        """The lane was read up to its bound: what comes now is opened as it comes."""
        self.lanes.pop(lane, None)
        if not self.lanes:
            self.passed.clear()
            self.told.clear()
            self.cancelled.clear()

    def hear(self, change: StateChange) -> None:
        """History says this of a run that nobody has opened: it waits on a lane."""
        if change.is_flow_run and change.state.is_end:
            self.told[change.run_id] = []
        else:
            self.told.setdefault(change.run_id, []).append(change)
