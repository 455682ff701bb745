"""The checkpointer: writes what an owner knows of its partitions onto the state topic, so that the next need not read it all.

A checkpoint is made while runs go on, a little at a time. It may hold each run as of another moment, because all that a run
in it has told stands before its end on the log (the publisher keeps the order), and all that it tells later stands behind
``from_offset``, where its reader goes on; a reader leaves out what a run has told before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

import msgspec

from engine.checkpoints import (
    BLOCK_IDS,
    PART_BYTES,
    Checkpoint,
    Ids,
    inline,
    write_block,
    write_checkpoint,
    write_ids,
    write_part,
    write_run,
)
from engine.errors import RecordTooLarge
from engine.events import Headers, Position
from engine.ledger import Ledger
from engine.logs import logger
from engine.publisher import Publisher
from engine.runs import FlowRun
from engine.seen import IdBlock
from engine.settings import Settings
from engine.states import utc

#: So many records are read in about a tenth of a second: it is not worth a checkpoint to spare fewer.
_RECORDS = 5_000
#: And so many times its own size must have been written since the last one: what checkpoints add is a few per cent.
_TIMES_ITS_SIZE = 20
#: Where less has come in: after so long for each beginning 64 KiB of its size, so that a quiet engine writes little, too.
_QUIET_SECONDS = 30.0
_QUIET_BYTES = 64 * 1024
#: A last one, before a partition is handed over, spares the next owner so many records at least.
_HANDOVER_RECORDS = 500
#: Encoding holds the event loop for about so long at a time.
_SLICE_SECONDS = 0.002
#: Parts of a body that may wait for their write.
_PARTS_AT_ONCE = 8
_LEAST_PART_BYTES = 1_024


class _Last(msgspec.Struct):
    """What the latest checkpoint of a partition was."""

    from_offset: int
    bytes_read: int
    size: int
    begun_at: float
    #: Of its closing record; where it was acknowledged, this may be committed.
    offset: int = -1


class Checkpointer:
    """The checkpoints of one engine."""

    def __init__(self, settings: Settings, publisher: Publisher) -> None:
        self._settings = settings
        self._publisher = publisher
        # A block of ids is base64 in JSON, a part is as it is.
        self._part_bytes = max(_LEAST_PART_BYTES, min(PART_BYTES, settings.max_record_bytes // 2))
        self._block_ids = min(BLOCK_IDS, self._part_bytes // 32)
        #: After the topic has refused one of the smallest: none is tried before that time.
        self._not_before = 0.0
        self._last: dict[int, _Last] = {}
        self._making: dict[int, asyncio.Task[None]] = {}
        #: Ledgers, by partition, of which a block of ids is under way.
        self._blocks: dict[int, Ledger] = {}
        self._failure: BaseException | None = None

    def restored(self, ledger: Ledger, checkpoint: Checkpoint, offset: int) -> None:
        """The ledger goes on from a checkpoint, at ``offset``."""
        # Its age counts, not ours: engines that come and go must not keep one until Kafka deletes it.
        begun_at = time.monotonic() - max(0.0, time.time() - checkpoint.at.timestamp())
        last = _Last(checkpoint.from_offset, ledger.bytes_read, checkpoint.size, begun_at, offset)
        self._last[ledger.partition] = last

    def committable(self, partition: int) -> int | None:
        """The offset of the latest checkpoint that is on the log."""
        last = self._last.get(partition)
        return None if last is None or last.offset < 0 else last.offset

    def consider(self, ledgers: Collection[Ledger]) -> None:
        """Begin what is due. Called now and then. Raises what went wrong with one that was begun."""
        if self._failure is not None:
            raise self._failure
        now = time.monotonic()
        if now < self._not_before:
            return
        for ledger in ledgers:
            if ledger.is_recovered and not ledger.is_usurped:
                self._write_block(ledger)
                is_free = ledger.partition not in self._making and len(ledger.tail) < 2 * self._block_ids
                if is_free and self._is_due(ledger, now):
                    self._begin(ledger, now)

    async def hand_over(self, ledgers: Collection[Ledger], timeout_seconds: float) -> None:
        """Make a last checkpoint of partitions that others may get, where it spares them something; give up in time."""
        now = time.monotonic()
        for ledger in ledgers:
            if ledger.is_recovered and not ledger.is_usurped and ledger.partition not in self._making:
                last = self._last.get(ledger.partition)
                if last is None or ledger.next_offset - last.from_offset >= _HANDOVER_RECORDS:
                    self._begin(ledger, now)
        making = [self._making[ledger.partition] for ledger in ledgers if ledger.partition in self._making]
        if making:
            await asyncio.wait(making, timeout=timeout_seconds)

    def drop(self, partition: int) -> None:
        """Somebody else owns the partition."""
        self._last.pop(partition, None)
        self._blocks.pop(partition, None)
        if (making := self._making.pop(partition, None)) is not None:
            making.cancel()

    async def close(self) -> None:
        """Make nothing more."""
        making = list(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)

    def _is_due(self, ledger: Ledger, now: float) -> bool:
        last = self._last.get(ledger.partition)
        if last is None:
            return ledger.next_offset > ledger.epoch + 1 or bool(ledger.runs) or len(ledger.seen) > 0
        if now - last.begun_at > self._settings.state_retention_seconds / 4:
            return True  # Kafka would delete the last one some day
        records = ledger.next_offset - last.from_offset
        if records >= _RECORDS and ledger.bytes_read - last.bytes_read >= _TIMES_ITS_SIZE * last.size:
            return True
        has_news = ledger.next_offset > last.offset + 1  # its own records are none
        return has_news and now - last.begun_at > _QUIET_SECONDS * (1 + last.size // _QUIET_BYTES)

    def _begin(self, ledger: Ledger, now: float) -> None:
        making = asyncio.get_running_loop().create_task(self._make(ledger, now), name="engine-checkpoint")
        self._making[ledger.partition] = making

        def made(task: asyncio.Task[None]) -> None:
            if self._making.get(ledger.partition) is task:
                del self._making[ledger.partition]
            # Of what the topic refused the next one is made in smaller parts.
            if not task.cancelled() and not isinstance(task.exception(), RecordTooLarge | None):
                self._failure = task.exception()

        making.add_done_callback(made)

    async def _make(self, ledger: Ledger, now: float) -> None:
        # All at one moment: a run opened from now on is neither among the ids nor among the runs, and is read again,
        # be it behind ``from_offset`` or where a lane goes on.
        last = _Last(ledger.next_offset, ledger.bytes_read, 0, now)
        waiting = list(ledger)
        body = _Body(self, ledger)
        ids = ledger.tail.first(len(ledger.tail))
        shelf = ledger.shelf
        lanes, passed = tuple(shelf.lanes.items()), tuple(shelf.passed)
        await body.add(write_ids(Ids(ids, tuple(ledger.blocks), lanes, shelf.told, shelf.cancelled, passed)))
        held_at = time.monotonic()
        while waiting:
            later: list[FlowRun] = []
            for run in waiting:
                if run in self._publisher.untold:
                    later.append(run)  # it is ahead of what it has told
                    continue
                if run.state.is_end:
                    continue  # its end is on the log, or on its way there, before us
                await body.add(write_run(run))
                if time.monotonic() - held_at > _SLICE_SECONDS:
                    await asyncio.sleep(0)
                    held_at = time.monotonic()
            waiting = later
            if waiting:
                await self._publisher.untold.wait(waiting)
        last.size = body.size
        checkpoint = await body.end(last.from_offset)
        last.offset = await self._append(ledger.partition, write_checkpoint(self._settings.app, checkpoint))
        self._last[ledger.partition] = last

    def _write_block(self, ledger: Ledger) -> None:
        """Where enough ids have come together, they get a record of their own."""
        partition = ledger.partition
        if len(ledger.tail) < self._block_ids or partition in self._blocks:
            return
        self._blocks[partition] = ledger
        block = ledger.tail.first(self._block_ids)
        value, headers = write_block(self._settings.app, partition, ledger.epoch, utc(time.time()), block)

        def refused(error: RecordTooLarge) -> None:
            self._blocks.pop(partition, None)
            self._shrink(error)

        self._publisher.append(value, headers, partition, lambda position: self._keep(ledger, position.offset, block), refused)

    def _keep(self, ledger: Ledger, offset: int, block: IdBlock) -> None:
        # A ledger that was dropped must not free the way for the next one of its partition, which may have a block under way.
        if self._blocks.get(ledger.partition) is ledger:
            del self._blocks[ledger.partition]
        ledger.keep_block(offset, block, time.time())

    def _append(self, partition: int, record: tuple[bytes, Headers]) -> asyncio.Future[int]:
        """Queue a record behind all that is queued; the answer is its offset, when it is on the log."""
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_written(position: Position) -> None:
            if not written.done():  # else nobody waits for it any more
                written.set_result(position.offset)

        def on_refused(error: RecordTooLarge) -> None:
            self._shrink(error)
            if not written.done():
                written.set_exception(error)
                written.exception()  # whoever waits for an earlier part has given up by then

        self._publisher.append(*record, partition, on_written, on_refused)
        return written

    def _shrink(self, error: RecordTooLarge) -> None:
        """The topic takes less than our settings say: the next records are smaller. Meanwhile the last checkpoint counts."""
        part_bytes = max(_LEAST_PART_BYTES, error.limit // 2)
        if part_bytes < self._part_bytes:
            logger.warning("checkpoints are written in smaller parts", part_bytes=part_bytes, error=str(error))
            self._part_bytes, self._block_ids = part_bytes, min(self._block_ids, part_bytes // 32)
            return
        if time.monotonic() > self._not_before:
            logger.error("a checkpoint does not fit the state topic; a new owner will read more", error=str(error))
        self._not_before = time.monotonic() + _QUIET_SECONDS

    def write_part(self, ledger: Ledger, part: bytes) -> asyncio.Future[int]:
        """A part of a body; the answer is its offset."""
        record = write_part(self._settings.app, ledger.partition, ledger.epoch, utc(time.time()), part)
        return self._append(ledger.partition, record)

    @property
    def part_bytes(self) -> int:
        """How large a part is."""
        return self._part_bytes


class _Body:
    """A body that is being written, part by part."""

    def __init__(self, checkpointer: Checkpointer, ledger: Ledger) -> None:
        self._checkpointer = checkpointer
        self._ledger = ledger
        self._waiting = bytearray()
        self._parts: list[asyncio.Future[int]] = []
        self.size = 0

    async def add(self, line: bytes) -> None:
        """A line. What fills a part is queued, and few parts at a time: memory holds little of a long body."""
        self._waiting += line
        self.size += len(line)
        size = self._checkpointer.part_bytes
        while len(self._waiting) >= size:
            self._write(size)
            if len(self._parts) > _PARTS_AT_ONCE:
                await self._parts[-_PARTS_AT_ONCE - 1]

    async def end(self, from_offset: int) -> Checkpoint:
        """The closing record."""
        body = b""
        if not self._parts and inline(len(self._waiting), self._checkpointer.part_bytes):
            body = bytes(self._waiting)
        elif self._waiting:
            self._write(len(self._waiting))
        parts = tuple([await part for part in self._parts])
        ledger = self._ledger
        return Checkpoint(ledger.partition, ledger.epoch, utc(time.time()), from_offset, self.size, parts, body)

    def _write(self, size: int) -> None:
        part = bytes(memoryview(self._waiting)[:size])
        del self._waiting[:size]
        self._parts.append(self._checkpointer.write_part(self._ledger, part))
