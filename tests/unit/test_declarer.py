"""engine.declarer: the flows of an engine lie on the state topic when it has started, each under its name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from engine import flow, on
from engine.broker import Outgoing, TopicSpec
from engine.declarations import read_declaration
from engine.declarer import Declarer
from engine.errors import KafkaUnavailable, RecordTooLarge
from engine.events import Position
from engine.memory import MemoryBroker
from engine.settings import Settings


@flow(on("orders"))
def fulfil(order: str) -> None:
    """Do it."""


@flow(on("orders"))
def ship(order: str) -> None: ...


SETTINGS = Settings(app="shop")
FLOWS = {"fulfil": fulfil, "ship": ship}


class Narrow:
    """A sink that takes no large record, and fails where it is told to."""

    def __init__(self, limit: int) -> None:
        self.limit, self.written, self.fails = limit, list[Outgoing](), 0

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def write(self, records: Sequence[Outgoing]) -> list[Position]:
        if self.fails:
            self.fails -= 1
            raise KafkaUnavailable("k", "gone")
        for record in records:
            if len(record.value or b"") > self.limit:
                raise RecordTooLarge(record.topic, len(record.value or b""), self.limit)
        self.written += records
        return [Position("t", 0, 0) for _ in records]


async def test_each_flow_is_declared_under_its_name() -> None:
    broker = MemoryBroker()
    await broker.ensure_topics([TopicSpec(SETTINGS.states_topic, 2)])
    await Declarer(SETTINGS, FLOWS, broker.sink()).declare()
    records = [record for n in range(2) for record in broker.log((SETTINGS.states_topic, n))]
    assert {record.key: read_declaration(record.value).name for record in records} == {b"fulfil": "fulfil", b"ship": "ship"}


async def test_what_is_too_large_is_declared_without_its_schemas() -> None:
    sink = Narrow(520)
    await Declarer(SETTINGS, FLOWS, sink).declare()
    found = {one.name: one for one in (read_declaration(record.value) for record in sink.written)}
    assert set(found) == {"fulfil", "ship"}
    assert (found["fulfil"].parameters, found["fulfil"].doc) == ({}, None)


async def test_it_is_written_again_long_before_the_topic_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    rest = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            await rest.wait()

    monkeypatch.setattr("engine.declarer.sleep", sleep)
    sink = Narrow(100_000)
    sink.fails = 1
    settings = Settings(app="shop", state_retention_seconds=3_600.0, dedup_window_seconds=60.0)
    running = asyncio.ensure_future(Declarer(settings, FLOWS, sink).run())
    for _ in range(10):
        await asyncio.wait([running], timeout=0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert slept == [900.0, 30.0, 900.0, 900.0]
    assert len(sink.written) == 4
