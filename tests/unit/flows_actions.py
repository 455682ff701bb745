"""Flows that people act on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine import flow, on, task, unmapped


class Work(msgspec.Struct):
    folder: str
    broken: bool = False


def note(folder: str, name: str) -> None:
    with (Path(folder) / "notes").open("a") as notes:
        notes.write(f"{name}\n")


@task(persist=True)
def load(folder: str) -> list[int]:
    note(folder, "load")
    return [1, 2, 3]


@task
def scale(folder: str, factor: int) -> int:
    note(folder, "scale")
    return factor


@task(persist=True)
def price(folder: str, value: int, factor: int) -> int:
    note(folder, f"price {value}")
    if (Path(folder) / "broken").exists() and value == 2:
        raise ValueError("no price")
    return value * factor


@task(persist=True)
def total(folder: str, prices: Sequence[int]) -> int:
    note(folder, "total")
    return sum(prices)


@flow(on("work"))
def work(work: Work) -> object:
    factor = scale(work.folder, 10)
    prices = price.map(unmapped(work.folder), load(work.folder), unmapped(factor))
    return total(work.folder, prices)


@flow(on("counts"), pack=True)
def count(value: int, by: int = 1) -> int:
    return value + by


@flow(on("picky", where=lambda event: event.data.value > 5))
def picky(value: int) -> int:
    return value
