"""Flows whose worker, scheduler or Kafka dies under them; what ran is appended to a file. Imported by tests and workers."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import engine
from engine import Retry, fixed, flow, on, task


@task
def quick(folder: str, name: str) -> str:
    _note(folder, name)
    return name


@task
def after(folder: str, before: str) -> str:
    _note(folder, f"after {before}")
    return f"after {before}"


@task(persist=True)
def treasure(folder: str) -> int:
    _note(folder, "treasure")
    return 40


@task
def hold(folder: str, stored: int) -> int:
    """Goes on when the file ``go`` is there."""
    _note(folder, f"hold {os.getpid()}")
    while not Path(folder, "go").exists():
        threading.Event().wait(0.01)
    return stored + 2


@task
def parent(folder: str) -> Any:
    """Starts two children, and one more where the file ``go`` is there."""
    children = [quick.spawn(folder, f"child {n}") for n in range(2)]
    for child in children:
        child.result()
    hold.function(folder, 0)
    return [*children, quick.spawn(folder, "late child")]


@flow(on("families"))
def family(folder: str) -> Any:
    return parent(folder)


@flow(on("anchors", type="anchor.dropped"))
async def anchor(topic: str) -> str:
    """Waits, with nothing on the cluster, until it is weighed."""
    await engine.wait_for_event(topic, type="anchor.weighed")
    return "afloat"


@flow(on("voyages"))
def voyage(folder: str) -> Any:
    """Eight tasks that nobody needs when they have ended, one whose result is kept, and one that waits with it."""
    for n in range(4):
        after(folder, quick(folder, f"quick {n}"))
    return hold(folder, treasure(folder))


@task(retry=Retry(2, wait=fixed(0.01)))
def stumble(folder: str) -> str:
    """Its first worker is killed, its second attempt fails: one of the two that it has."""
    _note(folder, f"hold {os.getpid()}")
    begun = Path(folder, "notes").read_text().count("hold")
    while begun == 1:
        threading.Event().wait(0.01)
    if begun == 2:
        raise ConnectionError("once")
    return "there"


@flow(on("stumbles"))
def trip(folder: str) -> str:
    return stumble(folder)


@flow(on("splits"))
def split(folder: str, parts: int) -> Any:
    """Many tasks, and one that names each of them as its parent."""
    return count(folder, [quick(folder, str(n)) for n in range(parts)])


@task
def count(folder: str, values: list[str]) -> int:
    return len(values)


def _note(folder: str, line: str) -> None:
    with Path(folder, "notes").open("a") as notes:
        notes.write(f"{line}\n")
