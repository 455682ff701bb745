"""A slow flow and a quick one on the same topic. What is slow does not go on before a file called ``go`` is there."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from engine import flow, on, task

#: An engine in a process of its own is told its prefix; in the tests' process the app under test moves the topics.
_PREFIX = os.environ.get("TESTED_PREFIX", "")


@task
def work(folder: str, number: int) -> int:
    while not Path(folder, "go").exists():
        threading.Event().wait(0.005)
    return number


@task
def echo(number: int) -> int:
    return number


@task
def note(folder: str, number: int) -> int:
    """Note that it ran; slow, too, once it may go on, so that a test finds some that have not ended."""
    with Path(folder, "notes").open("a") as file:
        file.write(f"{number}\n")
    while not Path(folder, "go").exists():
        threading.Event().wait(0.005)
    threading.Event().wait(0.02)
    return number


@flow(on("numbers", type="slow"), max_open_runs=2)
def slow(folder: str, number: int) -> Any:
    """Two of the four places of the workers, until it may go on."""
    return work(folder, number)


@flow(on("numbers", type="keyed", key=lambda event: event.data.person))
def keyed(folder: str, number: int, person: str) -> Any:
    return work(folder, number)


@flow(on("numbers", type="quick"))
def quick(number: int) -> Any:
    return echo(number)


@flow(on(f"{_PREFIX}notes"))
def noted(folder: str, number: int) -> Any:
    return note(folder, number)
