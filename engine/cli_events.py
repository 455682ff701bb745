"""``engine events send``: one event from flags, or many from a file, as CloudEvents in binary mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from engine import logs
from engine.broker import Outgoing, Sink
from engine.cli_flags import AppFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put, say
from engine.command_errors import UsageError
from engine.errors import RecordTooLarge
from engine.event_files import SOURCE, OnRead, Row, Template, csv_rows, json_rows
from engine.events import Headers, Position, valid_traceparent
from engine.kafka import KafkaBroker

_BATCH = 500
_MOST_SAID = 20
_BAD_INPUT = 2


async def send(
    topic: Annotated[str, Parameter(help="The topic, which must exist.")],
    *,
    data: Annotated[
        str | None, Parameter(allow_leading_hyphen=True, help="The event's data, JSON; - reads it from standard input.")
    ] = None,
    file: Annotated[
        Path | None, Parameter(help="A .csv file with a header, or JSON lines: data, or whole CloudEvents (specversion).")
    ] = None,
    type: Annotated[str | None, Parameter(help="CloudEvents type. Without one a bare record is sent.")] = None,
    source: Annotated[str | None, Parameter(help=f"CloudEvents source; {SOURCE} unless given.")] = None,
    id: Annotated[
        str | None, Parameter(help="CloudEvents id; a new one unless given. The same id makes no second run.")
    ] = None,
    subject: Annotated[str | None, Parameter(help="CloudEvents subject.")] = None,
    key: Annotated[str | None, Parameter(help="Key of the record.")] = None,
    header: Annotated[list[str] | None, Parameter(negative=(), help="One more header, name=value; may be given again.")] = None,
    traceparent: Annotated[str | None, Parameter(help="The span (W3C) that the event's runs become children of.")] = None,
    text: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Leave all cells of a CSV file text: no numbers, no null.")
    ] = False,
    strict: Annotated[bool, Parameter(negative=(), show_default=False, help="Stop at the first bad line.")] = False,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> int:
    """Send one event, or a file of them, to a topic; returns when Kafka has them. Exits 2 where a line is bad."""
    logs.configure()
    if (data is None) == (file is None):
        raise UsageError("--data, --file", "give one of the two", "E.g. --data '{\"id\": 1}', or --file events.jsonl")
    if type is None and (id is not None or source is not None or subject is not None):
        raise UsageError("--id, --source, --subject", "only an event with a type has them", "Give --type, too.")
    if file is not None and id is not None:
        raise UsageError("--id", "all events of a file cannot have the same id", "Leave it out: each gets its own.")
    if traceparent is not None and valid_traceparent(traceparent) is None:
        raise UsageError("--traceparent", f"{traceparent!r} is not a W3C traceparent", "E.g. 00-<32 hex>-<16 hex>-01")
    template = Template(
        topic=topic,
        type=type,
        source=source or SOURCE,
        subject=subject,
        key=key,
        headers=_headers(header or ()),
        traceparent=traceparent,
    )
    one = None if data is None else template.of_data(_json(data), id)
    sink = KafkaBroker(settings_of(app=app, kafka=kafka)).sink()
    try:
        await sink.start()
        if one is not None:
            (position,) = await sink.write([one])
            _tell_one(one, position, json)
        elif file is not None:
            return await _send_file(sink, file, template, as_text=text, strict=strict, json=json)
    finally:
        await sink.close()
    return 0


async def _send_file(sink: Sink, file: Path, template: Template, *, as_text: bool, strict: bool, json: bool) -> int:
    sending = _FileSending(sink, file, strict)
    with _opened(file) as stream, _progress(file) as on_read:
        if file.suffix.lower() == ".csv":
            await sending.run(csv_rows(stream, template, on_read, as_text=as_text))
        else:
            await sending.run(json_rows(stream, template, on_read))
    if json:
        put(json_text({"topic": template.topic, "sent": sending.sent, "bad": sending.bad}))
    else:
        bad = f"; {sending.bad} bad lines were not sent" if sending.bad else ""
        say(f"sent {sending.sent} events to {template.topic}{bad}")
    return _BAD_INPUT if sending.bad else 0


class _FileSending:
    """Sends rows in batches and says which were bad."""

    def __init__(self, sink: Sink, file: Path, strict: bool) -> None:
        self.sent = self.bad = 0
        self._sink, self._file, self._strict = sink, file, strict

    async def run(self, rows: Iterator[Row]) -> None:
        """Until the end, or the first bad row where that is asked for; what came before it is sent."""
        batch: list[Row] = []
        for row in rows:
            if row.outgoing is None:
                self._complain(row.line, row.error)
                if self._strict:
                    break
                continue
            batch.append(row)
            if len(batch) == _BATCH:
                await self._send(batch)
                batch = []
                if self._strict and self.bad:
                    return
        await self._send(batch)

    async def _send(self, batch: Sequence[Row]) -> None:
        try:
            await self._sink.write([row.outgoing for row in batch if row.outgoing is not None])
            self.sent += len(batch)
        except RecordTooLarge as error:
            # Nothing of the batch was written. One by one it turns out which record it is.
            if len(batch) == 1:
                self._complain(batch[0].line, str(error))
                return
            for row in batch:
                await self._send([row])
                if self._strict and self.bad:
                    return

    def _complain(self, line: int, error: str) -> None:
        self.bad += 1
        if self.bad <= _MOST_SAID:
            say(f"{self._file}:{line}: {error}")
        elif self.bad == _MOST_SAID + 1:
            say("more bad lines are counted only")


def _tell_one(one: Outgoing, position: Position, json: bool) -> None:
    event_id = next((value.decode() for name, value in one.headers if name == "ce_id"), str(position))
    if json:
        put(json_text({**msgspec.structs.asdict(position), "id": event_id}))
    else:
        say(f"sent {event_id} to {position}")


def _json(text: str) -> bytes:
    data = sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape")
    try:
        msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError("--data", f"not JSON: {error}", "Text needs quotes of its own: --data '\"text\"'") from error
    return data.strip()


def _headers(texts: Sequence[str]) -> Headers:
    found = []
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise UsageError("--header", f"{text!r} is not name=value", "E.g. --header tenant=blue")
        found.append((name, value.encode()))
    return tuple(found)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        stream = file.open("rb")
    except OSError as error:
        raise UsageError(str(file), f"cannot be read: {error.strerror}", "Check the path.") from error
    with stream:
        yield stream


@contextmanager
def _progress(file: Path) -> Iterator[OnRead]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn("sending"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("sending", total=file.stat().st_size or None)
        yield lambda count: progress.advance(task, count)
