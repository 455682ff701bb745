"""Flows whose graphs grow while they run; imported by tests, workers and engines."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import engine
from engine import Handle, Retry, RetryableError, TerminalError, fixed, flow, on, task

#: An engine in a process of its own is told its prefix; in the tests' process the app under test moves the topics.
_PREFIX = os.environ.get("TESTED_PREFIX", "")


def note(folder: str, line: str) -> None:
    with Path(folder, "notes").open("a") as notes:
        notes.write(f"{line}\n")


def wait_for(folder: str, name: str) -> None:
    while not Path(folder, name).exists():
        threading.Event().wait(0.01)


# --- Maps ---------------------------------------------------------------------------------------------------------------


@task
def count_to(number: int) -> list[int]:
    return list(range(number))


@task
def one(number: int) -> int:
    return number


@task
def first_stage(value: int, folder: str) -> int:
    """Each but the last element is quick; the last one waits for a file."""
    if Path(folder, f"hold {value}").exists():
        wait_for(folder, "go")
    note(folder, f"first {value}")
    return value


@task
def second_stage(value: int, folder: str) -> int:
    note(folder, f"second {value}")
    return value + 100


@task
def third_stage(value: int, folder: str) -> int:
    note(folder, f"third {value}")
    return value + 1_000


@task
def total(values: list[int]) -> int:
    return sum(values)


@task
def double(value: int) -> int:
    return value * 2


@task
def add(left: int, right: int) -> int:
    return left + right


@flow(on(f"{_PREFIX}stages"))
def stages(number: int, folder: str) -> Any:
    """A map of a length that nobody knows, and two maps on top of it."""
    first = first_stage.map(count_to(number), folder=folder)
    return total(third_stage.map(second_stage.map(first, folder=folder), folder=folder))


@flow(on(f"{_PREFIX}empty"))
def empty(number: int) -> Any:
    return {"known": total(double.map([])), "unknown": total(double.map(double.map(count_to(number))))}


@flow(on(f"{_PREFIX}unequal"))
def unequal(left: int, right: int) -> Any:
    return total(add.map(count_to(left), double.map(count_to(right))))


@flow(on(f"{_PREFIX}unequal"))
def unequal_at_once(left: int, right: int) -> Any:
    return total(add.map(range(left), range(right)))


@flow(on(f"{_PREFIX}generated"))
def generated(number: int) -> Any:
    return total(double.map(value for value in range(number)))


@flow(on(f"{_PREFIX}without"))
def without_length(number: int) -> Any:
    return total(double.map(one(number)))


@flow(on(f"{_PREFIX}wide"))
def wide(number: int) -> Any:
    return total(double.map(count_to(number)))


# --- Tasks that start tasks ---------------------------------------------------------------------------------------------


@task
def fib(number: int) -> Any:
    """Its children unresolved, two levels deep: nobody waits."""
    return number if number < 2 else add.spawn(fib.spawn(number - 1), fib.spawn(number - 2))


@task
def fib_waiting(number: int) -> int:
    if number < 2:
        return number
    left, right = fib_waiting.spawn(number - 1), fib_waiting.spawn(number - 2)
    return left.result() + right.result()


@task
async def fib_async(number: int) -> int:
    if number < 2:
        return number
    left, right = fib_async.spawn(number - 1), fib_async.spawn(number - 2)
    return (await left) + (await right)


_FIBS = {"returned": fib, "waited for": fib_waiting, "awaited": fib_async}


@flow(on(f"{_PREFIX}fibonacci"))
def fibonacci(number: int, how: str = "returned") -> Any:
    return _FIBS[how](number)


@task
def join(left: list[int], pivot: int, right: list[int]) -> list[int]:
    return [*left, pivot, *right]


@task
def sort(values: list[int]) -> Any:
    if len(values) < 2:
        return values
    pivot, rest = values[0], values[1:]
    left, right = [v for v in rest if v < pivot], [v for v in rest if v >= pivot]
    return join.spawn(sort.spawn(left), pivot, sort.spawn(right))


@flow(on(f"{_PREFIX}quicksort"))
def quicksort(values: list[int]) -> Any:
    return sort(values)


@task
def many(number: int) -> Any:
    return total.spawn(double.map(range(number)))


@task
def many_waited_for(number: int) -> int:
    return sum(handle.result() for handle in double.map(range(number)))


@flow(on(f"{_PREFIX}children"))
def children(number: int, waits: bool) -> Any:
    return (many_waited_for if waits else many)(number)


@task
def nested(number: int) -> Any:
    return {"list": [double.spawn(number), add.spawn(double.spawn(number), 1)], "map": double.map([1, 2]), "plain": number}


@task
def look(value: dict[str, Any]) -> dict[str, Any]:
    return value


@flow(on(f"{_PREFIX}nested"))
def nest(number: int) -> Any:
    return look(nested(number))


@task
def mapped_inside(number: int) -> Any:
    return total.spawn(double.map(count_to.spawn(number)))


@flow(on(f"{_PREFIX}inside"))
def map_inside(number: int) -> Any:
    return mapped_inside(number)


@task
def child_when(folder: str, name: str) -> str:
    wait_for(folder, "go")
    note(folder, f"child {name}")
    return name


@task
def leave_behind(folder: str) -> str:
    child_when.spawn(folder, "dropped")
    return "gone"


@flow(on(f"{_PREFIX}outlive"))
def outlive(folder: str) -> Any:
    return leave_behind(folder)


@task
def broken(text: str) -> int:
    raise ValueError(text)


@task
def broken_second(value: int) -> int:
    """Takes what will not be there."""
    return value


@task
def parent_of_broken(how: str) -> Any:
    child = broken.spawn("a broken child")
    if how == "dropped":
        return "never mind"
    if how == "returned":
        return [child, double.spawn(1)]
    if how == "below":
        return broken_second.spawn(child)
    try:
        return child.result()
    except engine.TaskFailed as error:
        if how == "handled":
            return f"handled: {error.message}"
        raise


@task
async def async_parent_of_broken(how: str) -> Any:
    try:
        return await broken.spawn("a broken child")
    except engine.TaskFailed as error:
        if how == "handled":
            return f"handled: {error.message}"
        raise


@flow(on(f"{_PREFIX}broken"))
def break_below(how: str, is_async: bool = False) -> Any:
    return look_at((async_parent_of_broken if is_async else parent_of_broken)(how))


@task
def look_at(value: Any) -> Any:
    return value


@task
def hand_over(run_id: str) -> Any:
    """Uses the handle of another run."""
    return double.spawn(Handle("double", "0", run_id))


@task
def wait_elsewhere(run_id: str) -> Any:
    return Handle("double", "0", run_id).result()


@flow(on(f"{_PREFIX}foreign"))
def foreign(run_id: str, waits: bool) -> Any:
    return (wait_elsewhere if waits else hand_over)(run_id)


@task
def without_end(number: int) -> Any:
    return without_end.spawn(number + 1)


@task
def burst_without_end(number: int) -> Any:
    double.map(range(50))
    return burst_without_end.spawn(number + 1)


@flow(on(f"{_PREFIX}endless"))
def endless(number: int, bursts: bool = False) -> Any:
    return (burst_without_end if bursts else without_end)(number)


@task(retry=Retry(3, wait=fixed(0.05)))
def flaky(folder: str, name: str) -> int:
    number = engine.attempt().number
    note(folder, f"{name} {number}")
    if number < 3:
        raise RuntimeError(f"attempt {number}")
    return number


@task
def parent_of_flaky(folder: str, waits: bool) -> Any:
    children = [flaky.spawn(folder, "a"), flaky.spawn(folder, "b")]
    return sum(child.result() for child in children) if waits else total.spawn(children)


@flow(on(f"{_PREFIX}flaky"))
def persevere_below(folder: str, waits: bool) -> Any:
    return parent_of_flaky(folder, waits)


# --- For takeovers and leaks --------------------------------------------------------------------------------------------


@task
def grow(folder: str, number: int, path: str) -> Any:
    """A binary tree of tasks; leaves on the right side wait for the file ``go``."""
    note(folder, f"grow {path}")
    if number == 0:
        if path.endswith("rr"):
            wait_for(folder, "go")
        note(folder, f"leaf {path}")
        return 1
    return add.spawn(grow.spawn(folder, number - 1, f"{path}l"), grow.spawn(folder, number - 1, f"{path}r"))


@task
def element(value: int, folder: str) -> int:
    """Every tenth waits."""
    note(folder, f"element {value}")
    if value % 10 == 9:
        wait_for(folder, "go")
    return value


@task
def after(value: int, folder: str) -> int:
    note(folder, f"after {value}")
    return value


@flow(on(f"{_PREFIX}trees"))
def tree(folder: str, depth: int) -> Any:
    return grow(folder, depth, "t")


@flow(on(f"{_PREFIX}lists"))
def unknown_map(folder: str, number: int) -> Any:
    return total(after.map(element.map(count_to(number), folder=folder), folder=folder))


@task
def waiting_parent(folder: str) -> int:
    """Waits for children one of which waits for a file."""
    note(folder, "parent")
    children = [child_when.spawn(folder, name) for name in ("x", "y")]
    try:
        return len([child.result() for child in children])
    except Exception:
        note(folder, "lost")
        raise


@flow(on(f"{_PREFIX}parents"))
def wait_below(folder: str) -> Any:
    return waiting_parent(folder)


@task(retry=Retry(2, wait=fixed(0.01)))
def second_time(value: int) -> int:
    if engine.attempt().number == 1:
        raise RuntimeError("the first time")
    return value


@task
def kill_worker_once(folder: str) -> int:
    mark = Path(folder, "killed")
    if not mark.exists():
        mark.touch()
        os._exit(9)
    return 1


@flow(on(f"{_PREFIX}mixed"))
def mixed(shape: str, number: int = 3, folder: str = "") -> Any:
    if shape == "map":
        return total(double.map(count_to(number)))
    if shape == "children":
        return many(number)
    if shape == "waits":
        return fib_waiting(4)
    if shape == "fails":
        return add(broken("mixed"), double(number))
    if shape == "child fails":
        return parent_of_broken("returned")
    if shape == "retries":
        return double(second_time(number))
    if shape == "kills":
        return kill_worker_once(folder)
    if shape == "large":
        return large(20_000)
    return double(number)


@task
def large(size: int) -> str:
    return "x" * size


# --- Retries ------------------------------------------------------------------------------------------------------------


@task(retry=Retry(4, wait=fixed(0.01)))
def give_up(folder: str) -> int:
    note(folder, "give up")
    raise TerminalError("there is no such order")


@task
def ask_later(folder: str) -> float:
    """No policy: the error itself says that another attempt is worth it."""
    note(folder, f"ask {time.time()}")
    if engine.attempt().number == 1:
        raise RetryableError("busy", retry_after_seconds=0.3)
    return 5.0


@task(retry=Retry(3, wait=fixed(0.01), on=(ConnectionError,), unless=(ConnectionRefusedError,)))
def choosy(folder: str, kind: str) -> int:
    note(folder, kind)
    raise {"value": ValueError, "reset": ConnectionResetError, "refused": ConnectionRefusedError}[kind](kind)


@task(retry=Retry(2, wait=fixed(0.01)), timeout_seconds=20.0)
def who_am_i() -> dict[str, Any]:
    attempt = engine.attempt()
    if attempt.number == 1:
        raise RuntimeError(attempt.idempotency_key)
    left = attempt.deadline_at.timestamp() - time.time() if attempt.deadline_at is not None else None
    return {"number": attempt.number, "key": attempt.idempotency_key, "left": left}


@flow(on(f"{_PREFIX}retrying"))
def retrying(what: str, folder: str, kind: str = "") -> Any:
    if what == "give up":
        return give_up(folder)
    if what == "ask later":
        return ask_later(folder)
    if what == "choosy":
        return choosy(folder, kind)
    return who_am_i()
