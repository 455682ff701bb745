"""Events to be sent, from flags and from files of JSON lines or CSV; reads, checks and builds records, sends nothing."""

from __future__ import annotations

import csv
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.broker import Outgoing
from engine.errors import EventError
from engine.events import Event, Headers, Position, from_structured, to_headers

#: The source of events whose sender names none.
SOURCE = "/engine/events/send"

# What JSON calls a number, so that 007 and 1_000 stay text.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z")


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """What all events of one command have in common."""

    topic: str
    #: None makes bare records, which carry nothing but data.
    type: str | None = None
    source: str = SOURCE
    subject: str | None = None
    key: str | None = None
    headers: Headers = ()
    traceparent: str | None = None

    def of_data(self, data: bytes, event_id: str | None = None) -> Outgoing:
        """The record that carries ``data``; without an id it gets one of its own."""
        if self.type is None:
            trace: Headers = () if self.traceparent is None else (("traceparent", self.traceparent.encode()),)
            return Outgoing(self.topic, self._key(None), data, (*trace, *self.headers))
        event = Event(
            id=event_id or uuid.uuid4().hex,
            source=self.source,
            type=self.type,
            subject=self.subject,
            time=datetime.now(UTC),
            traceparent=self.traceparent,
            data=None,
        )
        return Outgoing(self.topic, self._key(None), data, (*to_headers(event), *self.headers))

    def of_cloudevent(self, document: bytes) -> Outgoing:
        """The record, in binary mode, of a CloudEvent in JSON. Raises EventError."""
        event = from_structured(document, Position(self.topic, 0, 0))
        if event.traceparent is None:
            event = msgspec.structs.replace(event, traceparent=self.traceparent)
        key = self._key(event.extensions.get("partitionkey"))
        return Outgoing(self.topic, key, event.data, (*to_headers(event), *self.headers))

    def _key(self, partition_key: str | None) -> bytes | None:
        key = self.key if self.key is not None else partition_key
        return None if key is None else key.encode()


class Row(msgspec.Struct, frozen=True):
    """One event of a file: a record, or what is wrong with it."""

    line: int
    outgoing: Outgoing | None
    error: str = ""


#: Told how many bytes of the file have been read.
OnRead = Callable[[int], None]


def json_rows(lines: Iterable[bytes], template: Template, on_read: OnRead = lambda count: None) -> Iterator[Row]:
    """An event of each line: its data, or a whole CloudEvent where it has a ``specversion``. Empty lines are nothing."""
    for number, line in enumerate(lines, 1):
        on_read(len(line))
        data = line.strip()
        if not data:
            continue
        try:
            value = msgspec.json.decode(data)
            is_cloudevent = isinstance(value, dict) and "specversion" in value
            yield Row(number, template.of_cloudevent(data) if is_cloudevent else template.of_data(data))
        except EventError as error:
            yield Row(number, None, error.cause)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            yield Row(number, None, f"not JSON: {error}")


def csv_rows(
    lines: Iterable[bytes], template: Template, on_read: OnRead = lambda count: None, *, as_text: bool = False
) -> Iterator[Row]:
    """An event of each row, an object keyed by the header. Numbers are numbers and empty cells null, unless ``as_text``."""
    reader = csv.reader(_texts(lines, on_read), strict=True)
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(reader.line_num, None, f"not CSV: {error}")
            continue
        if not cells:
            continue
        error_text = _wrong(cells, names)
        if error_text:
            yield Row(reader.line_num, None, error_text)
            if names is None:
                return  # Without names no row means anything.
        elif names is None:
            names = cells
        else:
            values = cells if as_text else [_value(cell) for cell in cells]
            yield Row(reader.line_num, template.of_data(msgspec.json.encode(dict(zip(names, values, strict=True)))))


def _wrong(cells: list[str], names: list[str] | None) -> str:
    if any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
        return "not UTF-8"
    if names is None:
        return "the header names a column twice" if len(set(cells)) < len(cells) else ""
    return "" if len(cells) == len(names) else f"{len(cells)} cells where the header names {len(names)}"


def _texts(lines: Iterable[bytes], on_read: OnRead) -> Iterator[str]:
    for number, line in enumerate(lines):
        on_read(len(line))
        # A byte that is no UTF-8 must spoil its own row only: it is found there again.
        yield line.decode("utf-8-sig" if number == 0 else "utf-8", errors="surrogateescape")


def _value(cell: str) -> Any:
    if cell == "":
        return None
    # As it stands, so that no digit is lost.
    return msgspec.Raw(cell.encode()) if _NUMBER.match(cell) else cell
