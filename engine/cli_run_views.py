"""How runs of the history look on a terminal or as JSON; prints nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from rich.table import Table
from rich.text import Text

from engine.cli_changes import STATE_STYLES
from engine.cli_output import short
from engine.history import Change, cursor_of
from engine.history_schema import RunRow, TaskRow
from engine.states import State
from engine.task_rows import attempts_of
from engine.terminal import printable

_PAYLOADS = ("parameters", "result")
_DETAIL_WIDTH = 100
#: A terminal of so many characters has room for all columns of a list of runs.
_WIDE = 120
#: Where there is none, so much is there of the longest name of a flow.
_LEAST_FLOW = 12


def run_as_data(run: RunRow) -> dict[str, Any]:
    """A run for a program: times in RFC 3339; payloads as JSON where they were kept whole, else as text."""
    made = _timed(msgspec.structs.asdict(run))
    for name in _PAYLOADS:
        made[name] = _payload(getattr(run, name), made[f"{name}_size"])
    made["packed"] = bool(run.packed)
    made["cursor"] = cursor_of(run)
    return made


def task_as_data(task: TaskRow) -> dict[str, Any]:
    """A task run with its attempts for a program."""
    made = _timed(msgspec.structs.asdict(task))
    made.pop("place")
    made["parents"] = msgspec.json.decode(task.parents)
    made["attempts"] = [_timed(msgspec.structs.asdict(attempt)) for attempt in attempts_of(task.attempts)]
    return made


def change_as_data(change: Change) -> dict[str, Any]:
    """A state change for a program."""
    return msgspec.structs.asdict(change) | {"at": _iso(change.at)}


def runs_as_table(runs: Sequence[RunRow], width: int = _WIDE) -> Table:
    """A line a run, whose id is there whole, to be copied; ``width`` is that of the terminal, in characters."""
    is_wide = width >= _WIDE
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, least in ("SCHEDULED", 19 if is_wide else 14), ("STATE", 9), ("RUN", 32):
        table.add_column(name, no_wrap=True, min_width=least)
    # A long reason gives way to the flow's name, not the other way round.
    longest = min(_LEAST_FLOW, max((len(run.flow) for run in runs), default=0))
    for name in ("FLOW", "KEY", "TASKS", "TOOK", "WHY") if is_wide else ("FLOW", "WHY"):
        overflow: Literal["fold", "ellipsis"] = "fold" if is_wide else "ellipsis"
        table.add_column(name, no_wrap=not is_wide, overflow=overflow, min_width=longest if name == "FLOW" else None)
    for run in runs:
        key = "" if run.run_key is None else short(run.run_key, 24)
        counts = (key, f"{run.tasks_ended}/{run.tasks}", _took(run.started_at, run.ended_at)) if is_wide else ()
        at = _clock(run.scheduled_at) if is_wide else _clock(run.scheduled_at).partition("-")[2]
        table.add_row(at, _state(run.state), run.run_id, short(run.flow, 40), *counts, _why(run, 60))
    return table


def run_as_header(run: RunRow) -> Text:
    """A run's own facts, a line each."""
    event = f"{run.event_type or 'record'} {run.event_id} of {run.event_source}" if run.event_topic else ""
    where = f"{run.event_topic}/{run.event_partition}/{run.event_offset}" if run.event_topic else ""
    waited = _took(run.scheduled_at, run.started_at)
    facts = {
        "flow": run.flow,
        "key": run.run_key,
        "event": event and f"{event} at {where}",
        "repeats": run.repeats,
        "letter": run.letter,
        "scheduled": _clock(run.scheduled_at),
        "waited": waited,
        "took": _took(run.started_at, run.ended_at),
        "goes on": None if run.wakes_at is None else _clock(run.wakes_at),
        "tasks": f"{run.tasks_ended} of {run.tasks} have ended",
        "trace": None if run.traceparent is None else run.traceparent.split("-")[1:2][0] if "-" in run.traceparent else None,
        "why": _why(run, 2_000),
        "parameters": _shown(run.parameters, run.parameters_size),
        "result": run.result_ref or _shown(run.result, run.result_size),
    }
    lines = [Text.assemble(("run         ", "dim"), printable(run.run_id), "  ", _state(run.state))]
    lines += [Text.assemble((f"{name:<12}", "dim"), printable(text)) for name, text in facts.items() if text]
    return Text("\n").join(lines)


def tasks_as_table(tasks: Sequence[TaskRow]) -> Table:
    """A line an attempt, with how long it was queued and how long it ran."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("TASK RUN", "STATE", "ATTEMPT", "QUEUED", "RAN", "WORKER", "WHY"):
        # Names and workers are there to be copied, so nothing of them is left out.
        table.add_column(name, overflow="fold")
    for task in tasks:
        name = printable(task.name)
        for attempt in attempts_of(task.attempts):
            state = attempt.outcome or (State.RUNNING if attempt.started_at is not None else task.state)
            queued, ran = _took(attempt.queued_at, attempt.started_at), _took(attempt.started_at, attempt.ended_at)
            # Most addresses begin so, and a narrow terminal needs the room; the changes below have them whole.
            worker = printable((attempt.worker or "").removeprefix("tcp://"))
            why = short(attempt.error or task.reason or "", _DETAIL_WIDTH)
            table.add_row(name, _state(state), str(attempt.attempt), queued, ran, worker, why)
            name = ""
    return table


def change_as_line(change: Change) -> Text:
    """Sequence number, time, state, which task run and what there is to say of it."""
    return Text.assemble(
        (f"{change.seq:>5}  {_clock(change.at, milliseconds=True)}  ", "dim"),
        _state(change.state.ljust(9)),
        f"  {printable(change.name or '(run)'):<28}  ",
        (short(" · ".join(filter(None, [change.worker, change.text])), _DETAIL_WIDTH), "dim"),
    )


def _timed(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _iso(value) if name.endswith("_at") and value is not None else value for name, value in fields.items()}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _clock(at: float, *, milliseconds: bool = False) -> str:
    local = datetime.fromtimestamp(at).astimezone()
    return f"{local:%H:%M:%S}.{local.microsecond // 1000:03}" if milliseconds else f"{local:%Y-%m-%d %H:%M:%S}"


def _took(begin: float | None, end: float | None) -> str:
    if begin is None or end is None:
        return ""
    seconds = max(0.0, end - begin)
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _state(state: str) -> Text:
    return Text(state, STATE_STYLES.get(state.strip(), ""))


def _why(run: RunRow, width: int) -> str:
    error = f"{run.error_type}: {run.error_message}" if run.error_type else ""
    return short(error or run.reason or "", width)


def _payload(kept: bytes | None, size: int | None) -> Any:
    if kept is None:
        return None
    if len(kept) == size:
        return msgspec.Raw(kept)
    return kept.decode(errors="replace")  # Cut short: no JSON any more.


def _shown(kept: bytes | None, size: int | None) -> str:
    if kept is None:
        return ""
    text = short(kept.decode(errors="replace"), 2_000)
    return text if size == len(kept) else f"{text} ({size:,} bytes)"
