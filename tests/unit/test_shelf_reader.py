"""engine.shelf_reader: what was left on the log is read again, wherever it lies, and none of it is left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from engine.broker import Outgoing, Record, TopicSpec
from engine.ledger import Ledger
from engine.memory import MemoryBroker, MemorySource
from engine.pressure import Pressure
from engine.shelf_reader import ShelfReader
from engine.states import Envelope, State, StateChange, utc
from engine.waitlist import Waitlist
from tests.waiting import eventually

COUNT = 60


class LateSource(MemorySource):
    """Hands out what one poll has found at the next one, as a fetch that outlives its poll does on Kafka."""

    _late: tuple[Record, ...] = ()
    #: What lies before it the topic no longer has.
    begins_at = 0

    async def poll(self, *, timeout_seconds: float, max_records: int) -> list[Record]:
        found, self._late = self._late, tuple(await super().poll(timeout_seconds=0.01, max_records=7))
        return [record for record in found if record.offset >= self.begins_at]

    async def position(self, partition: tuple[str, int]) -> int:
        held = [record.offset for record in self._late if (record.topic, record.partition) == partition]
        return min(held) if held else await super().position(partition)


class Broker(MemoryBroker):
    def source(self, topics, *, group, **_):  # type: ignore[no-untyped-def]
        return LateSource(self, topics, group, False, None, None)


class Bench:
    """Two partitions with runs of a slow flow, all of them left on the log."""

    def __init__(self) -> None:
        self.log = Broker()
        self.waitlist = Waitlist()
        self.pressure = Pressure(self.waitlist, 10)
        self.ledgers = {number: Ledger(number, 0, 60.0) for number in (0, 1)}
        self.reader = ShelfReader(self.log, "states", self.ledgers, self.waitlist, self.pressure, self.waitlist.withdraw)

    async def fill(self) -> None:
        await self.log.ensure_topics([TopicSpec("states", 2)])
        sink = self.log.sink()
        await sink.start()
        for number, ledger in self.ledgers.items():
            ledger.begin_epoch(0)
            await sink.write([Outgoing("states", None, b"", (), number), *(record(n, number) for n in range(COUNT))])
            ledger.shelf.put(("slow", None), 1)
            ledger.next_offset = COUNT + 1


def record(n: int, partition: int) -> Outgoing:
    run_id = f"{partition}{n:031x}"
    change = StateChange(run_id=run_id, flow="slow", state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1.5))
    value, headers = Envelope.of("shop", run_id).write(change, "")
    return Outgoing("states", run_id.encode(), value, headers, partition)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.fill()
    reading = asyncio.create_task(bench.reader.run())
    yield bench
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await bench.reader.close()


async def test_all_is_opened_once_in_order_and_never_more_than_there_is_room_for(bench: Bench) -> None:
    begun: list[str] = []

    def work() -> bool:
        assert len(bench.waitlist) <= 10
        for ledger, run in bench.waitlist.take(3):
            begun.append(run.run_id)
            bench.waitlist.end(ledger, run)
        bench.reader.nudge()
        return not any(ledger.shelf.lanes for ledger in bench.ledgers.values()) and not len(bench.waitlist)

    await eventually(work)
    for partition in ("0", "1"):
        mine = [run_id for run_id in begun if run_id.startswith(partition)]
        assert mine == [f"{partition}{n:031x}" for n in range(COUNT)]


async def test_of_a_partition_that_recovers_nothing_is_read() -> None:
    """Its history may say yet that runs of the lane have begun, or ended."""
    bench = Bench()
    await bench.fill()
    bench.ledgers[0].epoch = COUNT + 9
    reading = asyncio.create_task(bench.reader.run())

    def work() -> bool:
        for ledger, run in bench.waitlist.take(3):
            assert ledger.partition == 1
            bench.waitlist.end(ledger, run)
        bench.reader.nudge()
        return not bench.ledgers[1].shelf.lanes

    await eventually(work)
    assert bench.ledgers[0].shelf.lanes == {("slow", None): 1}
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await bench.reader.close()


async def test_what_was_lost_meanwhile_is_left_to_its_new_owner(bench: Bench) -> None:
    await eventually(lambda: bench.waitlist.has_ready)
    del bench.ledgers[0]
    bench.waitlist.drop(0)

    def work() -> bool:
        taken = bench.waitlist.take(3)
        assert all(ledger.partition == 1 for ledger, _ in taken)
        for ledger, run in taken:
            bench.waitlist.end(ledger, run)
        bench.reader.nudge()
        return not bench.ledgers[1].shelf.lanes

    await eventually(work)


async def test_what_the_topic_no_longer_keeps_is_lost_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LateSource, "begins_at", 31)
    bench = Bench()
    await bench.fill()
    with capture_logs() as said:
        reading = asyncio.create_task(bench.reader.run())

        def work() -> bool:
            for ledger, run in bench.waitlist.take(3):
                bench.waitlist.end(ledger, run)
            bench.reader.nudge()
            return not any(ledger.shelf.lanes for ledger in bench.ledgers.values())

        await eventually(work)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await bench.reader.close()
    lost = [(line["flow"], line["partition"], line["offsets"]) for line in said if line["log_level"] == "error"]
    assert {partition for _, partition, _ in lost} == {0, 1}
    for partition in (0, 1):
        spans = [tuple(map(int, offsets.split("-"))) for _, number, offsets in lost if number == partition]
        assert sum(to - begin + 1 for begin, to in spans) == 30
