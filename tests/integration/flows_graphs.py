"""Flows of every shape, imported by the tests and by the workers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec

from engine import Event, Retry, fixed, flow, on, task


class Basket(msgspec.Struct):
    first: Any
    rest: list[Any]
    named: dict[str, Any]


class Priced(msgspec.Struct):
    sku: str
    cents: int


@task
def double(value: int) -> int:
    return value * 2


@task
def add(left: int, right: int) -> int:
    return left + right


@task
def total(values: list[int]) -> int:
    return sum(values)


@task
async def later(value: int) -> int:
    return value + 1


@task
def price(sku: str) -> Priced:
    return Priced(sku, len(sku))


@task
def weigh(basket: Basket) -> dict[str, Any]:
    return {"first": basket.first.cents, "rest": sum(p.cents for p in basket.rest), "named": basket.named}


@task
def fail(value: int) -> int:
    raise ValueError(f"no {value} here")


@task
def note(folder: str, name: str) -> str:
    """Append a line to a file: what ran, how often."""
    with Path(folder, "notes").open("a") as notes:
        notes.write(f"{name}\n")
    return name


@task(retry=Retry(3, wait=fixed(0.05)))
def succeed_at(attempt: int, folder: str) -> int:
    note(folder, "attempt")
    attempts = len(Path(folder, "notes").read_text().splitlines())
    if attempts < attempt:
        raise RuntimeError(f"attempt {attempts}")
    return attempts


@task(timeout_seconds=0.1)
def spin() -> None:
    while True:
        threading.Event().wait(0.01)


@task(timeout_seconds=0.1)
async def wait_for_ever() -> None:
    import asyncio

    await asyncio.Event().wait()


@task
def wait_for(folder: str, name: str) -> str:
    """Return when the file is there, or ``go``, which comes when the test is over."""
    note.function(folder, f"begin {name}")
    while not Path(folder, name).exists() and not Path(folder, "go").exists():
        threading.Event().wait(0.01)
    note.function(folder, f"end {name}")
    return name


@task
def double_when(value: int, folder: str) -> int:
    """Return when the file of that name is there."""
    wait_for.function(folder, str(value))
    return value * 2


@task(retry=Retry(2, wait=fixed(0.05)))
def fail_first(folder: str) -> int:
    """Fail when the file "first" is there, on the second attempt return when "second" is."""
    attempt = "second" if Path(folder, "has failed").exists() else "first"
    wait_for.function(folder, attempt)
    if attempt == "first":
        Path(folder, "has failed").touch()
        raise RuntimeError("the first time")
    return 5


@task
def large(size: int) -> str:
    return "x" * size


@task
def unencodable() -> complex:
    return 1 + 2j


@flow(on("numbers"))
def one(value: int) -> Any:
    return double(value)


@flow(on("numbers"))
def two(value: int) -> Any:
    return add(double(value), 1)


@flow(on("numbers", type="number.*"))
def three(event: Event[dict[str, int]]) -> Any:
    return later(event.data["value"])


@flow(on("diamonds"))
def diamond(value: int) -> Any:
    top = double(value)
    return add(add(top, 1), add(top, 2))


@flow(on("maps"))
def spread(values: list[int]) -> Any:
    return total(double.map(values))


@flow(on("baskets"))
def carry(skus: list[str]) -> Any:
    first, *rest = price.map(skus)
    return weigh(Basket(first=first, rest=rest, named={"doubled": double(4)}))


@flow(on("baskets"))
def composite(skus: list[str]) -> Any:
    return {"priced": price.map(skus), "count": len(skus), "deep": [{"later": later(1)}]}


@flow(on("plain"))
def plain(value: int) -> Any:
    return {"value": value}


@flow(on("failures"))
def break_down(value: int) -> Any:
    broken = fail(value)
    after = add(broken, 1)
    beside = double(value)
    return {"after": double(after), "beside": beside}


@flow(on("retries"))
def persevere(attempt: int, folder: str) -> Any:
    return double(succeed_at(attempt, folder))


@flow(on("timeouts"))
def overrun(kind: str) -> Any:
    return spin() if kind == "spin" else wait_for_ever()


@flow(on("keyed", key=lambda event: event.data.customer))
def in_turn(customer: str, folder: str, name: str) -> Any:
    return wait_for(folder, name)


@flow(on("waiting"))
def spread_when(values: list[int], folder: str) -> Any:
    return total(double_when.map(values, folder=folder))


@flow(on("waiting"))
def second_time(folder: str) -> Any:
    return double(fail_first(folder))


@flow(on("large"))
def outgrow(size: int) -> Any:
    return large(size)


@flow(on("complex"))
def keep() -> Any:
    return unencodable()
