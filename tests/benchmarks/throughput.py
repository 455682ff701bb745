"""``one``, ``packed``, ``three`` and ``wide``: runs a second of the engine and of what is written by hand, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from tests.benchmarks.meters import load, per_run
from tests.benchmarks.stack import both, stack
from tests.benchmarks.subjects import Round, Subject


class Side(msgspec.Struct, frozen=True):
    """Who does what in each round."""

    label: str
    subject: Subject
    kind: str
    number: int
    count: int


async def one(runs: int, rounds: int) -> None:
    """A run of one task, against one Dask task an event."""
    async with stack() as running, both(running) as (engine, loop):
        sides = [Side("engine", engine, "one", 21, runs), Side("loop", loop, "one", 21, runs)]
        await contest("one-task runs", sides, rounds)


async def packed(runs: int, rounds: int) -> None:
    """A packed run of one task, against one Dask task an event, and against a hundred events in one."""
    async with stack(packed=True) as running, both(running) as (engine, loop):
        sides = [
            Side("engine, packed", engine, "packed", 21, runs),
            # A tenth of the events, so that a round lasts about as long.
            Side("loop, one Dask task an event", loop, "one", 21, max(1, runs // 10)),
            Side("loop, 100 events a Dask task", loop, "parcel", 21, runs),
        ]
        await contest("packed one-task runs", sides, rounds)


async def three(runs: int, rounds: int) -> None:
    """A run of three tasks, a and b and then c(a, b), against the same three by ``client.submit``."""
    async with stack() as running, both(running) as (engine, loop):
        sides = [Side("engine", engine, "three", 21, runs), Side("loop", loop, "three", 21, runs)]
        await contest("three-task runs (a, b -> c)", sides, rounds)


async def wide(maps: int, rounds: int, width: int = 500) -> None:
    """A map and the sum of it, against ``client.map`` and ``client.submit(sum, …)``."""
    async with stack() as running, both(running) as (engine, loop):
        sides = [Side("engine", engine, "wide", width, maps), Side("loop", loop, "wide", width, maps)]
        await contest(f"{width}-wide maps", sides, rounds)


async def contest(title: str, sides: Sequence[Side], rounds: int) -> None:
    """Let all sides take turns, the first of them against each of the others; print medians and ratios."""
    found: dict[str, list[Round]] = {side.label: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            result = await side.subject.run(side.kind, side.number, side.count)
            if number:  # the first one warms up
                found[side.label].append(result)
    print(f"\n{title}, {rounds} rounds after one that warms up; load of the machine {load()}:")
    for side in sides:
        _show(side, found[side.label])
    first, *others = sides
    for other in others:
        pairs = list(zip(found[first.label], found[other.label], strict=True))
        rates = [a.rate / b.rate for a, b in pairs]
        costs = [_cost(a) / _cost(b) for a, b in pairs]
        print(f"  {first.label} / {other.label}: {_median(rates)}", flush=True)
        print(f"    the same for CPU a run of all parts but the client: {_median(costs)}", flush=True)


def _show(side: Side, results: Sequence[Round]) -> None:
    runs = sum(result.count for result in results)
    cpu = {part: sum(result.cpu[part] for result in results) for part in results[0].cpu}
    parts = tuple(part for part in (side.subject.name, "scheduler", "workers", "kafka", "receiver", "client") if part in cpu)
    print(f"  {side.label}: {_median([result.rate for result in results])} runs/s, {side.count} runs a round")
    print(f"    CPU, ms a run: {per_run(cpu, runs, parts)}")
    print(f"    records a run on its topic: {side.subject.records_a_run[side.kind]}")


def _cost(result: Round) -> float:
    return sum(seconds for part, seconds in result.cpu.items() if part != "client") / result.count


def _median(values: Sequence[float]) -> str:
    digits = 1 if statistics.median(values) > 20 else 2
    return f"{statistics.median(values):.{digits}f} (rounds: {' '.join(f'{value:.{digits}f}' for value in values)})"
