"""The packed flow; a module of its own, because only the commands that ask for it need ``pack=True``."""

from __future__ import annotations

import time

from engine import flow, on, task


@task
def double(number: int) -> int:
    return number * 2


@flow(on("bench-engine", type="packed"), pack=True)
def packed(number: int):  # type: ignore[no-untyped-def]
    return double(number)


@task
def drag(number: int) -> int:
    time.sleep(0.0015)  # stands for work that waits for something else than a core
    return number


@flow(on("bench-engine", type="sluggish"), pack=True)
def sluggish(number: int):  # type: ignore[no-untyped-def]
    return drag(number)


@task
def wait(number: int) -> int:
    time.sleep(0.05)
    return number


@flow(on("bench-engine", type="slow"))
def slow(number: int):  # type: ignore[no-untyped-def]
    return wait(number)
