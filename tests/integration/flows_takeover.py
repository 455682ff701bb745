"""Flows whose engine is killed under them; what ran is appended to a file. Imported by tests, workers and engines."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from engine import Retry, fixed, flow, on, task

#: An engine in a process of its own is told its prefix; in the tests' process the app under test moves the topics.
_PREFIX = os.environ.get("TESTED_PREFIX", "")


@task
def step(folder: str, number: int, waits: bool) -> int:
    """Note that it ran; one that waits goes on when the file ``go`` is there."""
    _note(folder, f"begin {number}")
    while waits and not Path(folder, "go").exists():
        threading.Event().wait(0.01)
    _note(folder, f"end {number}")
    return number


@task
def follow(folder: str, number: int, before: int) -> int:
    _note(folder, f"begin {number}")
    return before + 100


@task
def total(folder: str, values: list[int]) -> int:
    _note(folder, "total")
    return sum(values)


@task(retry=Retry(2, wait=fixed(3_600.0)))
def fail_first(folder: str) -> int:
    _note(folder, "attempt")
    if Path(folder, "notes").read_text().count("attempt") == 1:
        raise RuntimeError("the first time")
    return 7


@task
def fail(folder: str) -> int:
    _note(folder, "fail")
    raise ValueError("a stone in the way")


@flow(on(f"{_PREFIX}retries"))
def persevere(folder: str) -> Any:
    return total(folder, [fail_first(folder)])


@flow(on(f"{_PREFIX}stumbles"))
def stumble(folder: str) -> Any:
    """One task fails at once, another waits; the sum needs both."""
    return total(folder, [fail(folder), step(folder, 0, True)])


@flow(on(f"{_PREFIX}climbs"))
def climb(folder: str, steps: int, waiting: int) -> Any:
    """``steps`` pairs of tasks and a sum; the last ``waiting`` of them wait for the file ``go``."""
    first = [step(folder, n, n >= steps - waiting) for n in range(steps)]
    second = [follow(folder, 1_000 + n, before) for n, before in enumerate(first)]
    return total(folder, second)


@flow(on(f"{_PREFIX}singles"))
def single(folder: str, number: int) -> Any:
    return step(folder, number, False)


def _note(folder: str, line: str) -> None:
    with Path(folder, "notes").open("a") as notes:
        notes.write(f"{line}\n")
