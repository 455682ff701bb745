"""A whole dashboard on the log in memory, in a thread of its own: what is done on its pages is found on the topics."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine import flow, on, task
from engine.broker import Record
from engine.dashboard import Dashboard
from engine.dead_letters import Details, write_letter
from engine.declarations import declare, write_declaration
from engine.events import Position
from engine.memory import MemoryBroker
from engine.runs import run_id_of
from engine.states import Origin, utc
from tests.dashboard_under_test import APP, a_log, serving
from tests.history_records import LETTERS, STATES, Topics, a_run

#: What must never be taken for markup, nor steer anything.
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>'\"`{{7*7}}${7*7}</textarea>]]>\u202egnp.\x1b[31m"
_SECONDS = 30.0


class Line(msgspec.Struct):
    sku: str
    quantity: int = 1


class Order(msgspec.Struct):
    id: str
    customer: str
    express: bool
    lines: list[Line]
    note: str | None = None


@task
def price(line: Line) -> float:
    return 9.5 * line.quantity


def has_lines(event: Any) -> bool:
    return bool(event.data.lines)


@flow(on("orders", type="order.created", where=has_lines, key=lambda event: event.data.customer))
def fulfil(order: Order) -> Any:
    """Price what was ordered, and send the invoice.

    One run for each order; those of one customer go one after the other."""
    return price.map(order.lines)


@flow(on("payments", type="payment.*"), pack=True, on_failure="dead-letter")
def settle(payment_id: str, amount: float, currency: str = "EUR") -> str:
    """Book a payment."""
    return payment_id


class Desk:
    """Serves until it is closed. ``url`` is where; records are read by ``records``."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._folder, self._settings = folder, settings
        self._begun, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self.broker: MemoryBroker
        self._thread = threading.Thread(target=self._main, name="desk")
        self._thread.start()
        assert self._begun.wait(_SECONDS)
        if self._error is not None:
            raise self._error

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
            self._begun.set()

    async def _serve(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self.broker = await a_log("orders", "payments", "clicks")
        await fill(self.broker)
        async with serving(self._folder, self.broker, **self._settings) as dashboard:
            self._dashboard: Dashboard = dashboard
            self.url = f"http://{dashboard.address}"
            self._begun.set()
            await self._closing.wait()

    def records(self, topic: str) -> list[Record]:
        return list(self.broker.log((topic, 0)))

    def wait_for(self, topic: str, wanted: Callable[[Record], bool]) -> Record:
        """The last record of a topic that is wanted, when it is there."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            found = [record for record in self.records(topic) if wanted(record)]
            if found:
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"no such record on {topic}: {self.records(topic)[-3:]}")

    def do(self, work: Callable[[MemoryBroker], None]) -> None:
        """Write to the log, and have its readers told."""

        def done() -> None:
            work(self.broker)
            self.broker.tell()

        self._loop.call_soon_threadsafe(done)

    def letter(self, reason: str, offset: int) -> None:
        """Have another dead letter on the topic."""
        topics = Topics(gaps=False)
        topics._clock = time.time()
        letter(topics, offset, b"{}", reason, "as a test would have it")
        [record] = topics.records

        def write(broker: MemoryBroker) -> None:
            log = broker.log((LETTERS, 0))
            log.append(msgspec.structs.replace(record, offset=len(log)))

        self.do(write)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive()


async def fill(broker: MemoryBroker) -> None:
    """Flows, events with runs and without, dead letters of all kinds."""
    now = time.time()
    topics = Topics(3, gaps=False)
    topics._clock = now - 3_000
    for declared in (fulfil, settle):
        value, headers = write_declaration(APP, declare(declared, utc(now - 3_600)))
        topics.append(STATES, 0, value, headers, declared.name.encode())
    epoch = topics.ownership()
    for number in range(46):
        topics._clock = now - 2_800 + number * 60
        name = "fulfil" if number % 3 else "settle"
        event = Origin("/shop", f"event-{number}", "order.created", "orders", 0, number, utc(topics._clock))
        run_id = run_id_of(APP, name, event.source, event.id)
        a_run(topics, run_id, fails=number % 11 == 5, flow=name, event=event, epoch=epoch, key=f"customer-{number % 5}")
        event_record(broker, "orders", event.id, "order.created", {"id": f"o-{number}", "customer": f"customer-{number % 5}"})
    event_record(broker, "orders", "odd", "order.archived", {"id": "o-99"})
    event_record(broker, "orders", "event-47", "order.created", {"id": "o-47", "customer": "c-7", "lines": "many"})
    event_record(broker, "payments", HOSTILE, HOSTILE, {"id": HOSTILE})
    topics._clock = now - 600
    letter(
        topics,
        47,
        b'{"id": "o-47", "customer": "c-7", "lines": "many"}',
        "invalid-parameters",
        "$.lines: expected array, got str",
    )
    letter(topics, 48, b"\x00\x01\xfe\xff PNG \x89 not text at all \x00" * 6, "malformed-data", "invalid start byte at 0")
    letter(topics, 49, HOSTILE.encode(), "malformed-event", HOSTILE)
    letter(topics, 50, b'{"id": "o-50"}', "key-failed", "AttributeError: 'NoneType' object has no attribute 'customer'")
    for record in topics.records:
        broker.log((record.topic, record.partition)).append(record)
    # As an engine does that has taken in all of it.
    intake = broker.source(["orders"], group=f"{APP}.intake")
    await intake.start()
    await intake.poll(timeout_seconds=1.0, max_records=1)
    await intake.commit({("orders", 0): len(broker.log(("orders", 0)))})
    await intake.close()


def letter(topics: Topics, offset: int, value: bytes, reason: str, error: str) -> None:
    details = Details(reason=reason, error=error, origin=Position("orders", 0, offset), at=topics.now().isoformat(), flow=None)
    headers = (("ce_id", f"event-{offset}".encode()), ("ce_source", b"/shop"), ("ce_type", b"order.created"))
    made = write_letter(LETTERS, details, b"customer-7", value, headers, 1_000_000)
    topics.append(LETTERS, 0, made.value, made.headers, made.key)


def event_record(broker: MemoryBroker, topic: str, event_id: str, type: str, data: Any) -> None:
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_source", b"/shop"),
        ("ce_type", type.encode()),
        ("content-type", b"application/json"),
    )
    log = broker.log((topic, 0))
    log.append(Record(topic, 0, len(log), None, msgspec.json.encode(data), headers, int(time.time() * 1000)))
