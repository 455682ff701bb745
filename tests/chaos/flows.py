"""Flows of the trials, of every shape; each execution of a task leaves lines in the ledger of side effects.

Imported by engines, workers and tests; where the ledger is, and what the topics begin with, the environment says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

import engine
from engine import Retry, fixed, flow, on, task
from tests.chaos.histories import Effect

#: Names the ledger's file.
EFFECTS = "CHAOS_EFFECTS"
_PREFIX = os.environ.get("TESTED_PREFIX", "")


@contextmanager
def effect() -> Iterator[int]:
    """Note that this attempt begins, and how it ends; gives the number of the attempt."""
    attempt = engine.attempt()
    identity = (attempt.run_id, attempt.task_run_id, attempt.number, os.getpid())
    _append(Effect("start", *identity, time.time()))
    try:
        yield attempt.number
    except BaseException:
        _append(Effect("raised", *identity, time.time()))
        raise
    _append(Effect("done", *identity, time.time()))


def _append(line: Effect) -> None:
    # One write to a file opened for appending is whole, whoever else writes; and it is on the disk before the task goes on.
    file = os.open(os.environ[EFFECTS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, msgspec.json.encode(line) + b"\n")
        os.fsync(file)
    finally:
        os.close(file)


@task
def work(number: int, seconds: float) -> int:
    with effect():
        time.sleep(seconds)
        return number + 1


@task
def count(number: int) -> list[int]:
    with effect():
        return list(range(number))


@task
def total(values: list[int]) -> int:
    with effect():
        return sum(values)


@task(retry=Retry(2, wait=fixed(0.1)))
def stumble(number: int, is_hopeless: bool) -> int:
    with effect() as attempt:
        if is_hopeless or attempt == 1:
            raise ValueError(f"attempt {attempt} of {number}")
        return number


@task
def branch(depth: int, seconds: float) -> Any:
    with effect():
        time.sleep(seconds)
        return total.spawn([branch.spawn(depth - 1, seconds), branch.spawn(depth - 1, seconds)]) if depth else 1


@flow(on(f"{_PREFIX}single"))
def single(number: int, seconds: float) -> Any:
    return work(number, seconds)


@flow(on(f"{_PREFIX}chain", key=lambda event: str(event.data.number % 7)))
def chain(number: int, seconds: float) -> Any:
    """In order, as it has a key."""
    return work(work(work(number, seconds), seconds), seconds)


@flow(on(f"{_PREFIX}wide"))
def wide(number: int, seconds: float) -> Any:
    return total(work.map(count(number), seconds=seconds))


@flow(on(f"{_PREFIX}slow"))
async def slow(number: int, seconds: float) -> Any:
    first = await work(number, seconds)
    await engine.sleep(seconds)
    return await work(first, seconds)


@flow(on(f"{_PREFIX}small"), pack=True)
def small(number: int, seconds: float) -> Any:
    return work(work(number, 0.0), 0.0)


@flow(on(f"{_PREFIX}bad"), on_failure="dead-letter")
def bad(number: int, seconds: float) -> Any:
    """Odd ones fail for good, even ones the first time."""
    return work(stumble(number, number % 2 == 1), seconds)


@flow(on(f"{_PREFIX}tree"))
def tree(number: int, seconds: float) -> Any:
    return branch(2, seconds)


@task
def dawdle(number: int) -> int:
    """At work for so many seconds, unless it is stopped."""
    with effect():
        until = time.monotonic() + number
        while time.monotonic() < until:
            time.sleep(0.02)
        return number


@task(persist=True)
def keep(number: int, seconds: float) -> int:
    with effect():
        time.sleep(seconds)
        return number * 2


@flow(on(f"{_PREFIX}long"))
async def long(number: int, seconds: float) -> Any:
    """Long enough to be cancelled: odd ones asleep, even ones at work."""
    first = await work(number, seconds)
    if number % 2:
        await engine.sleep(number)
    else:
        await dawdle(number)
    return await work(first, seconds)


@flow(on(f"{_PREFIX}kept"))
def kept(number: int, seconds: float) -> Any:
    """Run again from ``work`` on it takes what ``keep`` has stored."""
    return work(keep(number, seconds), seconds)


#: A second flow on the events of ``single``: one event, two runs.
@flow(on(f"{_PREFIX}single"))
def shadow(number: int, seconds: float) -> Any:
    return work(number, 0.0)


@flow(on(f"{_PREFIX}vigil"))
async def vigil(number: int, seconds: float) -> Any:
    """Open for the whole trial: it waits for an event that comes last of all."""
    first = await work(number, seconds)
    await engine.wait_for_event(f"{_PREFIX}wake")
    return await work(first, seconds)


#: Topic (without its prefix): the flows that its events start.
STARTS = {
    "single": ("single", "shadow"),
    "chain": ("chain",),
    "wide": ("wide",),
    "slow": ("slow",),
    "small": ("small",),
    "bad": ("bad",),
    "tree": ("tree",),
    "long": ("long",),
    "kept": ("kept",),
}
#: Flows whose failed runs become dead letters.
LETTERED = ("bad",)
