"""The packed flow; a module of its own, because only the commands that ask for it need ``pack=True``."""

from __future__ import annotations

from engine import flow, on, task


@task
def double(number: int) -> int:
    return number * 2


@flow(on("bench-engine", type="packed"), pack=True)
def packed(number: int):  # type: ignore[no-untyped-def]
    return double(number)
