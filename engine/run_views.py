"""Run views: what each tab of the Run page shows, from questions to the history; no markup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from engine.block_layouts import layout
from engine.history import History
from engine.history_schema import RunRow
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

#: What a tab is asked with: ``after`` where a page before it ended, and states to see alone.
View = Callable[[History, RunRow, float, str, tuple[State, ...]], Mapping[str, Any]]


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


def timeline(history: History, run: RunRow, now: float, after: str, states: tuple[State, ...]) -> Mapping[str, Any]:
    """The timeline; of many tasks a page in the order of their names, with a summary by task above."""
    tasks = history.task_runs(run, limit=TASKS + 1, after=after, states=states)
    more = tasks[TASKS - 1].name if len(tasks) > TASKS else None
    counts = history.task_counts(run) if run.tasks > TASKS or states else {}
    return {"timeline": timeline_of(run, tasks[:TASKS], now), "more": more, "counts": counts, "shown": len(tasks[:TASKS])}


def graph(history: History, run: RunRow, now: float, after: str, states: tuple[State, ...]) -> Mapping[str, Any]:
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


def logs(history: History, run: RunRow, now: float, after: str, states: tuple[State, ...]) -> Mapping[str, Any]:
    """Log lines in their order."""
    ask: Any = getattr(history, "logs", None)
    lines = [] if ask is None else ask(run.place, after=_number(after), limit=LOGS + 1)
    return {"lines": lines[:LOGS], "more": lines[LOGS - 1].seq if len(lines) > LOGS else None, "has_logs": ask is not None}


def changes(history: History, run: RunRow, now: float, after: str, states: tuple[State, ...]) -> Mapping[str, Any]:
    """State changes in their order."""
    number = _number(after)
    found = history.changes(run, after=-1 if number is None else number, limit=CHANGES + 1)
    return {"changes": found[:CHANGES], "more": found[CHANGES - 1].seq if len(found) > CHANGES else None}


#: Tab → title, and what it shows.
TABS: Mapping[str, tuple[str, View]] = {
    "timeline": ("Timeline", timeline),
    "graph": ("Graph", graph),
    "logs": ("Logs", logs),
    "changes": ("State changes", changes),
}


def _number(text: str) -> int | None:
    return int(text[:18]) if text.isdecimal() and text.isascii() else None
