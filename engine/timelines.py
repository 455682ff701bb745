"""Timelines: a run and its task runs to rows of segments on one scale, children under who spawned them; pure.

Workers' clocks differ by a little, so what seems to end before it began has no length, and nothing lies outside of the scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from engine.history_schema import Attempt, RunRow, TaskRow
from engine.measures import duration
from engine.states import State
from engine.task_rows import attempts_of

WIDTH = 1_000.0
#: Narrower is not to be seen.
_LEAST = 2.0
#: Deeper nesting is shown at this depth.
DEEPEST = 8
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 21_600, 43_200, 86_400)


class Segment(msgspec.Struct, frozen=True):
    """A stretch of time: "queued", "ran", "failed" (an attempt that did), "waited" (to be tried again), "asleep"."""

    kind: str
    x: float
    width: float
    text: str


class Tick(msgspec.Struct, frozen=True):
    """A line of the scale."""

    x: float
    text: str


class Row(msgspec.Struct, frozen=True):
    """A task run, or the run itself where it has no name."""

    name: str
    task: str
    state: str
    depth: int
    children: int
    attempts: int
    segments: list[Segment]
    queued_seconds: float | None
    ran_seconds: float | None
    worker: str | None
    error: str | None
    spawned_by: str | None = None


class Timeline(msgspec.Struct, frozen=True):
    """All rows, the run's own first; ``seconds`` is the length of the scale."""

    rows: list[Row]
    ticks: list[Tick]
    begin: float
    seconds: float


def timeline_of(run: RunRow, tasks: Sequence[TaskRow], now: float) -> Timeline:
    """The rows of a run; ``now`` ends what has not ended."""
    known = {task.name: (task, attempts_of(task.attempts)) for task in tasks}
    begin, end = run.scheduled_at, run.ended_at or max(now, run.scheduled_at)
    for _, attempts in known.values():
        for attempt in attempts:
            begin = min([begin, *(at for at in (attempt.started_at, attempt.ended_at) if at is not None)])
            end = max(end, attempt.ended_at or end)
    scale = _Scale(begin, max(end - begin, 0.001), now if run.ended_at is None else end)
    rows = [_of_run(run, scale)]
    rows += [_of_task(task, known[task.name][1], depth, children, scale) for task, depth, children in nested(tasks)]
    return Timeline(rows, _ticks(scale.seconds), begin, scale.seconds)


def nested(tasks: Sequence[TaskRow]) -> list[tuple[TaskRow, int, int]]:
    """Task runs in the order in which they were scheduled, each followed by those it spawned: with depth and their number."""
    names = {task.name for task in tasks}
    children: dict[str, list[TaskRow]] = {}
    for task in sorted(tasks, key=_order):
        above = task.spawned_by if task.spawned_by in names and task.spawned_by != task.name else ""
        children.setdefault(above or "", []).append(task)
    found: list[tuple[TaskRow, int, int]] = []
    seen: set[str] = set()
    stack = [(task, 0) for task in reversed(children.get("", []))]
    # Whoever is spawned in a circle has no root: that cannot be, but a topic may say so.
    rest = iter(sorted(tasks, key=_order))
    while True:
        while stack:
            task, depth = stack.pop()
            if task.name in seen:
                continue
            seen.add(task.name)
            below = children.get(task.name, [])
            found.append((task, min(depth, DEEPEST), len(below)))
            stack += [(child, depth + 1) for child in reversed(below)]
        left = next((task for task in rest if task.name not in seen), None)
        if left is None:
            return found
        stack.append((left, 0))


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``price/2`` before ``price/10``."""
    parts = filter(None, re.split(r"([0-9]+)", name))
    return [(int(part[:18]), "") if part.isdecimal() and part.isascii() else (-1, part) for part in parts]


class _Scale(msgspec.Struct):
    begin: float
    seconds: float
    #: Where what is still going on ends.
    now: float

    def segment(self, kind: str, word: str, start: float, end: float | None) -> Segment:
        until = self.now if end is None else end
        text = f"{word} {duration(until - start)}{' so far' if end is None else ''}"
        x = min(max(0.0, (start - self.begin) / self.seconds * WIDTH), WIDTH - _LEAST)
        right = min(max(x, (until - self.begin) / self.seconds * WIDTH), WIDTH)
        return Segment(kind, round(x, 1), round(max(_LEAST, right - x), 1), text)


def _order(task: TaskRow) -> tuple[float, list[tuple[int, str]]]:
    return (task.scheduled_at if task.scheduled_at is not None else float("inf"), natural(task.name))


def _of_run(run: RunRow, scale: _Scale) -> Row:
    begun = run.started_at if run.started_at is not None else run.ended_at
    segments = [scale.segment("queued", "queued", run.scheduled_at, begun)]
    if run.started_at is not None:
        kind = "failed" if run.state in (State.FAILED, State.CRASHED) else "ran"
        segments.append(scale.segment(kind, "ran", run.started_at, run.ended_at))
    queued = None if begun is None else max(0.0, begun - run.scheduled_at)
    ran = None if run.started_at is None else max(0.0, (run.ended_at or scale.now) - run.started_at)
    return Row("", run.flow, run.state, 0, 0, run.attempt, segments, queued, ran, run.worker, None)


def _of_task(task: TaskRow, attempts: Sequence[Attempt], depth: int, children: int, scale: _Scale) -> Row:
    segments: list[Segment] = []
    queued = ran = 0.0
    before: Attempt | None = None
    is_ended = State(task.state).is_end
    for attempt in attempts:
        if before is not None and before.ended_at is not None and attempt.queued_at is not None:
            due = min(attempt.queued_at, scale.now)
            if due > before.ended_at:
                segments.append(scale.segment("waited", "waited to be tried again", before.ended_at, due))
        if attempt.queued_at is not None and attempt.queued_at < scale.now:
            begun = attempt.started_at if attempt.started_at is not None else attempt.ended_at
            if begun is not None or not is_ended:
                queued += max(0.0, (scale.now if begun is None else begun) - attempt.queued_at)
                segments.append(scale.segment("queued", "queued", attempt.queued_at, begun))
        if attempt.started_at is not None:
            ended = attempt.ended_at if attempt.ended_at is not None or not is_ended else task.ended_at
            ran += max(0.0, (scale.now if ended is None else ended) - attempt.started_at)
            failed = attempt.outcome in (State.RETRYING, State.FAILED, State.CRASHED)
            kind = "failed" if failed else "asleep" if task.wakes_at is not None and ended is None else "ran"
            word = {"failed": "ran and failed", "asleep": "asleep for"}.get(kind, "ran")
            word = f"attempt {attempt.attempt} {word}" if len(attempts) > 1 else word
            segments.append(scale.segment(kind, word, attempt.started_at, ended))
        before = attempt
    error = f"{task.error_type}: {task.error_message}" if task.error_type else task.reason
    number = max([task.attempt, *(attempt.attempt for attempt in attempts if attempt.started_at is not None)])
    return Row(
        task.name, task.task, task.state, depth, children, number, segments, queued, ran, task.worker, error, task.spawned_by
    )


def _ticks(seconds: float) -> list[Tick]:
    step = seconds
    if seconds > 4:
        step = next((one for one in _STEPS if seconds / one <= 6), 86_400.0 * max(1, int(seconds / 86_400 / 5)))
    else:
        size = 1e-6
        while seconds / size > 6:
            size *= 10
        step = next(size * factor / 10 for factor in (1, 2, 5, 10) if seconds / (size * factor / 10) <= 6)
    marks = [number * step for number in range(1, int(seconds / step) + 1)]
    return [Tick(round(at / seconds * WIDTH, 1), duration(at)) for at in marks if at / seconds <= 0.97]
