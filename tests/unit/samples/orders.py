"""Flows and tasks for the unit tests: every way of binding, and tasks that do what tasks should not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import threading
from datetime import datetime
from typing import Any, NotRequired, TypedDict

import msgspec

from engine import Attempt, EngineError, Event, Retry, RetryableError, TerminalError, attempt, fixed, flow, on, task


class Line(msgspec.Struct):
    sku: str
    count: int = 1


class Order(msgspec.Struct):
    id: str
    lines: list[Line] = []


@dataclasses.dataclass
class Reading:
    sensor: str
    value: float = 0.0


class Account(TypedDict):
    name: str
    age: NotRequired[int]


@task
def double(value: int) -> int:
    """Twice the value."""
    return value * 2


@task
def add(left: int, right: int = 0) -> int:
    return left + right


@task(name="billing.total", retry=Retry(3, wait=fixed(0.5)), timeout_seconds=30)
def total(values: list[int]) -> int:
    return sum(values)


@task
async def later(value: int) -> int:
    return value + 1


@flow(on("orders"))
def whole(order: Order) -> Any:
    return order


@flow(on("orders"))
def several(id: str, count: int = 1, tags: list[str] = ["new"]) -> Any:  # noqa: B006  # a default must not be shared
    return (id, count, tags)


@flow(on("orders"))
def entire(event: Event[Order]) -> Any:
    return event


@flow(on("orders"))
def raw(event: Event) -> Any:  # type: ignore[type-arg]
    return event


@flow(on("orders"))
def nothing() -> Any:
    return None


@flow(on("orders"))
def reading(reading: Reading) -> Any:
    return reading


@flow(on("orders"))
def account(account: Account) -> Any:
    return account


@flow(on("orders"))
def perhaps(order: Order | None) -> Any:
    return order


@flow(on("orders"))
def keyword(*, at: datetime) -> Any:
    return at


@flow(on("orders"))
def doubled(value: int) -> int:
    return double(value)


class BrokenTextError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class UnpicklableError(Exception):
    """Holds what no process can send."""

    def __init__(self) -> None:
        super().__init__("cannot travel")
        self.held = lambda: None


@task
def raises(kind: str) -> None:
    if kind == "exit":
        sys.exit(3)
    raise {
        "value": ValueError("bad value"),
        "text": BrokenTextError(),
        "pickle": UnpicklableError(),
        "name": OSError("\udcff"),
    }[kind]


@task
async def raises_later(kind: str) -> None:
    raises(kind)


@task(timeout_seconds=0.05)
def spins() -> None:
    while True:
        try:
            while True:
                pass
        except Exception:  # a task that goes on whatever happens
            continue


@task(timeout_seconds=0.05)
async def waits() -> None:
    import asyncio

    await asyncio.Event().wait()


@task
def unencodable() -> Any:
    return {1, object()}


@task
def large(size: int) -> str:
    return "x" * size


@task
def bound() -> dict[str, Any]:
    """What the log lines of this task carry, after it has bound something of its own."""
    import structlog

    before = structlog.contextvars.get_contextvars()
    structlog.contextvars.bind_contextvars(left_over=1)
    return before


@task(timeout_seconds=30)
def tells() -> Attempt:
    return attempt()


@task
async def tells_later() -> Attempt:
    return attempt()


@task(retry=Retry(3, on=OSError))
def raises_for_retry(kind: str) -> None:
    raise {
        "terminal": TerminalError("no such order"),
        "retryable": RetryableError("busy", retry_after_seconds=7),
        "on": ConnectionError("lost"),
        "other": ValueError("bad value"),
    }[kind]


@task(timeout_seconds=0.05)
def is_stuck(told: threading.Event) -> str:
    """Comes back when it was told stuck, and not before."""
    while not told.is_set():
        with contextlib.suppress(BaseException):
            told.wait(30)
    return "after all"


@task
def listing(length: int) -> list[int]:
    return list(range(length))


@task
def holds_a_lock() -> Any:
    return threading.Lock()


@task
def splits(value: int) -> Any:
    """Returns what its children are still at."""
    return {"halves": [double.spawn(value), double.spawn(value + 1)], "of": value}


@task
async def splits_later(value: int) -> Any:
    return [double.spawn(value)]


@task
def drops(value: int) -> str:
    double.spawn(value)
    return "dropped"


@task
def asks(value: int) -> int:
    """Waits for its child."""
    got: int = double.spawn(value).result()
    return got + 1


@task
def asks_for_trouble() -> str:
    """Waits for a child that fails, and deals with it."""
    try:
        raises.spawn("value").result()
    except EngineError as error:
        return f"dealt with {error}"
    return "nothing"


@task
def maps(length: int) -> Any:
    return total.spawn(add.map(listing.spawn(length), right=10))


@flow(on("orders"))
def split(value: int) -> Any:
    return splits(value)


@flow(on("orders"))
def asked(value: int) -> Any:
    return [asks(value), asks_for_trouble()]


@flow(on("orders"))
def mapped(length: int) -> Any:
    return total(add.map(double.map(listing(length)), listing(length)))


@flow(on("orders"))
def mapped_in_task(length: int) -> Any:
    return maps(length)


@task
async def stays(seconds: float) -> None:
    """Goes on for so long, also when it is cancelled."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(until - loop.time())
