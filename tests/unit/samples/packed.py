"""Packed flows for the unit tests: what they call, and what those calls should not do."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import sys
import threading
from typing import Any

import msgspec
import structlog

from engine import Retry, attempt, fixed, flow, now, on, random, sleep, task, wait_for_event
from tests.unit.samples.orders import add, double, later, raises, raises_later, spins

#: How often each thing was done, by name; cleared by the tests.
done: collections.Counter[str] = collections.Counter()
#: Set by a test that wants a run to go on.
gate = threading.Event()


class Box(msgspec.Struct):
    content: Any


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any = None


Point = collections.namedtuple("Point", "x y")  # the oldest kind of container is tried, too


@task
def same(value: Any) -> Any:
    """The value as it got here."""
    done["same"] += 1
    return value


@task
def total(values: list[int]) -> int:
    return sum(values)


@task
def numbers(count: int) -> list[int]:
    return list(range(count))


@task
def makes_function() -> Any:
    done["makes_function"] += 1
    return lambda value: value


@task
def calls(function: Any, value: int) -> Any:
    return function(value)


@task
def refuse_odd(value: int) -> int:
    done["refuse_odd"] += 1
    if value % 2:
        raise ValueError(f"{value} is odd")
    return value


def _flaky(name: str, failures: int) -> int:
    done[name] += 1
    if done[name] <= failures:
        raise ConnectionError(f"attempt {done[name]} of {name}")
    return done[name]


@task(retry=Retry(3, wait=fixed(0.001)))
def soon(failures: int) -> int:
    return _flaky("soon", failures)


@task(retry=Retry(3, wait=fixed(60.0)))
def patient(failures: int) -> int:
    return _flaky("patient", failures)


@task(retry=Retry(3, wait=fixed(90.0)))
def more_patient(failures: int) -> int:
    return _flaky("more_patient", failures)


@task(retry=Retry(3, wait=fixed(0.001)))
async def soon_async(failures: int) -> int:
    return _flaky("soon_async", failures)


@task
async def meet() -> bool:
    """Comes back once two have come."""
    barrier: Any = done["barrier"]
    await barrier.wait()
    return True


@task(timeout_seconds=0.01)
async def hangs() -> None:
    await asyncio.Event().wait()


@task
def logged() -> dict[str, Any]:
    """What log lines of this task carry; then binds something of its own."""
    before = structlog.contextvars.get_contextvars()
    structlog.contextvars.bind_contextvars(left_over=1)
    return before


@task
def calls_another(value: int) -> int:
    """Inside a task, another one is the plain function."""
    return double(value) + 1


@task
def parent(value: int) -> Any:
    """Returns what it has started, unresolved."""
    two = double.spawn(value)
    return [two, double.spawn(two)]


@task
def waiting_parent(value: int) -> Any:
    return double.spawn(double.spawn(value).result()).result() + double(value)


@task
def mapping_parent(value: int) -> Any:
    return double.map(list(range(value + 2)))


@task
async def async_parent(value: int) -> Any:
    one = later.spawn(value)
    return later.spawn(await later.spawn(one))


@task
def parent_of_failing(kind: str) -> Any:
    return raises.spawn(kind)


@task
def parent_of_patient(failures: int) -> Any:
    done["parent_of_patient"] += 1
    return [same.spawn("child"), patient.spawn(failures)]


@flow(on("x"), pack=True)
def spawning(value: int) -> Any:
    return [parent(value), waiting_parent(value), mapping_parent(value), async_parent(value)]


@flow(on("x"), pack=True)
async def spawning_async(value: int) -> Any:
    return [await parent(value), waiting_parent(value), mapping_parent(value), async_parent(value)]


@flow(on("x"), pack=True)
def child_fails(kind: str) -> Any:
    return same(parent_of_failing(kind))


@flow(on("x"), pack=True)
def child_waits(failures: int) -> Any:
    return same(parent_of_patient(failures))


@flow(on("x"), pack=True)
def unknown_length(value: int) -> Any:
    doubled = double.map(numbers(value))
    return [total(doubled), double.map(doubled), same(double.map(double.map([1, 2])))]


@flow(on("x"), pack=True)
def unknown_length_fails(value: int) -> Any:
    kept = double.map(refuse_odd.map(numbers(value)))
    return [kept, double.map(double(1))]


@flow(on("x"), pack=True)
def one(value: int) -> Any:
    return double(value)


@flow(on("x"), pack=True)
def wired(value: int) -> Any:
    """Handles in every place that the unpacked lane looks into."""
    two = double(value)
    return {
        "direct": add(two, right=double(two)),
        "list": total([two, two, value]),
        "nested": same({"a": [(two, {two: two})]}),
        "struct": same(Box([two])),
        "dataclass": same(Pair(two, Box(two))),
        "namedtuple": same(Point(two, 0)),
        "set": same({two}),
        "untouched": same([value, {"a": (value,)}, Box(value)]),
        "map": total(double.map([1, two, 3])),
        "async": later(two),
        "plain": calls_another(value),
        "handle": two,
    }


@flow(on("x"))
def wired_unpacked(value: int) -> Any:
    return wired.function(value)


@flow(on("x"), pack=True)
def looks(value: int) -> Any:
    """Does what a flow cannot do."""
    handle: Any = double(value)
    actions: list[Any] = [
        lambda: bool(handle),
        lambda: handle + 1,
        lambda: list(handle),
        lambda: handle.real,
        lambda: double(value, value),  # type: ignore[call-arg]
    ]
    return actions[value]()


@flow(on("x"), pack=True)
def fails(kind: str) -> Any:
    done["flow"] += 1
    failed = raises(kind)
    same([failed])
    same(same(double(1)))
    return [add(1, failed), double(1)]  # type: ignore[arg-type]


@flow(on("x"), pack=True)
def fails_async(kind: str) -> Any:
    return raises_later(kind)


@flow(on("x"), pack=True)
def flow_raises(kind: str) -> Any:
    same(1)
    raises.function(kind)


@flow(on("x"), pack=True)
def over_time() -> Any:
    return [spins(), hangs()]


@flow(on("x"), pack=True)
def retried(failures: int) -> Any:
    return [soon(failures), soon_async(failures)]


@flow(on("x"), pack=True)
def suspended(failures: int) -> Any:
    before = same("before")
    waited = patient(failures)
    after = same("after")
    return [before, same(waited), after]


@flow(on("x"), pack=True)
def suspended_twice(failures: int) -> Any:
    return [patient(failures), more_patient(failures)]


@flow(on("x"), pack=True)
def suspended_unpicklable(failures: int) -> Any:
    function = makes_function()
    waited = patient(failures)
    return calls(function, waited)


@flow(on("x"), pack=True)
def suspended_beside_failure(failures: int) -> Any:
    return [same(refuse_odd(1)), same(patient(failures))]


@flow(on("x"), pack=True)
def returns(kind: str) -> Any:
    return same({"large": "x" * 2_000, "odd": {1, object()} if kind == "odd" else 0}[kind])


@flow(on("x"), pack=True)
def logs() -> Any:
    structlog.contextvars.bind_contextvars(of_flow=1)
    return [logged(), logged()]


@flow(on("x"), pack=True)
def waits_for_gate(first: bool) -> Any:
    if not first:
        gate.wait(10)
    return first


@flow(on("x"), pack=True)
async def branches(value: int) -> Any:
    two = await double(value)  # type: ignore[misc]
    if two > 10:
        return "large"
    gathered = await asyncio.gather(double(two), later(two), same([double(two)]))  # type: ignore[call-overload]
    return [two, *gathered, double(1)]


@flow(on("x"), pack=True)
async def side_by_side() -> Any:
    done["barrier"] = asyncio.Barrier(2)  # type: ignore[assignment]
    first, second = meet(), meet()
    return [same(first), second]  # a plain task that needs what still runs


class Locked:
    """Pickling alone could look into it, and cannot."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@flow(on("x"), pack=True)
async def passes_unpicklable() -> Any:
    return same(later(Locked()))  # type: ignore[arg-type]


@flow(on("x"), pack=True)
async def catches(kind: str) -> Any:
    try:
        return await raises(kind)  # type: ignore[func-returns-value, misc]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@flow(on("x"), pack=True)
async def does_not_catch(kind: str) -> Any:
    return await same(await raises_later(kind))


@flow(on("x"), pack=True)
async def suspended_async(failures: int) -> Any:
    before = await same("before")
    return [before, await patient(failures)]  # type: ignore[misc]


@flow(on("x"), pack=True)
async def leaves_behind() -> Any:
    done["left behind"] = 1

    async def linger() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done["left behind"] = 0

    done["task"] = asyncio.create_task(linger())  # type: ignore[assignment]
    await asyncio.sleep(0)
    return 1


@flow(on("x"), pack=True)
async def exits_in_background() -> Any:
    async def exit_now() -> None:
        sys.exit(3)

    background = asyncio.create_task(exit_now())
    await asyncio.sleep(0)
    return background.done()


@task(retry=Retry(attempts=2, wait=fixed(60.0)))
def not_yet() -> int:
    raise ConnectionError("not yet")


@flow(on("t"), pack=True)
def draws(kind: str = "") -> Any:
    """Time and chance, before and after a call that may be tried again."""
    drawn = [now().isoformat(), random()]
    done[f"drawn {drawn}"] += 1
    return same([*drawn, random(), not_yet() if kind == "retries" else 0])


@flow(on("t"), pack=True)
async def waits(kind: str) -> None:
    await (sleep(1) if kind == "sleep" else wait_for_event("t"))


@task(timeout_seconds=30)
def on_time() -> int:
    done["on_time"] += 1
    return 1


@task(timeout_seconds=30)
async def on_time_async() -> int:
    done["on_time_async"] += 1
    return 1


@task(timeout_seconds=30, retry=Retry(2, wait=fixed(0.02), on=TimeoutError))
def on_time_at_last() -> int:
    done["on_time_at_last"] += 1
    return attempt().number


@flow(on("x"), pack=True)
def on_time_each() -> Any:
    on_time()
    on_time_async()
    return same(1)


@flow(on("x"), pack=True)
def on_time_again() -> Any:
    return on_time_at_last()
