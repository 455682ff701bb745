"""The ledger: what a dispatcher knows of one partition of the state topic; pure, records in, runs out.

It may be fed a record twice (after a rebalance); it must never be fed a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from operator import attrgetter

from engine.cancellations import Cancellation
from engine.checkpoints import BlockPlace, Checkpoint, Ids
from engine.errors import IllegalTransition
from engine.runs import FlowRun
from engine.seen import IdBlock, Seen, Tail
from engine.shelf import Shelf
from engine.states import Epochs, StateChange


class Ledger:
    """Open runs and ids seen of one partition, from the view of the owner whose epoch is ``epoch``.

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
        #: Set when the checkpoint that it goes on from turns out to be void: begin anew, without one.
        self.is_misled = False
        #: Open runs by id, in the order of their SCHEDULED records, but for those that were left on the log for a while.
        self.runs: dict[str, FlowRun] = {}
        #: What was left on the log, of all that lies below ``next_offset``.
        self.shelf = Shelf()
        #: Bytes of the records read so far.
        self.bytes_read = 0
        #: The ids of the window: all of them, those that only memory holds, and where the others lie.
        self.seen = Seen(dedup_window_seconds)
        self.tail = Tail()
        self.blocks: list[BlockPlace] = []
        self._epochs = Epochs()
        #: Offsets of SCHEDULED that were taken in ahead of what lies before them, with their flows.
        self._ahead: dict[int, str] = {}
        #: Epoch and offset of the checkpoint that it goes on from.
        self._restored: tuple[int, int] | None = None
        #: Open runs that a checkpoint holds, and up to where the log says nothing of them that it does not.
        self._held: tuple[frozenset[str], int] = (frozenset(), 0)

    @property
    def is_recovered(self) -> bool:
        """Whether all history has been read, so that open runs may be driven."""
        return self.next_offset > self.epoch

    def restore(self, offset: int, checkpoint: Checkpoint, ids: Ids, runs: Iterable[FlowRun]) -> None:
        """Go on from the checkpoint at ``offset``: what it holds, without its blocks. Call before anything is read."""
        # In the order of the topic again, which is that of runs with one key: a run that was untold stands behind later ones.
        self.runs = {run.run_id: run for run in sorted(runs, key=attrgetter("offset"))}
        self.seen.add_block(ids.tail)
        self.tail.add_block(ids.tail)
        self.shelf.restore(ids.lanes, ids.told, ids.cancelled, ids.passed)
        self.next_offset = checkpoint.from_offset
        self._epochs.begin(checkpoint.epoch)
        self._restored = (checkpoint.epoch, offset)

    def restore_block(self, place: BlockPlace, block: IdBlock) -> None:
        """What a block of the checkpoint holds."""
        self.seen.add_block(block)
        self.blocks.append(place)

    def read_again(self) -> None:
        """Ids of the checkpoint are missing: the log is read from its beginning for them. Its open runs stand as they are."""
        self._held = (frozenset(self.runs), self.next_offset)
        self.next_offset = 0
        # Else the ends that earlier owners wrote would be void, and runs that have ended open.
        self._epochs = Epochs()

    def keep_block(self, offset: int, block: IdBlock, now: float) -> None:
        """The oldest of the tail are on the log, at ``offset``; blocks that have left the window are no longer needed."""
        self.tail.drop_first(block)
        self.blocks = [place for place in self.blocks if not self.seen.is_over(place.last_second, now)]
        self.blocks.append(BlockPlace(offset, block.last_second))

    def begin_epoch(self, offset: int) -> None:
        """An ownership record lies at ``offset``."""
        if not self._advance(offset):
            return
        self._epochs.begin(offset)
        self.is_usurped = self.is_usurped or offset > self.epoch
        if self._restored is not None:
            # Its writer had lost the partition before it wrote, and did not know.
            epoch, checkpoint = self._restored
            self.is_misled = self.is_misled or epoch < offset < checkpoint

    def skip(self, offset: int) -> None:
        """The record at ``offset`` says nothing that the ledger needs."""
        self._advance(offset)

    def read(self, offset: int, change: StateChange) -> FlowRun | None:
        """Take in the state change at ``offset``. Answers the run where it opened one.

        Raises IllegalTransition where the log contradicts itself; the change is then left out.
        """
        if not self._advance(offset) or not self._epochs.admits(change):
            return None
        held, until = self._held
        if offset < until and change.run_id in held:
            return None
        if change.seq == 0 and change.is_flow_run:
            if not self.is_recovered and self.shelf.covers(change.flow, change.key, offset):
                return None  # it stays where an earlier owner has left it
            return self._open(offset, change)
        run = self.runs.get(change.run_id)
        if run is None:
            if not self.is_recovered and self.shelf.lanes and _id(change.run_id) not in self.seen:
                self.shelf.hear(change)
        elif run.apply(change) and run.state.is_end:
            # Only history can end a run here: what this owner writes itself is applied before it is written,
            # and the run stays open until ``close`` says that the end is acknowledged.
            del self.runs[change.run_id]
        return None

    def cancel(self, offset: int, cancellation: Cancellation) -> FlowRun | None:
        """Take in the cancellation at ``offset``. Answers the run where one is open: it is to end."""
        if not self._advance(offset):
            return None
        run_id, reason = cancellation.run_id, cancellation.reason
        run = self.runs.get(run_id)
        if run is not None and not run.state.is_end:
            run.cancelled = reason
            return run
        if run is None and self.shelf.lanes and not self.has_seen(run_id):
            self.shelf.cancelled[run_id] = reason
        return None

    def read_ahead(self, offset: int, scheduled: StateChange) -> FlowRun | None:
        """Open the run of a SCHEDULED that is known to lie at ``offset``, without waiting for what lies before it.

        Nothing that lies there can speak against it: a SCHEDULED is never void, and if somebody has taken the partition
        over meanwhile, whatever we make of the run is. Only order is lost, so not for runs with an ordering key.
        """
        if not self.is_recovered or offset < self.next_offset:
            return None
        self._ahead[offset] = scheduled.flow
        return self._open(offset, scheduled)

    def passes_over(self, offset: int) -> bool:
        """Whether the record at ``offset`` was taken in before it was read; it is passed over then."""
        flow = self._ahead.pop(offset, None)
        if flow is None:
            return False
        if self.shelf.covers(flow, None, offset):  # taken in before its flow was left
            self.shelf.passed.add(offset)
        self._advance(offset)
        return True

    def open_late(self, offset: int, scheduled: StateChange) -> FlowRun | None:
        """Open the run whose SCHEDULED at ``offset`` was left on the log; None where there is none to open.

        It repeats one, or was taken in before its flow was left there, or an earlier owner has led it to its end.
        """
        if offset in self.shelf.passed:
            self.shelf.passed.remove(offset)
            return None
        told = self.shelf.told.pop(scheduled.run_id, None)
        cancelled = self.shelf.cancelled.pop(scheduled.run_id, None)
        run = self._open(offset, scheduled)
        if run is not None:
            run.cancelled = cancelled
        if run is None or told is None:
            return run
        if not told:
            del self.runs[run.run_id]
            return None
        for change in told:
            with suppress(IllegalTransition):  # a change that contradicts the log is left out, as it is where it is read
                run.apply(change)
        return run

    def close(self, run_id: str) -> None:
        """The end of a run is acknowledged by the log: checkpoints say nothing of it any more."""
        self.runs.pop(run_id, None)

    def has_seen(self, run_id: str) -> bool:
        """Whether a run of this id was opened inside the dedup window."""
        return _id(run_id) in self.seen

    def __iter__(self) -> Iterator[FlowRun]:
        return iter(self.runs.values())

    def _open(self, offset: int, change: StateChange) -> FlowRun | None:
        seen = _id(change.run_id)
        now = change.at.timestamp()
        self.seen.forget(now)
        if change.run_id in self.runs or seen in self.seen:  # a run may be open for longer than the window
            return None
        if self.seen.window_seconds > 0:
            second = math.ceil(now)
            self.seen.add(seen, second)
            self.tail.add(seen, second)
        run = self.runs[change.run_id] = FlowRun(change, offset)
        return run

    def _advance(self, offset: int) -> bool:
        """Move on to after ``offset``; False for a record that was read before."""
        if offset < self.next_offset:
            return False
        self.next_offset = offset + 1
        return True


def _id(run_id: str) -> bytes:
    id_ = bytes.fromhex(run_id)
    if len(id_) != 16:
        raise ValueError(f"{run_id} is no run's id: it has {len(id_)} bytes, not 16")
    return id_
