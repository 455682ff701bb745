"""The flows that the benchmarks run, and the same work as plain functions for the hand-written loop."""

from __future__ import annotations

import time

from engine import flow, on, task


def work(number: int) -> int:
    return number * 2


@task
def double(number: int) -> int:
    return work(number)


@task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@flow(on("bench-engine", type="one"))
def one(number: int):  # type: ignore[no-untyped-def]
    return double(number)


@flow(on("bench-engine", type="wide"))
def wide(number: int):  # type: ignore[no-untyped-def]
    return total(double.map(list(range(number))))


def timed(number: int) -> float:
    """When it began, for the loop's latency; the engine tells that in RUNNING."""
    return time.time()
