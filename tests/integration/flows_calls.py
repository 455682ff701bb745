"""Tasks that are called with odd things, and one that is tried again after waits of chance. Imported by tests and workers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from engine import Retry, flow, jittered, on, task, unmapped

#: More than a message of Dask's takes at once.
HUGE = 20_000_000


class Sour:
    """Can be pickled, and not made again from that."""

    def __reduce__(self) -> Any:
        return spoil, ("milk",)


def spoil(what: str) -> None:
    raise LookupError(f"{what} is sour")


@task
def double(value: int) -> int:
    return 2 * value


@task
def total(values: list[int]) -> int:
    return sum(values)


@task
def spread_inside(number: int, waits: bool) -> Any:
    """A map over a generator, inside a task: waited for there, or returned."""
    elements = double.map(value for value in range(number))
    return sum(handle.result() for handle in elements) if waits else total.spawn(elements)


@task
def measure(what: Any) -> int:
    return len(what)


@task
def pick(place: int, table: list[bytes]) -> int:
    return len(table[place])


@task
def lock_inside() -> Any:
    return measure.spawn(threading.Lock())


@task(retry=Retry(4, wait=jittered(0.05, max_seconds=0.2)))
def falter(folder: str) -> int:
    with Path(folder, "notes").open("a") as notes:
        notes.write("tried\n")
    tried = len(Path(folder, "notes").read_text().splitlines())
    if tried < 4:
        raise RuntimeError("not yet")
    return tried


@flow(on("generators"))
def generators(number: int, waits: bool) -> Any:
    return spread_inside(number, waits)


@flow(on("huge"))
def huge() -> Any:
    """One call with much, and many that share it."""
    return [measure(b"x" * HUGE), pick.map([0, 1, 2], unmapped([b"", b"y" * HUGE, b"zz"]))]


@flow(on("shared"))
def shared() -> Any:
    """A handle that all elements take whole, beside one that is walked."""
    values = [double(1), double(2)]
    return [total.map([values, values]), pick.map(range(2), unmapped([b"a", b"bb"]))]


@flow(on("locked"))
def locked() -> Any:
    return measure(threading.Lock())


@flow(on("locked"))
def locked_below() -> Any:
    return lock_inside()


@flow(on("locked"))
def sour() -> Any:
    return measure(Sour())


@flow(on("chances"))
def chances(folder: str) -> Any:
    return falter(folder)
