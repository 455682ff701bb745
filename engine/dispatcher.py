"""The dispatcher: owns partitions of the state topic, and hands the runs that are open there to the driver.

The owner of a partition is the only writer of state changes for its runs. The dispatcher takes in nothing but the state topic.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from engine.broker import Broker, Outgoing, Partition, Record, Sink
from engine.cancellations import is_cancellation, read_cancellation
from engine.checkpointer import Checkpointer
from engine.driver import Driver
from engine.errors import EngineError, KafkaUnavailable
from engine.events import Position
from engine.ledger import Ledger
from engine.leftovers import Leftovers
from engine.logs import logger
from engine.pressure import Pressure
from engine.publisher import Publisher
from engine.restorer import Restorer
from engine.runs import FlowRun
from engine.settings import Settings
from engine.shelf_reader import ShelfReader
from engine.states import Ownership, StateChange, is_ownership, is_scheduled, read, type_of, utc, write_ownership

T = TypeVar("T")

_POLL_SECONDS = 0.2
#: Between two tries to take a partition over while Kafka is away.
_BACKOFF_SECONDS = 0.5
#: While reading pauses: nothing comes, and what waits may be worked off sooner than that.
_PAUSED_SECONDS = 0.02
_COMMIT_INTERVAL_SECONDS = 1.0
#: While nothing is read but what this engine knows already, it is read in larger batches, and later than what waits for it.
_LINGER_SECONDS = 0.01
#: A group that rebalances waits so long at most for our checkpoints: those that are on the log already are good, too.
_REVOKED_SECONDS = 2.0
#: An engine that stops waits so long at most for a moment in which all is told.
_DRAIN_SECONDS = 1.0


class Dispatcher:
    """A member of the group ``<app>.dispatch``."""

    def __init__(
        self, settings: Settings, broker: Broker, sink: Sink, driver: Driver, publisher: Publisher, leftovers: Leftovers
    ) -> None:
        self._settings = settings
        self._leftovers = leftovers
        self._sink = sink
        self._driver = driver
        self._publisher = publisher
        self._topic = settings.states_topic
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{os.urandom(4).hex()}"
        self._source = broker.source(
            [self._topic], group=settings.dispatch_group, on_assigned=self._assigned, on_revoked=self._revoked
        )
        self._restorer = Restorer(broker, self._topic, settings.dedup_window_seconds)
        self._checkpointer = Checkpointer(settings, publisher)
        self._ledgers: dict[int, Ledger] = {}
        #: After a rebalance, where the log of a partition that stayed with us ended. Before we have read so far, we do not
        #: know whether somebody else owned it in between.
        self._doubtful: dict[int, int] = {}
        self._paused = False
        self._pressure = Pressure(driver.waitlist, settings.max_open_runs)
        self._shelves = ShelfReader(broker, self._topic, self._ledgers, driver.waitlist, self._pressure, driver.cancel)
        self._committed: dict[Partition, int] = {}
        self._committed_at = 0.0
        self._is_stopping = False

    async def start(self) -> None:
        """Connect to the cluster, join the group. Raises DaskUnavailable, KafkaUnavailable or TopicError."""
        await self._driver.start(self._ledgers)
        await self._source.start()

    async def run(self) -> None:
        """Drive runs until ``stop``."""
        async with asyncio.TaskGroup() as group:
            driving = group.create_task(self._driver.run(), name="engine-drive")
            shelving = group.create_task(self._shelves.run(), name="engine-shelves")
            while not self._is_stopping:
                timeout_seconds = _PAUSED_SECONDS if self._paused else _POLL_SECONDS
                records = await self._source.poll(timeout_seconds=timeout_seconds, max_records=self._settings.poll_records)
                try:
                    has_news = await self._take_all(records)
                except KafkaUnavailable:
                    if not self._is_stopping:
                        raise
                    break  # what was being taken over is the next owner's
                self._driver.nudge()
                self._regulate()
                self._checkpointer.consider(self._undoubted())
                await self._commit()
                if records and not has_news:
                    await asyncio.sleep(_LINGER_SECONDS)
            driving.cancel()
            shelving.cancel()

    def stop(self) -> None:
        """Make ``run`` return."""
        self._is_stopping = True

    def offer(self, scheduled: Sequence[tuple[Position, StateChange]]) -> None:
        """Runs that the intake of this process has put on the topic: those of our partitions begin without a reading back.

        What is not taken here comes by as a record like any other.
        """
        if self._paused or self._is_stopping:
            return
        for position, change in scheduled:
            ledger = self._ledgers.get(position.partition)
            # The order of runs with one key is that of the topic, where others write, too.
            if ledger is None or change.key is not None:
                continue
            # Of a flow that waits on the log, none goes before those that came earlier.
            if self._pressure.leaves(ledger, change.flow, None, position.offset):
                continue
            if (run := ledger.read_ahead(position.offset, change)) is not None:
                self._driver.waitlist.add(ledger, run)
        self._driver.nudge()
        self._regulate()  # the intake may come again before the topic is read again

    async def close(self) -> None:
        """Leave: tell what is known, checkpoint, commit, leave the group. What runs goes on for the next owner.

        Call after ``run`` has returned, while the publisher still writes.
        """
        try:
            async with asyncio.timeout(self._settings.grace_seconds):
                await self._hand_over()
        except TimeoutError:
            # Kafka is away: what was not told is told by the next owner, who finds the runs open.
            logger.warning("stopped without telling all", waiting_changes=self._publisher.backlog)
        await self._checkpointer.close()
        await self._source.close()
        await self._shelves.close()
        await self._leftovers.close()
        await self._driver.close()

    async def _hand_over(self) -> None:
        # What runs on the cluster goes on to report: then there is no end of it, and the next owner hears what we do not tell.
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._publisher.drain()
        await self._checkpointer.hand_over(self._undoubted(), self._settings.grace_seconds / 2)
        self._committed_at = 0.0
        await self._commit()

    async def _assigned(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Take over what is new; go on where we were with what stayed. Answers where to read from."""
        numbers = {number for _, number in partitions}
        for number in set(self._ledgers) - numbers:
            self._drop(number)
        if new := sorted(numbers - set(self._ledgers)):
            logger.info("taking over partitions of the state topic", partitions=new)
        if kept := sorted((self._topic, number) for number in numbers & set(self._ledgers)):
            self._doubtful.update({number: sys.maxsize for _, number in kept})  # until we know more
            ends = await self._patiently(lambda: self._source.end_offsets(kept))
            self._doubtful.update({number: end for (_, number), end in ends.items()})
        starts: dict[Partition, int] = {}
        for number in numbers:
            ledger = self._ledgers.get(number) or await self._take_over_patiently(number)
            starts[self._topic, number] = ledger.next_offset
        return starts

    async def _revoked(self, partitions: Sequence[Partition]) -> None:
        """Checkpoint and commit before the others read. What we drive stays ours until we hear of another owner."""
        await self._checkpointer.hand_over(self._undoubted(), _REVOKED_SECONDS)
        self._committed_at = 0.0
        await self._commit()

    def _undoubted(self) -> list[Ledger]:
        """The ledgers of the partitions that are ours beyond doubt."""
        for number, end in list(self._doubtful.items()):
            ledger = self._ledgers.get(number)
            if ledger is None or ledger.next_offset >= end:
                del self._doubtful[number]
        return [ledger for number, ledger in self._ledgers.items() if number not in self._doubtful]

    async def _take_over_patiently(self, number: int, *, from_checkpoint: bool = True) -> Ledger:
        """Begun anew it writes another ownership record, which is as good as the first."""
        return await self._patiently(lambda: self._take_over(number, from_checkpoint=from_checkpoint))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again until Kafka answers: it may go in the middle of a takeover, too. Raises KafkaUnavailable when stopping."""
        has_told = False
        while True:
            try:
                return await ask()
            except KafkaUnavailable as error:
                # The partition stays paused, and nothing of it is lost; without Kafka nobody else can take it over either.
                if self._is_stopping:
                    raise
                if not has_told:
                    logger.warning("a takeover waits for Kafka", error=str(error))
                has_told = True
                await asyncio.sleep(_BACKOFF_SECONDS)

    async def _take_over(self, number: int, *, from_checkpoint: bool = True) -> Ledger:
        ownership = Ownership(number, self._owner, utc(time.time()))
        value, headers = write_ownership(self._settings.app, ownership)
        # First on the log: from this record's offset on, nothing that an earlier owner still writes counts.
        [position] = await self._sink.write([Outgoing(self._topic, None, value, headers, number)])
        # Then to the cluster: nothing that an earlier owner still submits runs.
        self._driver.own(number, position.offset)
        now = time.time()
        committed = await self._source.committed((self._topic, number)) if from_checkpoint else None
        ledger, checkpoint = await self._restorer.restore(number, position.offset, committed, now)
        if checkpoint is not None and committed is not None:
            self._checkpointer.restored(ledger, checkpoint, committed)
            self._committed[self._topic, number] = committed
        self._ledgers[number] = ledger
        logger.debug(
            "partition taken over",
            partition=number,
            epoch=position.offset,
            reads_from=ledger.next_offset,
            open_runs=len(ledger.runs),
            seconds=round(time.time() - now, 3),
        )
        return ledger

    def _drop(self, number: int) -> None:
        """Somebody else owns the partition: forget its runs, and leave what they have on the cluster alone."""
        self._ledgers.pop(number)
        self._committed.pop((self._topic, number), None)
        self._doubtful.pop(number, None)
        self._checkpointer.drop(number)
        self._driver.drop(number)

    async def _take_all(self, records: Sequence[Record]) -> bool:
        """Take records in; answers whether there was anything among them that others wrote."""
        has_news = False
        read_for = dict(self._ledgers)
        for record in records:
            number = record.partition
            ledger = self._ledgers.get(number)
            if ledger is None or ledger is not read_for.get(number):
                continue  # read before the partition was lost, or taken over anew: the ledger would have a gap
            has_news |= self._take(ledger, record)
            if ledger.is_usurped or ledger.is_misled:
                if ledger.is_misled:
                    logger.error("a checkpoint is void, the partition is read from its beginning", partition=number)
                else:
                    logger.warning("partition was taken over by another engine and came back", partition=number)
                self._drop(number)
                taken = await self._take_over_patiently(number, from_checkpoint=not ledger.is_misled)
                self._source.seek((self._topic, number), taken.next_offset)
        return has_news

    def _take(self, ledger: Ledger, record: Record) -> bool:
        ledger.bytes_read += len(record.value or b"")
        was_recovered = ledger.is_recovered
        ce_type = type_of(record.headers)
        if is_ownership(ce_type):
            ledger.begin_epoch(record.offset)
        elif is_cancellation(ce_type):
            self._cancel(ledger, record)
        elif was_recovered and not is_scheduled(ce_type):
            ledger.skip(record.offset)  # what we wrote ourselves comes by again; what others write is void
            return False
        elif ledger.passes_over(record.offset):
            return False
        else:
            self._read(ledger, record, was_recovered)
        if not was_recovered and ledger.is_recovered:
            if ledger.runs:
                logger.info("going on with open runs", partition=record.partition, runs=len(ledger.runs))
            for run in list(ledger):
                self._open(ledger, run)
            self._leftovers.look(ledger)
        return True

    def _read(self, ledger: Ledger, record: Record, was_recovered: bool) -> None:
        try:
            change = read(record.value, record.headers)
            if change is None or isinstance(change, Ownership):
                ledger.skip(record.offset)
                return
            if was_recovered and self._pressure.leaves(ledger, change.flow, change.key, record.offset):
                ledger.skip(record.offset)
                return
            run = ledger.read(record.offset, change)
        except (EngineError, ValueError) as error:
            # Nobody but an owner writes here: a record that cannot be is left out, and the partition goes on.
            logger.error("unreadable record on the state topic", origin=str(record.position), error=str(error))
            ledger.skip(record.offset)
            return
        if run is not None and was_recovered:
            self._open(ledger, run)

    def _open(self, ledger: Ledger, run: FlowRun) -> None:
        self._driver.waitlist.add(ledger, run)
        if run.cancelled is not None:
            self._driver.cancel(ledger, run)

    def _cancel(self, ledger: Ledger, record: Record) -> None:
        try:
            asked = read_cancellation(record.value)
        except EngineError as error:
            # Whoever wrote it has to say it better; no run is touched.
            logger.error("unreadable cancellation on the state topic", origin=str(record.position), error=str(error))
            ledger.skip(record.offset)
            return
        was_recovered = ledger.is_recovered
        run = ledger.cancel(record.offset, asked)
        if run is not None and was_recovered:
            self._driver.cancel(ledger, run)

    def _regulate(self) -> None:
        """Stop reading for a moment while too much waits; what is slow is left on the log, and read again later."""
        for flow in self._pressure.regulate(self._ledgers.values(), time.monotonic()):
            logger.info("a slow flow's runs wait on the state topic, so that others go by", flow=flow)
        self._shelves.nudge()
        was_paused, self._paused = self._paused, self._pressure.is_paused
        if was_paused and not self._paused:
            self._source.resume([(self._topic, number) for number in self._ledgers])
        if self._paused:  # a partition that recovers is read on: what it waits for may be its own history
            recovered = [(self._topic, number) for number, ledger in self._ledgers.items() if ledger.is_recovered]
            self._source.pause(recovered)

    async def _commit(self) -> None:
        now = time.monotonic()
        if now - self._committed_at < _COMMIT_INTERVAL_SECONDS:
            return
        self._committed_at = now
        offsets = {
            (self._topic, ledger.partition): offset
            for ledger in self._undoubted()
            if (offset := self._checkpointer.committable(ledger.partition)) is not None
            and self._committed.get((self._topic, ledger.partition)) != offset
        }
        if not offsets:
            return
        try:
            if await self._source.commit(offsets):
                self._committed.update(offsets)
        except KafkaUnavailable as error:
            # The next owner reads a little more; the next commit catches up.
            logger.warning("cannot commit the state topic", error=str(error))
