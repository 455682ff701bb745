"""``depth``: when the first final result of a map over a map is there, where the length is known only at run time."""

from __future__ import annotations

import json
import statistics
import time
from datetime import datetime

import msgspec
from distributed import Client

from engine.broker import Record
from tests.benchmarks.flows import WORK_SECONDS, slow
from tests.benchmarks.stack import Stack, engine_alone, stack
from tests.benchmarks.subjects import EngineSubject

WIDTH = 32


class First(msgspec.Struct, frozen=True):
    """Seconds to the end of the first task of the second stage, by the clocks of the workers, which are the machine's."""

    from_event: float
    from_listing: float
    #: To the end of the last task of the second stage, from the event.
    to_last: float


async def depth(rounds: int, *, known: bool) -> None:
    """The engine, plain Dask with shared futures, and plain Dask that gathers in between, in turns."""
    async with stack() as running, engine_alone(running) as engine, Client(running.dask, asynchronous=True) as client:
        found: dict[str, list[First]] = {"engine": [], "shared futures": [], "gather first": []}
        for number in range(rounds + 1):
            results = {
                "engine": await of_engine(engine, "depth-known" if known else "depth"),
                "shared futures": await of_dask(client, gathers=False),
                "gather first": await of_dask(client, gathers=True),
            }
            if number:  # the first one warms up
                for name, result in results.items():
                    found[name].append(result)
    _show(found, running, known=known)


async def of_engine(engine: EngineSubject, kind: str) -> First:
    """Through Kafka, both ways; the times are those in the state changes."""
    _, event = engine.event(kind, WIDTH)
    sent_at = time.time()
    await engine.sender.send_one(event)
    records, _ = await engine.settle(kind, 1)
    ends = _ends_by_task(records)
    return First(min(ends["second"]) - sent_at, min(ends["second"]) - ends["listing"][0], max(ends["second"]) - sent_at)


async def of_dask(client: Client, *, gathers: bool) -> First:
    """By hand: no Kafka, no states. Priorities as they should be: what is deeper goes first."""
    began = time.time()
    listed_at, numbers = await client.submit(timed_listing, WIDTH, pure=False)
    firsts = client.map(slow, numbers, pure=False)
    if gathers:
        firsts = await client.gather(firsts)
    seconds = client.map(timed_slow, firsts, pure=False, priority=1)
    ends = await client.gather(seconds)
    return First(min(ends) - began, min(ends) - listed_at, max(ends) - began)


def timed_listing(number: int) -> tuple[float, list[int]]:
    return time.time(), list(range(number))


def timed_slow(number: int) -> float:
    slow(number)
    return time.time()


def _ends_by_task(records: list[Record]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in records:
        change = json.loads(record.value or b"{}")
        if change.get("task") and change["state"] == "COMPLETED":
            at = datetime.fromisoformat(change["at"]).timestamp()
            found.setdefault(change["task"], []).append(at)
    return found


def _show(found: dict[str, list[First]], running: Stack, *, known: bool) -> None:
    length = "known when the event comes" if known else "known at run time only"
    print(f"\ntwo-stage map, {WIDTH} wide, tasks of {WORK_SECONDS:g} s, 2 workers of 2 threads, length {length}:")
    for name, results in found.items():
        middle = [statistics.median(values) for values in zip(*map(msgspec.structs.astuple, results), strict=True)]
        rounds = " ".join(f"{result.from_event:.2f}" for result in results)
        print(f"  {name:14} first final result after {middle[0]:.3f} s (rounds: {rounds})")
        print(f"  {'':14} from the end of listing {middle[1]:.3f} s; the last result after {middle[2]:.3f} s")
    _ratio(found, "engine", "shared futures")
    _ratio(found, "gather first", "engine")


def _ratio(found: dict[str, list[First]], above: str, below: str) -> None:
    pairs = list(zip(found[above], found[below], strict=True))
    from_event = statistics.median(a.from_event / b.from_event for a, b in pairs)
    from_listing = statistics.median(a.from_listing / b.from_listing for a, b in pairs)
    print(f"  {above} / {below}: {from_event:.2f} from the event, {from_listing:.2f} from the end of listing", flush=True)
