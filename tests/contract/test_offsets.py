"""What members of a group commit when partitions go and come back (engine/intake.py, engine/subscriber.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from engine.broker import Broker, Outgoing, Partition, Sink, Source, TopicSpec
from engine.events import Event, Position, to_headers
from engine.flows import Flow, on
from engine.intake import Intake
from engine.settings import Settings
from engine.states import Envelope, State, StateChange, encode, utc
from engine.subscriber import Subscription
from engine.telemetry import Tracer
from engine.triggers import Triggers
from tests.app_under_test import fresh_settings
from tests.contract.under_test import Log, a_group, read
from tests.waiting import eventually, eventually_said


class Watched:
    """A broker that lets one see what its source reads."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.made: Source | None = None

    def source(self, *args: Any, **options: Any) -> Source:
        """See Broker."""
        self.made = self._broker.source(*args, **options)
        return self.made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def has(self, partitions: Sequence[Partition]) -> bool:
        """Whether all of these are its."""
        return self.made is not None and set(partitions) <= self.made.assignment


class Gate:
    """A sink that writes when it is open."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.is_waited_for, self._is_open = asyncio.Event(), asyncio.Event()

    async def write(self, records: Sequence[Outgoing]) -> list[Position]:
        """See Sink."""
        self.is_waited_for.set()
        await self._is_open.wait()
        return await self._sink.write(records)

    async def start(self) -> None:
        """See Sink."""

    async def close(self) -> None:
        """See Sink."""

    def open(self) -> None:
        """From now on all is written at once."""
        self._is_open.set()


def echo(value: int) -> int:
    return value


def event(topic: str, name: str, partition: int) -> Outgoing:
    headers = to_headers(Event(id=name, source="tests", type="t", data=None))
    return Outgoing(topic, None, encode({"value": 1}), headers, partition)


def change(topic: str, run_id: str, partition: int) -> Outgoing:
    scheduled = StateChange(run_id=run_id, flow="f", state=State.SCHEDULED, seq=0, epoch=0, attempt=1, at=utc(time.time()))
    value, headers = Envelope.of("app", run_id).write(scheduled, "")
    return Outgoing(topic, None, value, headers, partition)


async def go_further(log: Log, topics: Sequence[str], group: str, more: dict[Partition, list[Outgoing]]) -> Partition:
    """Another member takes a partition, reads all of it and commits, and leaves."""
    other = await log.source(*topics, group=group)
    await eventually(lambda: bool(other.assignment & set(more)))
    [place] = other.assignment & set(more)
    await log.write(*more[place])
    await read(other, 1 + len(more[place]))
    end = (await other.end_offsets([place]))[place]
    assert await other.commit({place: end})
    await other.close()
    return place


async def committed(log: Log, group: str) -> Mapping[Partition, int]:
    return (await log.offset_reader().read([group], ())).committed[group]


async def test_an_intake_does_not_take_a_group_back(log: Log) -> None:
    settings: Settings = fresh_settings()
    topic = await log.topic(2)
    own = [settings.states_topic, settings.dead_letters_topic, settings.replays_topic]
    await log.broker.ensure_topics([TopicSpec(name, 1) for name in own])
    await log.write(*(event(topic, f"first{n}", n) for n in range(2)))
    places = [(topic, 0), (topic, 1)]
    broker, gate = Watched(log.broker), Gate(await log.sink())
    flow = Flow(echo, (on(topic),), "f")
    intake = Intake(settings, broker, gate, Triggers([flow]), Tracer(None, None, None), lambda scheduled: None)  # type: ignore[arg-type]
    await intake.start()
    running = asyncio.create_task(intake.run())
    try:
        # It has events in hand when another member gets a part of its partitions, and gives it back.
        await gate.is_waited_for.wait()
        further = {place: [event(topic, f"more{n}", place[1]) for n in range(3)] for place in places}
        place = await go_further(log, [topic, settings.replays_topic], settings.intake_group, further)
        await eventually(lambda: broker.has(places))
        gate.open()
        [other] = set(places) - {place}

        async def has_committed() -> bool:
            return other in await committed(log, settings.intake_group)

        await eventually_said(has_committed)
        assert await committed(log, settings.intake_group) == {place: 4, other: 1}
    finally:
        gate.open()
        intake.stop()
        await running
        await intake.close()


async def test_a_subscriber_does_not_take_a_group_back(log: Log) -> None:
    topic, group = await log.topic(2), a_group()
    await log.write(*(change(topic, f"{n}-{i}", n) for n in range(2) for i in range(2)))
    places = [(topic, 0), (topic, 1)]
    broker = Watched(log.broker)
    subscription = Subscription(broker, topic, group=group, from_beginning=True)  # type: ignore[arg-type]
    async with subscription:
        for _ in range(4):
            await anext(subscription)
        further = {place: [change(topic, f"{place[1]}-more{i}", place[1]) for i in range(3)] for place in places}
        place = await go_further(log, [topic], group, further)
        await eventually(lambda: broker.has(places))
    assert (await committed(log, group))[place] == 5
