"""Waits for events on a topic (engine/event_watcher.py), on the log in memory and on real Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from engine import topic_watcher
from engine.broker import Broker, Outgoing, Source
from engine.errors import EngineError, KafkaUnavailable
from engine.event_waits import Wait
from engine.event_watcher import EventWatcher
from engine.events import Event, Position, RawEvent, to_headers
from engine.kafka import KafkaBroker
from tests.contract.under_test import Log
from tests.waiting import eventually


class Watch:
    """A watcher, what it found and what failed."""

    def __init__(self, broker: Broker, **options: Any) -> None:
        self.found: dict[str, RawEvent] = {}
        self.failed: dict[str, EngineError] = {}
        self.told: list[str] = []
        self.watcher = EventWatcher(broker, self._found, self._failed, **options)

    def _found(self, wait_id: str, event: RawEvent) -> None:
        self.found[wait_id] = event
        self.told.append(wait_id)

    def _failed(self, wait_id: str, error: EngineError) -> None:
        self.failed[wait_id] = error
        self.told.append(wait_id)

    def add(
        self,
        topic: str,
        wait_id: str = "w",
        *,
        type: str | None = None,
        source: str | None = None,
        where: Callable[[RawEvent], bool] | None = None,
        since_ms: int = 0,
        had: frozenset[Position] = frozenset(),
    ) -> None:
        self.watcher.add(Wait(wait_id, topic, type, source, where, since_ms, had))

    async def ready(self, topic: str, log: Log) -> None:
        """Return when the tail of ``topic`` reads what comes, and memory answers from now on."""
        self.add(topic, "ready", type="test.ready")
        await log.write(event(topic, "ready", type="test.ready"))
        await eventually(lambda: "ready" in self.found)


@pytest_asyncio.fixture
async def watch(broker: Broker) -> AsyncIterator[Watch]:
    watch = Watch(broker)
    yield watch
    await watch.watcher.close()


def event(topic: str, id: str, *, type: str = "order.paid", source: str = "/shop", partition: int | None = 0) -> Outgoing:
    headers = to_headers(Event(id=id, source=source, type=type, data=None))
    return Outgoing(topic, None, b"{}", headers, partition)


def has_id(id: str) -> Callable[[RawEvent], bool]:
    return lambda event: event.id == id


async def next_millisecond() -> int:
    """A time after every record written so far and before every one written later."""
    now = int(time.time() * 1000)
    await eventually(lambda: int(time.time() * 1000) > now + 1)
    return now + 1


class TestFinding:
    async def test_an_event_that_comes_later(self, log: Log, watch: Watch) -> None:
        topic = await log.topic(1)
        await watch.ready(topic, log)
        watch.add(topic, type="order.paid", source="/shop")
        await log.write(event(topic, "1"))
        await eventually(lambda: watch.found.get("w"))
        assert (watch.found["w"].id, watch.found["w"].position) == ("1", Position(topic, 0, 1))

    async def test_an_event_that_came_before_anybody_watched_the_topic(self, log: Log, watch: Watch) -> None:
        topic = await log.topic(1)
        await log.write(event(topic, "old"))
        since_ms = await next_millisecond()
        await log.write(event(topic, "1"), event(topic, "2"))
        watch.add(topic, since_ms=since_ms)
        await eventually(lambda: watch.found.get("w"))
        assert watch.found["w"].id == "1"

    async def test_an_event_that_came_before_the_wait_and_is_in_memory(self, log: Log, watch: Watch) -> None:
        topic = await log.topic(1)
        since_ms = await next_millisecond()
        await watch.ready(topic, log)
        await log.write(event(topic, "1"))
        watch.add(topic, "probe", where=has_id("1"))
        await eventually(lambda: watch.found.get("probe"))
        watch.add(topic, "far", where=has_id("1"))
        watch.add(topic, "near", type="order.*", since_ms=since_ms)
        await eventually(lambda: {"far", "near"} <= watch.found.keys())
        assert watch.found["near"].id == "1"

    async def test_an_event_that_memory_has_let_go(self, log: Log, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
        """Over two partitions, a gap between what memory holds and what a wait asks for is read from the log."""
        monkeypatch.setattr(topic_watcher, "RECENT_EVENTS", 5)
        topic = await log.topic(2)
        await watch.ready(topic, log)
        since_ms = await next_millisecond()
        await log.write(*(event(topic, f"{n}", partition=n % 2) for n in range(50)))
        watch.add(topic, "last", where=has_id("49"))
        await eventually(lambda: watch.found.get("last"))
        for n in range(50):
            watch.add(topic, f"{n}", where=has_id(f"{n}"), since_ms=since_ms)
        await eventually(lambda: len(watch.found) == 52)
        assert all(watch.found[f"{n}"].id == f"{n}" for n in range(50))

    async def test_an_event_older_than_the_run_is_not_looked_at(self, log: Log, watch: Watch) -> None:
        """Nor by a wait that memory answers, when the topic is watched since before."""
        topic = await log.topic(1)
        await watch.ready(topic, log)
        await log.write(event(topic, "old"))
        since_ms = await next_millisecond()
        for n in range(3):
            watch.add(topic, f"{n}", type="order.paid", since_ms=since_ms)
            await log.write(event(topic, f"new-{n}"))
            await eventually(lambda n=n: watch.found.get(f"{n}"))
        assert watch.found["0"].id == "new-0"
        assert all(watch.found[f"{n}"].id != "old" for n in range(3))

    async def test_only_events_of_its_type_and_source(self, log: Log, watch: Watch) -> None:
        topic = await log.topic(1)
        watch.add(topic, "prefix", type="order.*")
        watch.add(topic, "source", type="order.*", source="/other")
        watch.add(topic, "exact", type="order.paid.late")
        await log.write(
            event(topic, "1", type="order"),
            event(topic, "2", type="orders.paid"),
            event(topic, "3", type="order.paid.early"),
            event(topic, "4", type="order.paid.late"),
            event(topic, "5", type="order.x", source="/other"),
        )
        await eventually(lambda: len(watch.found) == 3)
        assert {name: found.id for name, found in watch.found.items()} == {"prefix": "3", "exact": "4", "source": "5"}

    async def test_the_first_event_that_its_where_takes(self, log: Log, watch: Watch) -> None:
        """Each event is put to a wait once, in order, be it from the log or as it comes."""
        topic = await log.topic(1)
        looked_at: list[str] = []

        def where(found: RawEvent) -> bool:
            looked_at.append(found.id)
            return found.id == "39"

        await log.write(*(event(topic, f"{n}") for n in range(20)))
        watch.add(topic, where=where)
        for n in range(20, 45):
            await log.write(event(topic, f"{n}"))
        await eventually(lambda: watch.found.get("w"))
        assert looked_at == [f"{n}" for n in range(40)]
        assert watch.told == ["w"]

    async def test_what_the_run_has_had_is_skipped(self, log: Log, watch: Watch) -> None:
        """Both what lies in the log and what is still to come."""
        topic = await log.topic(1)
        await log.write(event(topic, "0"), event(topic, "1"))
        watch.add(topic, had=frozenset({Position(topic, 0, 0), Position(topic, 0, 1), Position(topic, 0, 2)}))
        watch.add(topic, "probe", where=has_id("1"))
        await eventually(lambda: watch.found.get("probe"))
        await log.write(event(topic, "2"), event(topic, "3"))
        await eventually(lambda: watch.found.get("w"))
        assert watch.found["w"].id == "3"

    async def test_two_waits_get_the_same_event(self, log: Log, watch: Watch) -> None:
        topic = await log.topic(1)
        watch.add(topic, "a")
        watch.add(topic, "b", type="order.paid")
        await log.write(event(topic, "1"))
        await eventually(lambda: watch.found.keys() == {"a", "b"})
        assert watch.found["a"] == watch.found["b"]

    async def test_every_partition_is_watched(self, log: Log, watch: Watch) -> None:
        topic = await log.topic(12)
        await log.write(*(event(topic, f"before-{n}", partition=n) for n in range(12)))
        for n in range(12):
            watch.add(topic, f"before-{n}", where=has_id(f"before-{n}"))
            watch.add(topic, f"after-{n}", where=has_id(f"after-{n}"))
        await eventually(lambda: len(watch.found) == 12)
        await log.write(*(event(topic, f"after-{n}", partition=n) for n in range(12)))
        await eventually(lambda: len(watch.found) == 24)
        assert all(name == found.id for name, found in watch.found.items())

    async def test_a_record_that_is_no_event_is_skipped(self, log: Log, watch: Watch) -> None:
        topic = await log.topic(1)
        await log.write(Outgoing(topic, None, b"", (("ce_type", b"order.paid"),)))
        watch.add(topic)
        await log.write(Outgoing(topic, None, b"", (("ce_type", b"order.paid"),)), event(topic, "1"))
        await eventually(lambda: watch.found.get("w"))
        assert watch.found["w"].id == "1"

    async def test_no_event_is_left_out_and_none_offered_twice(
        self, log: Log, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between log, memory and what comes, while memory is so small that it moves on under those who are brought up."""
        monkeypatch.setattr(topic_watcher, "RECENT_EVENTS", 7)
        topic = await log.topic(3)
        sink = await log.sink()
        offered: dict[str, list[Position | None]] = {}

        def where(wait_id: str) -> Callable[[RawEvent], bool]:
            def look(found: RawEvent) -> bool:
                offered.setdefault(wait_id, []).append(found.position)
                return found.type == "end"

            return look

        written: list[Position] = []
        for n in range(60):
            written += await sink.write([event(topic, f"{n}", partition=n * m % 3) for m in range(1 + n % 9)])
            watch.add(topic, f"{n}", where=where(f"{n}"))
        for partition in range(3):
            written += await sink.write([event(topic, "end", type="end", partition=partition)])
        await eventually(lambda: len(watch.found) == 60)
        for n in range(60):
            for partition in range(3):
                mine = [at.offset for at in offered[f"{n}"] if at is not None and at.partition == partition]
                assert mine == list(range(len(mine)))
            last = offered[f"{n}"][-1]
            assert last == watch.found[f"{n}"].position
            assert last in written[-3:]

    async def test_two_thousand_waits_each_for_its_own_event(self, log: Log, watch: Watch) -> None:
        """Some events are in the log before their wait, some come while it is brought up, some later."""
        topic = await log.topic(4)
        sink = await log.sink()
        for start in range(0, 2_000, 100):
            numbers = range(start, start + 100)
            events = [event(topic, f"{n}", partition=n % 4) for n in numbers]
            await sink.write(events[:40])
            for n in numbers:
                watch.add(topic, f"{n}", type="order.paid", where=has_id(f"{n}"))
            await sink.write(events[40:])
        await eventually(lambda: len(watch.found) == 2_000)
        assert all(name == found.id for name, found in watch.found.items())
        assert len(watch.told) == 2_000
        assert len(watch.watcher) == 0


class TestNotFinding:
    async def test_a_wait_that_is_dropped_hears_nothing(self, log: Log, watch: Watch) -> None:
        """Neither when it was just added nor when it has waited for a while; its id can be used again."""
        topic = await log.topic(1)
        watch.add(topic, "early")
        watch.watcher.drop("early")
        await watch.ready(topic, log)
        watch.add(topic, "late", type="order.paid")
        await log.write(event(topic, "x", type="other"))
        watch.add(topic, "probe", type="other")
        await eventually(lambda: watch.found.get("probe"))
        watch.watcher.drop("late")
        watch.watcher.drop("late")
        watch.add(topic, "early", where=has_id("2"))
        await log.write(event(topic, "1"), event(topic, "2"))
        await eventually(lambda: watch.found.get("early"))
        assert watch.found["early"].id == "2"
        assert watch.told == ["ready", "probe", "early"]

    async def test_a_where_that_raises_fails_its_own_wait(self, log: Log, watch: Watch) -> None:
        topic = await log.topic(1)

        def broken(found: RawEvent) -> bool:
            raise KeyError("total")

        watch.add(topic, "broken", where=broken)
        watch.add(topic, "other", where=has_id("2"))
        await log.write(event(topic, "1"), event(topic, "2"))
        await eventually(lambda: len(watch.told) == 2)
        assert str(watch.failed["broken"]) == (
            f"cannot wait for an event of topic {topic}: where raised KeyError: 'total' for the event at {topic}/0/0. "
            "Correct the where of the wait."
        )
        assert watch.found["other"].id == "2"

    async def test_a_missing_topic_fails_its_waits_and_may_be_made_later(self, log: Log, watch: Watch) -> None:
        watch.add("no-such-topic", "a")
        watch.add("no-such-topic", "b")
        await eventually(lambda: len(watch.failed) == 2)
        assert "topic no-such-topic: does not exist" in str(watch.failed["a"])
        assert watch.watcher.trouble == ""
        watch.add("no-such-topic", "c")
        await eventually(lambda: "c" in watch.failed)


class TestKeepingOn:
    async def test_a_topic_is_let_go_after_its_last_wait_and_watched_again(self, log: Log) -> None:
        watch = Watch(log.broker, linger_seconds=0.0)
        topic = await log.topic(1)
        for n in range(3):
            watch.add(topic, f"{n}", where=has_id(f"{n}"))
            await log.write(event(topic, f"{n}"))
            await eventually(lambda n=n: watch.found.get(f"{n}"))
            await eventually(lambda: not [t for t in asyncio.all_tasks() if "waits for" in t.get_name()])
        await watch.watcher.close()

    async def test_what_a_dropped_wait_finds_is_not_told_to_another_with_its_id(self, log: Log) -> None:
        """It is dropped, and its id used anew, while user code looks at the event."""
        may_end, began = asyncio.Event(), asyncio.Event()

        async def slow(work: Callable[[], Any]) -> Any:
            began.set()
            await may_end.wait()
            return work()

        watch = Watch(log.broker, run_user_code=slow)
        topic = await log.topic(1)
        await log.write(event(topic, "1"))
        watch.add(topic)
        await began.wait()
        watch.add(topic, where=has_id("2"))
        may_end.set()
        await log.write(event(topic, "2"))
        await eventually(lambda: watch.found.get("w"))
        assert watch.found["w"].id == "2"
        await watch.watcher.close()

    async def test_user_code_does_not_hold_up_closing(self, log: Log) -> None:
        """Nor is anybody told what it finds afterwards."""
        may_end, began = asyncio.Event(), asyncio.Event()

        async def blocked(work: Callable[[], Any]) -> Any:
            began.set()
            await may_end.wait()
            return work()

        watch = Watch(log.broker, run_user_code=blocked)
        topic = await log.topic(1)
        await log.write(event(topic, "1"))
        watch.add(topic)
        await began.wait()
        await watch.watcher.close()
        assert watch.told == []

    async def test_what_comes_while_kafka_is_away_is_found_afterwards(self, log: Log) -> None:
        """The tail goes on at the last offset it saw; trouble says what it waits for."""
        broker = Unsteady(log.broker)
        watch = Watch(broker)
        topic = await log.topic(2)
        broker.is_away = True
        watch.add(topic, "first")
        await eventually(lambda: watch.watcher.trouble)
        assert "cannot reach Kafka" in watch.watcher.trouble
        await log.write(event(topic, "1"))
        broker.is_away = False
        await eventually(lambda: watch.found.get("first"))
        watch.add(topic, "second", where=has_id("3"))
        watch.add(topic, "probe", where=has_id("2"))
        await log.write(event(topic, "2", partition=1))
        await eventually(lambda: watch.found.get("probe"))
        broker.is_away = True
        await eventually(lambda: watch.watcher.trouble)
        await log.write(event(topic, "3"), event(topic, "4", partition=1))
        watch.add(topic, "third", where=has_id("4"))
        broker.is_away = False
        await eventually(lambda: {"second", "third"} <= watch.found.keys())
        await eventually(lambda: not watch.watcher.trouble)
        await watch.watcher.close()

    async def test_memory_answers_waits_that_look_back_a_little(self, log: Log) -> None:
        """After one has looked into the log, no other opens a reader of its own."""
        broker = Unsteady(log.broker)
        watch = Watch(broker)
        topic = await log.topic(2)
        await watch.ready(topic, log)
        watch.add(topic, "far", where=has_id("1"))
        await log.write(event(topic, "1"))
        await eventually(lambda: watch.found.get("far"))
        since_ms = await next_millisecond()
        await log.write(event(topic, "2", partition=1), event(topic, "3"))
        watch.add(topic, "first", where=has_id("2"), since_ms=since_ms)
        await eventually(lambda: watch.found.get("first"))
        sources = broker.sources
        for n in range(20):
            watch.add(topic, f"{n}", where=has_id(f"{2 + n % 2}"), since_ms=since_ms)
            await eventually(lambda n=n: watch.found.get(f"{n}"))
        assert broker.sources == sources
        await watch.watcher.close()


class TestOnKafkaAlone:
    async def test_looking_back_ends_where_the_log_ends_be_it_with_a_marker(
        self, kafka_broker: KafkaBroker, kafka: str
    ) -> None:
        """A transaction's marker has an offset that no record ever brings; other partitions do not wait for it."""
        log, watch = Log(kafka_broker), Watch(kafka_broker)
        topic = await log.topic(2)
        headers = list(event(topic, "1").headers)
        producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic)
        async with producer, producer.transaction():
            await producer.send_and_wait(topic, b"{}", headers=headers, partition=0)
        watch.add(topic, type="other")
        watch.add(topic, "probe", where=has_id("1"))
        await eventually(lambda: watch.found.get("probe"))
        await log.write(event(topic, "2", type="other", partition=1))
        await eventually(lambda: watch.found.get("w"))
        await watch.watcher.close()
        await log.close()


class Unsteady:
    """A broker that can be away: sources then fail, those that were open, too."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.is_away = False
        #: How many were made.
        self.sources = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def source(self, *topics: Any, **options: Any) -> Any:
        self.sources += 1
        return _UnsteadySource(self, self._broker.source(*topics, **options))


class _UnsteadySource:
    def __init__(self, broker: Unsteady, source: Source) -> None:
        self._broker, self._source = broker, source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    async def start(self) -> None:
        self._check()
        await self._source.start()

    async def poll(self, **options: Any) -> Any:
        self._check()
        return await self._source.poll(**options)

    def _check(self) -> None:
        if self._broker.is_away:
            raise KafkaUnavailable("test", "switched off")
