"""Packed flows that fail, die, wait and outgrow; imported by tests and workers."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from engine import Retry, attempt, fixed, flow, on, task

_PREFIX = os.environ.get("TESTED_PREFIX", "")


@task
def double(number: int) -> int:
    return number * 2


@task
def act(number: int, how: str, folder: str) -> int:
    """Note that it ran, then do as it is told."""
    with Path(folder, "notes").open("a") as notes:
        notes.write(f"{number}\n")
    if how == "fails":
        raise ValueError("no")
    if how == "dies":
        os._exit(9)
    while how == "waits" and not Path(folder, "go").exists():
        threading.Event().wait(0.01)
    return number + 1


@task(timeout_seconds=0.2)
def sleep_on(seconds: float) -> None:
    time.sleep(seconds)  # one call into C: nothing stops it


@task(timeout_seconds=0.3, retry=Retry(2, wait=fixed(0.01), on=TimeoutError))
def search(folder: str, number: int, how: str) -> int:
    """Its first attempt is in C with the interpreter's lock, if it is told so: nothing else in the process gets on."""
    with Path(folder, "notes").open("a") as notes:
        notes.write(f"search {number}\n")
    if how == "hangs" and attempt().number == 1:
        re.match(r"(a+)+$", "a" * 60 + "b")
    return number


@task(retry=Retry(3, wait=fixed(0.05)))
def third_time(folder: str, name: str) -> int:
    with Path(folder, name).open("a") as tries:
        tries.write("x")
    if len(Path(folder, name).read_text()) < 3:
        raise RuntimeError("not yet")
    return 3


@flow(on(f"{_PREFIX}small"), pack=True)
def small(number: int, how: str, folder: str) -> Any:
    return double(act(number, how, folder))


@flow(on(f"{_PREFIX}plain"))
def unpacked(number: int, how: str, folder: str) -> Any:
    return double(act(number, how, folder))


@flow(on(f"{_PREFIX}stuck"), pack=True)
def stuck(seconds: float) -> Any:
    return sleep_on(seconds) if seconds else double(1)


@flow(on(f"{_PREFIX}hung"), pack=True)
def hung(number: int, how: str, folder: str) -> Any:
    return double(search(folder, number, how))


@flow(on(f"{_PREFIX}tries"), pack=True)
def tries(folder: str, name: str) -> Any:
    return double(third_time(folder, name))


@flow(on(f"{_PREFIX}held"), pack=True)
def large_or_held(folder: str, name: str) -> str:
    while name == "held" and not Path(folder, "go").exists():
        time.sleep(0.01)
    return name * 20_000 if name == "large" else name


@flow(on(f"{_PREFIX}large"), pack=True)
def large(size: int) -> Any:
    return "x" * size
