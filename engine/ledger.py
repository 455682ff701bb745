"""The ledger: what a dispatcher knows of one partition of the state topic; pure, records in, runs and safe offset out.

It may be fed a record twice (after a rebalance); it must never be fed a gap.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.runs import FlowRun
from engine.states import Epochs, StateChange


class Ledger:
    """Open runs, ids seen and safe offset of one partition, from the view of the owner whose epoch is ``epoch``.

    The owner writes an ownership record and makes a ledger with its offset; records below it are history to recover
    from, records above it are news.
    """

    def __init__(self, partition: int, epoch: int, dedup_window_seconds: float) -> None:
        self.partition = partition
        self.epoch = epoch
        #: The offset of the record that is expected next.
        self.next_offset = 0
        #: Set when somebody else took the partition over after us: nothing we know of it counts any more.
        self.is_usurped = False
        #: Open runs by id, in the order of their SCHEDULED records.
        self.runs: dict[str, FlowRun] = {}
        self._epochs = Epochs()
        self._window_seconds = dedup_window_seconds
        self._seen: dict[bytes, float] = {}
        #: Offsets of SCHEDULED that were taken in ahead of what lies before them.
        self._ahead: set[int] = set()

    @property
    def is_recovered(self) -> bool:
        """Whether all history has been read, so that open runs may be driven."""
        return self.next_offset > self.epoch

    @property
    def safe_offset(self) -> int:
        """What may be committed: everything below it belongs to runs whose end is safely on the topic."""
        return min((run.offset for run in self.runs.values() if run.offset < self.next_offset), default=self.next_offset)

    def begin_epoch(self, offset: int) -> None:
        """An ownership record lies at ``offset``."""
        if not self._advance(offset):
            return
        self._epochs.begin(offset)
        self.is_usurped = self.is_usurped or offset > self.epoch

    def skip(self, offset: int) -> None:
        """The record at ``offset`` says nothing that the ledger needs."""
        self._advance(offset)

    def read(self, offset: int, change: StateChange) -> FlowRun | None:
        """Take in the state change at ``offset``. Answers the run where it opened one.

        Raises IllegalTransition where the log contradicts itself; the change is then left out.
        """
        if not self._advance(offset) or not self._epochs.admits(change):
            return None
        if change.seq == 0 and change.is_flow_run:
            return self._open(offset, change)
        run = self.runs.get(change.run_id)
        if run is not None and run.apply(change) and run.state.is_end:
            # Only history can end a run here: what this owner writes itself is applied before it is written,
            # and the run stays open until ``close`` says that the end is acknowledged.
            del self.runs[change.run_id]
        return None

    def read_ahead(self, offset: int, scheduled: StateChange) -> FlowRun | None:
        """Open the run of a SCHEDULED that is known to lie at ``offset``, without waiting for what lies before it.

        Nothing that lies there can speak against it: a SCHEDULED is never void, and if somebody has taken the partition
        over meanwhile, whatever we make of the run is. Only order is lost, so not for runs with an ordering key.
        """
        if not self.is_recovered or offset < self.next_offset:
            return None
        self._ahead.add(offset)
        return self._open(offset, scheduled)

    def passes_over(self, offset: int) -> bool:
        """Whether the record at ``offset`` was taken in before it was read; it is passed over then."""
        if offset not in self._ahead:
            return False
        self._ahead.remove(offset)
        self._advance(offset)
        return True

    def close(self, run_id: str) -> None:
        """The end of a run is acknowledged by the log: it no longer holds the safe offset back."""
        self.runs.pop(run_id, None)

    def has_seen(self, run_id: str) -> bool:
        """Whether a run of this id was opened inside the dedup window."""
        return bytes.fromhex(run_id) in self._seen

    def __iter__(self) -> Iterator[FlowRun]:
        return iter(self.runs.values())

    def _open(self, offset: int, change: StateChange) -> FlowRun | None:
        seen = bytes.fromhex(change.run_id)
        now = change.at.timestamp()
        self._forget(now - self._window_seconds)
        if seen in self._seen or change.run_id in self.runs:  # a run may be open for longer than the window
            return None
        self._seen[seen] = now
        run = self.runs[change.run_id] = FlowRun(change, offset)
        return run

    def _forget(self, before: float) -> None:
        """Drop the ids that have left the window. The log's order is nearly that of time: a late one waits its turn."""
        while self._seen:
            oldest = next(iter(self._seen))
            if self._seen[oldest] >= before:
                return
            del self._seen[oldest]

    def _advance(self, offset: int) -> bool:
        """Move on to after ``offset``; False for a record that was read before."""
        if offset < self.next_offset:
            return False
        self.next_offset = offset + 1
        return True
