"""Run views: what each tab of the Run page shows, from questions to the history; no markup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from engine.block_layouts import layout
from engine.history import History
from engine.history_schema import RunRow
from engine.log_rows import LogFilter
from engine.run_logs import LEVELS
from engine.states import State
from engine.task_blocks import CELLS, TaskGroup, blocks_of, grouped_blocks
from engine.timelines import timeline_of

TASKS = 200
CHANGES = 200
LOGS = 500
#: Of a payload this much stands on the page.
PAYLOAD = 8_192
#: Of each task, to see what it takes.
_SAMPLE = 50


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a tab is asked with, from its address."""

    now: float
    #: Where the page before this one ended.
    after: str = ""
    #: Task runs in these states alone.
    states: tuple[State, ...] = ()
    #: Log lines of this task or task run, and of this level or worse.
    task: str = ""
    level: str = ""


View = Callable[[History, RunRow, Asked], Mapping[str, Any]]


class Payload(msgspec.Struct, frozen=True):
    """Parameters or a result as text for the page."""

    text: str
    #: Of all of it, and of what the history keeps.
    size: int
    kept: int
    #: Whether the page has only its beginning.
    is_cut: bool


def payload(kept: bytes | None, size: int | None) -> Payload | None:
    """A payload: indented where it is small enough to be there as a whole, else its beginning; None where there is none."""
    if kept is None or size is None:
        return None
    if len(kept) == size <= PAYLOAD:
        try:
            return Payload(msgspec.json.format(kept, indent=2).decode(errors="replace"), size, size, False)
        except msgspec.MsgspecError:
            pass  # It says it is JSON and is not: as it came.
    return Payload(kept[:PAYLOAD].decode(errors="replace"), size, len(kept), size > PAYLOAD)


def trace_id_of(run: RunRow) -> str:
    """The trace of a run; empty where it has none."""
    parts = (run.traceparent or "").split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 and parts[1].isalnum() and parts[1].isascii() else ""


def timeline(history: History, run: RunRow, asked: Asked) -> Mapping[str, Any]:
    """The timeline; of many tasks a page in the order of their names, with a summary by task above."""
    tasks = history.task_runs(run, limit=TASKS + 1, after=asked.after, states=asked.states)
    more = tasks[TASKS - 1].name if len(tasks) > TASKS else None
    counts = history.task_counts(run) if run.tasks > TASKS or asked.states else {}
    return {"timeline": timeline_of(run, tasks[:TASKS], asked.now), "more": more, "counts": counts, "shown": len(tasks[:TASKS])}


def graph(history: History, run: RunRow, asked: Asked) -> Mapping[str, Any]:
    """The picture of its tasks; grouped by task where they are too many."""
    is_grouped = run.tasks > CELLS
    if is_grouped:
        groups = [
            TaskGroup(task, counts, history.task_runs(run, limit=_SAMPLE, after=f"{task}/"))
            for task, counts in history.task_counts(run).items()
        ]
        picture = layout(*grouped_blocks(groups))
    else:
        picture = layout(*blocks_of(history.task_runs(run, limit=CELLS)))
    return {"picture": picture, "is_grouped": is_grouped}


def logs(history: History, run: RunRow, asked: Asked) -> Mapping[str, Any]:
    """Log lines in their order: the latest, which grow while the run goes on, or those behind a line."""
    after = _number(asked.after)
    wanted = LogFilter(task=asked.task or None, level=asked.level or None, latest=after is None)
    lines = history.logs(run.run_id, after=after, limit=LOGS + 1, wanted=wanted)
    is_cut = len(lines) > LOGS
    shown = (lines[-LOGS:] if after is None else lines[:LOGS]) if is_cut else lines
    more = shown[-1].seq if is_cut and after is not None else None
    return {"lines": shown, "more": more, "has_earlier": is_cut and after is None, "levels": LEVELS}


def changes(history: History, run: RunRow, asked: Asked) -> Mapping[str, Any]:
    """State changes in their order."""
    after = _number(asked.after)
    found = history.changes(run, after=-1 if after is None else after, limit=CHANGES + 1)
    return {"changes": found[:CHANGES], "more": found[CHANGES - 1].seq if len(found) > CHANGES else None}


#: Tab → title, and what it shows.
TABS: Mapping[str, tuple[str, View]] = {
    "timeline": ("Timeline", timeline),
    "graph": ("Graph", graph),
    "logs": ("Logs", logs),
    "changes": ("State changes", changes),
}


def _number(text: str) -> int | None:
    return int(text[:18]) if text.removeprefix("-").isdecimal() and text.isascii() else None
