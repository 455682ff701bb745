"""The flows that the benchmarks run, and the same work as plain functions for what is written by hand."""

from __future__ import annotations

import time

from engine import flow, on, task

TOPIC = "bench-engine"
#: How long a task of ``depth`` works.
WORK_SECONDS = 0.1


def work(number: int) -> int:
    return number * 2


def add(left: int, right: int) -> int:
    return left + right


def timed(number: int) -> float:
    """When it began, for the loop's latency; the engine tells that in RUNNING."""
    return time.time()


def slow(number: int) -> int:
    time.sleep(WORK_SECONDS)  # stands for work that waits for something else than a core
    return number


@task
def double(number: int) -> int:
    return work(number)


@task
def left(number: int) -> int:
    return work(number)


@task
def right(number: int) -> int:
    return work(number)


@task
def both(first: int, second: int) -> int:
    return add(first, second)


@task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@task
def listing(number: int) -> list[int]:
    return list(range(number))


@task
def first(number: int) -> int:
    return slow(number)


@task
def second(number: int) -> int:
    return slow(number)


@flow(on(TOPIC, type="one"))
def one(number: int):  # type: ignore[no-untyped-def]
    return double(number)


@flow(on(TOPIC, type="three"))
def three(number: int):  # type: ignore[no-untyped-def]
    return both(left(number), right(number))


@flow(on(TOPIC, type="wide"))
def wide(number: int):  # type: ignore[no-untyped-def]
    return total(double.map(list(range(number))))


@flow(on(TOPIC, type="depth"))
def depth(number: int):  # type: ignore[no-untyped-def]
    return total(second.map(first.map(listing(number))))


@flow(on(TOPIC, type="depth-known"))
def depth_known(number: int):  # type: ignore[no-untyped-def]
    """The length is known when the event comes: what can be measured without maps over handles."""
    listing(number)
    return total(second.map(first.map(list(range(number)))))
