"""The shelf's reader: reads again, when there is room, what the dispatcher has left on the log; a reader without a group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from engine.backlog_reader import poll
from engine.broker import Broker, Partition, Record
from engine.errors import EngineError, KafkaUnavailable
from engine.ledger import Ledger
from engine.logs import logger
from engine.pressure import Pressure
from engine.runs import FlowRun
from engine.shelf import Lane
from engine.states import StateChange, is_scheduled, read, type_of
from engine.waitlist import Waitlist

_BACKOFF_SECONDS = 1.0
#: Polls of one turn: what an earlier turn has asked for may come first.
_TRIES = 5


class ShelfReader:
    """Serves the lanes of one engine, one after the other."""

    def __init__(
        self,
        broker: Broker,
        topic: str,
        ledgers: Mapping[int, Ledger],
        waitlist: Waitlist,
        pressure: Pressure,
        cancel: Callable[[Ledger, FlowRun], None],
    ) -> None:
        """``cancel`` ends a run on the waitlist."""
        self._cancel = cancel
        self._topic, self._ledgers, self._waitlist, self._pressure = topic, ledgers, waitlist, pressure
        self._source = broker.source([topic], group=None)
        self._has_started = False
        self._wake = asyncio.Event()
        #: Where the source goes on, by partition.
        self._at: dict[int, int] = {}
        #: Lanes in the order of their turns; the one that was served last is last.
        self._served: dict[tuple[int, Lane], None] = {}

    def nudge(self) -> None:
        """There may be lanes, or room for what is on them."""
        self._wake.set()

    async def run(self) -> None:
        """Open what is on the shelf, as fast as there is room, until cancelled."""
        while True:
            turn = self._next()
            if turn is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._serve(*turn)
            except KafkaUnavailable as error:
                # What is on the shelf stays there until Kafka answers; checkpoints say from where.
                logger.warning("runs that were left on the state topic wait for Kafka", error=str(error))
                await asyncio.sleep(_BACKOFF_SECONDS)

    async def close(self) -> None:
        """Disconnect."""
        if self._has_started:
            await self._source.close()

    def _next(self) -> tuple[Ledger, Lane] | None:
        """The lane that was not served for the longest, of those that there is room for. Closes what was read to its bound."""
        # Before a partition has recovered, not all is known of what was opened from its lanes.
        recovered = [(number, ledger) for number, ledger in self._ledgers.items() if ledger.is_recovered]
        lanes = {(number, lane): ledger for number, ledger in recovered for lane in ledger.shelf.lanes}
        self._served = {turn: None for turn in self._served if turn in lanes}
        waiting = [turn for turn in lanes if turn not in self._served]
        for number, lane in [*waiting, *self._served]:
            ledger = lanes[number, lane]
            if self._pressure.room(number, *lane) <= 0:
                continue
            if ledger.shelf.lanes[lane] >= ledger.shelf.bound(lane, ledger.next_offset):
                ledger.shelf.close(lane)
            else:
                self._served.pop((number, lane), None)
                self._served[number, lane] = None
                return ledger, lane
        return None

    async def _serve(self, ledger: Ledger, lane: Lane) -> None:
        place = (self._topic, ledger.partition)
        if not self._has_started:
            await self._source.start()
            self._has_started = True
        self._turn_to(place, ledger.shelf.lanes[lane])
        records, end = await self._read(place, ledger.shelf.lanes[lane])
        self._at[ledger.partition] = end
        if self._ledgers.get(ledger.partition) is not ledger or lane not in ledger.shelf.lanes:
            return  # lost meanwhile: whoever owns the partition now reads all of it
        self._tell_of_gone(ledger, lane, records[0].offset if records else end)
        if not records:  # nothing but what a transaction or compaction left
            ledger.shelf.move(lane, min(end, ledger.shelf.bound(lane, ledger.next_offset)))
            return
        self._take(ledger, lane, records)

    def _tell_of_gone(self, ledger: Ledger, lane: Lane, found: int) -> None:
        """Kafka has dropped what lay before ``found``: runs of the lane among it are lost, and nobody can say which."""
        lost_from, lost_to = ledger.shelf.lanes[lane], min(found, ledger.shelf.bound(lane, ledger.next_offset))
        if lost_to > lost_from:
            logger.error(
                "runs waited on the state topic for longer than it keeps records, and are lost; add workers, or raise"
                " state_retention_seconds and the retention.ms of the topic",
                flow=lane[0],
                key=lane[1],
                partition=ledger.partition,
                offsets=f"{lost_from}-{lost_to - 1}",
            )

    async def _read(self, place: Partition, offset: int) -> tuple[list[Record], int]:
        """Records from ``offset`` on, and where the source goes on; none where it knows that none come before that."""
        records: list[Record] = []
        end = offset
        for _ in range(_TRIES):
            for record in await poll(self._source):
                if (record.topic, record.partition) == place:
                    records.append(record)
                else:
                    # Asked for in an earlier turn, and late: the source goes on after it, and would leave it out next time.
                    self._at.pop(record.partition, None)
            end = records[-1].position.next_offset if records else await self._source.position(place)
            if end > offset:
                break
        return records, end

    def _turn_to(self, place: Partition, offset: int) -> None:
        number = place[1]
        if self._at.get(number) != offset:
            self._source.seek(place, offset)
            self._at[number] = offset
        self._source.pause(sorted(self._source.assignment - {place}))
        self._source.resume([place])

    def _take(self, ledger: Ledger, lane: Lane, records: Sequence[Record]) -> None:
        shelf = ledger.shelf
        bound = shelf.bound(lane, ledger.next_offset)
        room = self._pressure.room(ledger.partition, *lane)
        flow, own_key = lane
        record_key = None if own_key is None else own_key.encode()
        for record in records:
            if record.offset < shelf.lanes[lane]:
                continue
            if record.offset >= bound or room <= 0:
                return
            if is_scheduled(type_of(record.headers)) and (record_key is None or record.key == record_key):
                change = _scheduled(record)
                if change is not None and shelf.belongs(lane, change.flow, change.key):
                    key = change.key
                    left = own_key is None and key is not None
                    if not (left and self._pressure.leaves_key(ledger, flow, key or "", record.offset)):
                        room -= self._open(ledger, record.offset, change)
            shelf.move(lane, record.position.next_offset)

    def _open(self, ledger: Ledger, offset: int, change: StateChange) -> int:
        run = ledger.open_late(offset, change)
        if run is None:
            return 0
        self._waitlist.add(ledger, run)
        if run.cancelled is not None:
            self._cancel(ledger, run)
        return 1


def _scheduled(record: Record) -> StateChange | None:
    try:
        change = read(record.value, record.headers)
    except (EngineError, ValueError):
        return None  # unreadable: the dispatcher said so when it came by the first time, and left it out
    return change if isinstance(change, StateChange) and change.seq == 0 and change.is_flow_run else None
