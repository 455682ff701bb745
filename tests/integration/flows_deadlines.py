"""Tasks that no exception stops, imported by the tests and by the workers."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine import Retry, RetryableError, TerminalError, attempt, fixed, flow, on, task


def _note(folder: str, line: str) -> None:
    with Path(folder, "notes").open("a") as notes:
        notes.write(f"{line}\n")


@task(timeout_seconds=0.3)
def sleep_long(folder: str) -> None:
    _note(folder, f"sleep {threading.get_native_id()}")
    time.sleep(60)  # in C and outside the interpreter's lock: no exception gets in


@task
def keep_busy(folder: str, number: int) -> int:
    _note(folder, f"begin {number}")
    until = Path(folder, "go")
    while not until.exists():
        threading.Event().wait(0.01)
    return number


@task
def add_all(numbers: list[int]) -> int:
    return sum(numbers)


@task(timeout_seconds=0.3)
def backtrack(folder: str) -> None:
    _note(folder, "backtrack")
    re.match(r"(a+)+$", "a" * 60 + "b")  # in C with the interpreter's lock: nothing else in the process gets on


@task(timeout_seconds=0.3, retry=Retry(2, wait=fixed(0.01), on=TimeoutError))
async def backtrack_once(folder: str) -> int:
    """The same on the worker's event loop; its second attempt is quick."""
    _note(folder, "backtrack")
    if attempt().number == 1:
        re.match(r"(a+)+$", "a" * 60 + "b")
    return attempt().number


@task(timeout_seconds=0.3)
async def stay(folder: str) -> None:
    _note(folder, "stay")
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


@task(retry=Retry(5, wait=fixed(0.01)))
def give_up(folder: str) -> None:
    _note(folder, "give up")
    raise TerminalError("there is no such order")


@task(retry=Retry(3, wait=fixed(60), on=OSError))
def come_back(folder: str) -> dict[str, Any]:
    mine = attempt()
    _note(folder, mine.idempotency_key)
    if mine.number < 3:
        raise RetryableError("busy", retry_after_seconds=0.01)
    return {"number": mine.number, "key": mine.idempotency_key}


@task(retry=Retry(5, wait=fixed(0.01), on=(OSError, KeyError), unless=FileNotFoundError))
def choose(folder: str) -> None:
    _note(folder, "choose")
    if len(Path(folder, "notes").read_text().splitlines()) < 2:
        raise KeyError("again")
    raise FileNotFoundError("gone")


@flow(on("stuck"))
def oversleep(folder: str) -> Any:
    return sleep_long(folder)


@flow(on("beside"))
def beside(folder: str, count: int) -> Any:
    return add_all([keep_busy(folder, number) for number in range(count)])


@flow(on("hung"))
def hang(folder: str) -> Any:
    return backtrack(folder)


@flow(on("hung"))
def hang_once(folder: str) -> Any:
    return backtrack_once(folder)


@flow(on("stays"))
def overstay(folder: str) -> Any:
    return stay(folder)


@flow(on("terminal"))
def terminal(folder: str) -> Any:
    return give_up(folder)


@flow(on("retryable"))
def retryable(folder: str) -> Any:
    return come_back(folder)


@flow(on("chosen"))
def chosen(folder: str) -> Any:
    return choose(folder)
