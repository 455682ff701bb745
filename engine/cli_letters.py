"""How a dead letter looks on a terminal or as JSON; prints nothing itself."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.cli_output import short
from engine.dead_letters import Letter
from engine.letter_lists import Entry, Status
from engine.terminal import printable, printable_lines

_STYLES = {Status.OPEN: "red", Status.DROPPED: "dim", Status.REPLAYED: "green", Status.REPEAT: "dim"}
_ERROR_WIDTH = 200
_HEX_ROW = 32


def as_data(entry: Entry) -> dict[str, Any]:
    """An entry of a list, for JSON."""
    details, record = entry.letter.details, entry.letter.record
    origin = details.origin
    found = {
        "id": entry.letter.id,
        "status": entry.status.value,
        "reason": details.reason,
        "error": details.error,
        "flow": details.flow,
        "origin": None if origin is None else str(origin),
        "topic": None if origin is None else origin.topic,
        "at": _moment(record.timestamp_ms).isoformat(),
        "run_id": details.run_id,
        "replay": details.replay,
        "replays": entry.replays,
        "content": details.content.value,
        "bytes": entry.size,
    }
    return {name: value for name, value in found.items() if value is not None}


def whole_as_data(entry: Entry, letter: Letter) -> dict[str, Any]:
    """A letter with key, value and headers: text where it is, else base64."""
    headers = [{"name": name, **_content("value", content)} for name, content in letter.headers]
    return as_data(entry) | _content("key", letter.record.key) | _content("value", letter.record.value) | {"headers": headers}


def as_table(entries: list[Entry], *, with_status: bool) -> Table:
    """A list of letters."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("id", "at", *(("status",) if with_status else ()), "reason", "flow", "origin", "error"):
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "at", "status", "reason"))
    for entry in entries:
        details = entry.letter.details
        status = (Text(entry.status.value, _STYLES[entry.status]),) if with_status else ()
        table.add_row(
            Text(entry.letter.id, "bold"),
            Text(f"{_moment(entry.letter.record.timestamp_ms).astimezone():%m-%d %H:%M:%S}", "dim"),
            *status,
            Text(short(details.reason), "yellow"),
            Text(short(details.flow or "")),
            Text(short(str(details.origin or "")), "dim"),
            Text(short(details.error, _ERROR_WIDTH), "red"),
        )
    return table


def as_page(entry: Entry, letter: Letter) -> RenderableType:
    """One letter, whole."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, fact in as_data(entry).items():
        facts.add_row(name, Text(printable(str(fact))))
    if letter.record.key is not None:
        facts.add_row("key", Text(_readable(letter.record.key)))
    for name, content in letter.headers:
        facts.add_row(Text(f"header {printable(name)}", "dim"), Text(_readable(content)))
    value = letter.record.value
    shown = "no value" if value is None else _readable_lines(value)
    return Group(facts, Text(), Text(shown))


def _content(name: str, content: bytes | None) -> dict[str, str | None]:
    if content is None:
        return {name: None}
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(content).decode()}


def _readable(content: bytes) -> str:
    try:
        return printable(content.decode())
    except UnicodeDecodeError:
        return f"hex {content.hex(' ')}"


def _readable_lines(content: bytes) -> str:
    """Text as its lines; anything else in hexadecimal, with where each row begins."""
    try:
        return printable_lines(content.decode())
    except UnicodeDecodeError:
        rows = range(0, len(content), _HEX_ROW)
        return "\n".join(f"{start:08x}  {content[start : start + _HEX_ROW].hex(' ')}" for start in rows)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
