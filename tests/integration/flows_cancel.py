"""Flows to be cancelled: each task notes in a file that it has begun, and that it was left."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from engine import Retry, fixed, flow, on, sleep, task

#: Of its topics, where it runs in a process of its own.
PREFIX = os.environ.get("TESTED_PREFIX", "")


def note(folder: str, line: str) -> None:
    with (Path(folder) / "notes").open("a") as file:
        file.write(line + "\n")


@task
def spin(folder: str) -> int:
    """Runs until it is stopped."""
    try:
        note(folder, "spin")
        while True:
            time.sleep(0.01)
    finally:
        note(folder, "left spin")


@task
async def wait(folder: str) -> int:
    """The same on the worker's event loop."""
    try:
        note(folder, "wait")
        await asyncio.sleep(3600)
    finally:
        note(folder, "left wait")
    return 1


@task(retry=Retry(2, wait=fixed(3600)))
def fail(folder: str) -> int:
    """Has another attempt in an hour."""
    raise ValueError("not now")


@task
def parent(folder: str) -> int:
    """Waits for its child."""
    try:
        note(folder, "parent")
        return int(spin.spawn(folder).result())
    finally:
        note(folder, "left parent")


@task
def after(folder: str, *values: Any) -> int:
    """Comes after something that is cancelled."""
    note(folder, "after")
    return 1


@flow(on(f"{PREFIX}all"))
def everything(folder: str) -> Any:
    """A run with a task in every condition."""
    return after(folder, spin(folder), wait(folder), fail(folder), parent(folder))


@flow(on(f"{PREFIX}sleepy"))
async def sleepy(folder: str) -> None:
    """Holds a timer and nothing on the cluster."""
    await sleep(3600)
    await after(folder)


@flow(on(f"{PREFIX}keyed", key=lambda event: event.data.folder))
def keyed(folder: str, name: str) -> Any:
    """Runs of one folder go one after the other."""
    return after(folder) if name == "last" else spin(folder)


@flow(on(f"{PREFIX}packed"), pack=True)
def packed(folder: str, name: str) -> str:
    """Holds up those behind it in its parcel, but for those that are free."""
    note(folder, name)
    while name != "free" and not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return name


@flow(on(f"{PREFIX}again"), retry=Retry(2, wait=fixed(3600)))
def again(folder: str) -> None:
    """Has another attempt in an hour."""
    raise ValueError("not now")
