"""``latency``: from sending an event to the start of its first task, at a load that leaves room."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from datetime import datetime
from typing import Any

import msgspec
import psutil

from engine.broker import Record
from engine.states import type_of
from tests.benchmarks.stack import both, stack
from tests.benchmarks.subjects import EngineSubject, Subject

_WARM_UP_EVENTS = 100


class _Origin(msgspec.Struct):
    id: str


class _TaskOfPacked(msgspec.Struct):
    started_at: datetime | None = None


class _Change(msgspec.Struct):
    """What is needed of a state change."""

    run_id: str
    at: datetime
    event: _Origin | None = None
    tasks: list[_TaskOfPacked] = []


async def latency(runs: int, rounds: int, events: int, *, packed: bool) -> None:
    """First the most that each does, then half of that, and a light load; engine and loop in turns."""
    async with stack(packed=packed) as running, both(running) as (engine, loop):
        kind = "packed" if packed else "one"
        print(f"\nevent -> first task start, {'packed ' if packed else ''}one-task runs")
        sides: list[tuple[Subject, str, int]] = [(engine, kind, runs), (loop, "one", min(runs, 1_000))]
        most = {"engine": 0.0, "loop": 0.0}
        for subject, own_kind, count in sides:
            rates = [(await subject.run(own_kind, 21, count)).rate for _ in range(rounds + 1)][1:]
            most[subject.name] = statistics.median(rates)
            print(f"  the most: {subject.name:6} {most[subject.name]:.1f} runs/s (rounds: {_list(rates)})", flush=True)
        half = most["engine"] / 2
        # What half of the most takes of the machine is known only afterwards; half of the machine is in proportion to it.
        busy: list[float] = []
        loads = [(half, "half the engine's most"), (most["loop"] / 2, "half the loop's most"), (0.0, "half the machine")]
        for per_second, name in [*loads, (20.0, "light")]:
            per_second = per_second or half * 0.5 / statistics.median(busy)
            # Who cannot keep up has no latency, only a queue.
            able = [subject for subject, _, _ in sides if per_second < 0.9 * most[subject.name]]
            count = max(50, min(events, int(per_second * 15)))  # a slow machine need not take all day
            for number in range(rounds):
                for subject in able if number % 2 else reversed(able):
                    found, share = await latencies(subject, kind, per_second, count)
                    if subject is engine and per_second == half:
                        busy.append(share)
                    print(
                        f"  {per_second:7.1f} events/s ({name}), round {number + 1}: {subject.name:6} {_spread(found)}"
                        f", machine {share:.0%} busy",
                        flush=True,
                    )


async def latencies(subject: Subject, kind: str, per_second: float, count: int) -> tuple[list[float], float]:
    """Seconds from sending an event to the start of its first task, of ``count`` events after some that warm up; and the
    share of the machine's time that something ran meanwhile."""
    own_kind = kind if isinstance(subject, EngineSubject) else "timed"
    events = [subject.event(own_kind, 1) for _ in range(_WARM_UP_EVENTS + count)]
    sent_at: dict[str, float] = {}
    before = psutil.cpu_times()
    next_at = time.perf_counter()
    for event_id, record in events:
        # Never waits for an answer: an event that is late must not make the next one late.
        await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
        next_at += 1 / per_second
        sent_at[event_id] = time.time()
        await subject.sender.send_one(record)
    share = _busy(before, psutil.cpu_times())
    records, _ = await subject.settle(own_kind, len(events))
    begun = engine_starts(records) if isinstance(subject, EngineSubject) else loop_starts(records)
    return [begun[event_id] - sent_at[event_id] for event_id, _ in events[_WARM_UP_EVENTS:]], share


def engine_starts(records: list[Record]) -> dict[str, float]:
    """When the first task of each event's run began, by its worker's clock, which is the machine's."""
    events: dict[str, str] = {}
    begun: dict[str, float] = {}
    # Within a partition a run's changes are in order, and a run has one partition.
    for record in records:
        kind = type_of(record.headers)
        if kind == b"engine.flow_run.scheduled":
            change = _read(record)
            if change.event is not None:
                events[change.run_id] = change.event.id
        elif kind == b"engine.task_run.running":
            change = _read(record)
            begun.setdefault(events[change.run_id], change.at.timestamp())
        elif kind == b"engine.flow_run.completed":
            change = _read(record)
            starts = [task.started_at.timestamp() for task in change.tasks if task.started_at]
            if starts:
                begun.setdefault(events[change.run_id], min(starts))
    return begun


def loop_starts(records: list[Record]) -> dict[str, float]:
    """The loop's tasks return the moment they began."""
    found = [json.loads(record.value or b"") for record in records]
    return {result["id"]: result["result"] for result in found}


def _read(record: Record) -> _Change:
    return msgspec.json.decode(record.value or b"", type=_Change)


def _spread(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49] * 1e3:6.1f} ms   p99 {cuts[98] * 1e3:6.1f} ms   ({len(values)} events)"


def _busy(before: Any, after: Any) -> float:
    resting = [times.idle + getattr(times, "iowait", 0.0) for times in (before, after)]
    total = sum(after) - sum(before)
    return 1.0 - (resting[1] - resting[0]) / total if total else 0.0


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)
