"""engine.log_writer: lines reach the log topic by run and in order, and what cannot be written is in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from engine import log_writer
from engine.broker import Outgoing, TopicSpec
from engine.errors import KafkaUnavailable
from engine.events import Position
from engine.log_outbox import LogOutbox, RunLog, Voice
from engine.log_writer import LogWriter
from engine.memory import MemoryBroker
from engine.run_logs import LogMail, read_batch
from engine.settings import Settings
from tests.waiting import eventually

SETTINGS = Settings(app="app", http="")


def mails(run_id: str, *messages: str) -> list[LogMail]:
    outbox = LogOutbox()
    log = RunLog(outbox, Voice(run_id=run_id, flow="fulfil", attempt=1, traceparent=""))
    for message in messages:
        log.say(1.0, 20, "orders", lambda message=message: message)  # type: ignore[misc]
    return outbox.take_all()


def written(broker: MemoryBroker) -> dict[str, list[str]]:
    """By run."""
    found: dict[str, list[str]] = {}
    for number in range(2):
        for record in broker.log((SETTINGS.logs_topic, number)):
            batch = read_batch(record.value, record.headers)
            assert batch is not None
            assert record.key == batch.run_id.encode()
            found.setdefault(batch.run_id, []).extend(line.message for line in batch.lines)
    return found


@pytest.fixture
async def broker() -> MemoryBroker:
    made = MemoryBroker()
    await made.ensure_topics([TopicSpec(SETTINGS.logs_topic, 2)])
    return made


@asynccontextmanager
async def writing(sink: Any, outbox: LogOutbox | None = None) -> AsyncIterator[LogWriter]:
    writer = LogWriter(SETTINGS, sink, LogOutbox() if outbox is None else outbox)
    running = asyncio.create_task(writer.run())
    yield writer
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_lines_of_a_run_lie_in_order_in_one_partition(broker: MemoryBroker) -> None:
    async with writing(broker.sink()) as writer:
        for number in range(30):
            writer.take(mails(f"run-{number % 3}", f"{number}", f"{number} b"))
            await asyncio.sleep(0)
        await writer.drain()
    expected = {f"run-{n}": [text for m in range(n, 30, 3) for text in (f"{m}", f"{m} b")] for n in range(3)}
    assert written(broker) == expected


async def test_what_flows_of_this_process_say_is_written_without_being_asked(broker: MemoryBroker) -> None:
    outbox = LogOutbox()
    async with writing(broker.sink(), outbox):
        log = RunLog(outbox, Voice(run_id="r", flow="fulfil", attempt=1, traceparent=""))
        await asyncio.to_thread(log.say, 1.0, 20, "orders", lambda: "from a thread")
        await eventually(lambda: written(broker) == {"r": ["from a thread"]})


class Away:
    """Kafka is away for the first writes."""

    def __init__(self, broker: MemoryBroker, failures: int) -> None:
        self._sink, self._failures = broker.sink(), failures

    async def write(self, records: Sequence[Outgoing]) -> list[Position]:
        if self._failures:
            self._failures -= 1
            raise KafkaUnavailable("memory", "away")
        return await self._sink.write(records)


async def test_what_kafka_does_not_take_is_lost_and_said_to_be(broker: MemoryBroker) -> None:
    with structlog.testing.capture_logs() as logged:
        async with writing(Away(broker, 1)) as writer:
            writer.take(mails("r", "lost", "lost, too"))
            await writer.drain()
            writer.take(mails("r", "written"))
            await writer.drain()
    assert written(broker) == {"r": ["written"]}
    [line] = logged
    assert (line["event"], line["lines"]) == ("log lines of runs are lost", 2)
    assert "away" in line["error"]


async def test_what_waits_is_bounded(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    some = mails("r", "x" * 1_000)
    monkeypatch.setattr(log_writer, "_MAX_WAITING_BYTES", 10 * len(some[0].value))
    with structlog.testing.capture_logs() as logged:
        async with writing(broker.sink()) as writer:
            for _ in range(15):
                writer.take(some)
            await writer.drain()
            writer.take(some)
            await writer.drain()
    assert len(written(broker)["r"]) == 11
    assert [line["event"] for line in logged] == ["log lines of runs are lost"]


async def test_nobody_waits_long_for_a_kafka_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "_DRAIN_SECONDS", 0.01)
    gone = asyncio.Event()

    class Gone:
        async def write(self, records: Sequence[Outgoing]) -> list[Position]:
            await gone.wait()
            return []

    async with writing(Gone()) as writer:
        writer.take(mails("r", "x"))
        await writer.drain()
