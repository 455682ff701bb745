"""How a state change looks on a terminal or as a line of JSON; prints nothing itself."""

from __future__ import annotations

import msgspec
from rich.text import Text

from engine.cli_output import safe_json, short
from engine.states import State, StateChange, encode
from engine.terminal import printable

#: Colours of states, by name.
STATE_STYLES: dict[str, str] = {
    State.SCHEDULED: "dim",
    State.RUNNING: "cyan",
    State.RETRYING: "yellow",
    State.COMPLETED: "green",
    State.FAILED: "red",
    State.CRASHED: "bold red",
    State.CANCELLED: "magenta",
}
_STATE_WIDTH = max(len(state) for state in State)
_RUN_ID_SHOWN = 8
_NAME_WIDTH = 28
_DETAIL_WIDTH = 160


def as_json(change: StateChange) -> str:
    """The data of the change as it stands on the state topic."""
    return safe_json(encode(msgspec.structs.replace(change, traceparent=None)).decode())


def as_line(change: StateChange) -> Text:
    """Time, state, flow or task, run and what there is to say of it, in one line."""
    at = change.at.astimezone()
    return Text.assemble(
        (f"{at:%H:%M:%S}.{at.microsecond // 1000:03}  ", "dim"),
        (change.state.ljust(_STATE_WIDTH), STATE_STYLES[change.state]),
        "  ",
        (printable(change.run_id[:_RUN_ID_SHOWN]), "dim"),
        "  ",
        (_name(change).ljust(_NAME_WIDTH), "bold" if change.is_flow_run else ""),
        "  ",
        (_details(change), "red" if change.error is not None else "dim"),
    )


def _name(change: StateChange) -> str:
    if change.is_flow_run:
        return printable(change.flow)
    index = "" if change.map_index is None else f"[{change.map_index}]"
    return printable(f"{change.flow}/{change.task}{index}")


def _details(change: StateChange) -> str:
    parts: list[str] = []
    if change.state is State.SCHEDULED and change.is_flow_run:
        # The whole id once per run: `engine runs watch` takes no shorter one.
        parts.append(f"run {change.run_id}")
        if change.event is not None:
            parts.append(f"{change.event.type or 'record'} {change.event.id}")
    if change.attempt > 1:
        parts.append(f"attempt {change.attempt}")
    if change.next_attempt_at is not None:
        parts.append(f"next attempt at {change.next_attempt_at.astimezone():%H:%M:%S}")
    if change.wakes_at is not None:
        parts.append(f"goes on by {change.wakes_at.astimezone():%Y-%m-%d %H:%M:%S}")
    if change.worker is not None:
        parts.append(f"on {change.worker}")
    if change.reason is not None:
        parts.append(change.reason)
    if change.error is not None:
        parts.append(f"{change.error.type}: {change.error.message}")
    if change.is_flow_run and change.result is not None:
        parts.append(bytes(change.result).decode(errors="replace"))
    if change.result_ref is not None:
        parts.append(f"result at {change.result_ref}")
    return short(" · ".join(filter(None, parts)), _DETAIL_WIDTH)
