"""Log lines of runs as records of the log topic: what one holds, how it is written and read; pure.

A record holds lines of one attempt of a task, or of a flow's own code, in their order. Its key is the run's id, so that all
lines of a run lie in one partition, in the order in which the engine heard of them.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from engine.errors import EventError
from engine.events import Headers, Reason
from engine.states import type_of, utc

LOGS = "engine.logs"
#: Levels by name, the least first; each stands for the numbers of standard logging from its own up to the next.
LEVELS = ("debug", "info", "warning", "error", "critical")
#: Lines of one record, at most.
MAX_RECORD_LINES = 1_000
#: Text of one record, at most, as characters are counted here; as JSON it may take six times as much.
MAX_RECORD_BYTES = 65_536
#: A longer line is cut.
MAX_LINE_CHARACTERS = 8_192
_MAX_NAME_CHARACTERS = 200
#: A larger record is none of ours.
_MAX_VALUE_BYTES = 1_048_576


class Line(msgspec.Struct, frozen=True, gc=False):
    """One log line; the message may be of several lines of text, a traceback say."""

    at: datetime
    #: One of ``LEVELS``.
    level: str
    #: Name of the logger.
    logger: str
    message: str


class LogBatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The data of a record of the log topic."""

    run_id: str
    flow: str
    #: None where the flow's own code has said it.
    task: str | None = None
    task_run_id: str | None = None
    #: The attempt of the task, or of the flow.
    attempt: int
    worker: str = ""
    #: 32 hex digits; empty where there is no trace.
    trace_id: str = ""
    lines: tuple[Line, ...]


class LogMail(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A batch on its way from a worker to the engine, which puts it on the topic without a look into it."""

    run_id: str
    #: No other batch has it.
    id: str
    #: When it left, in seconds since the epoch.
    at: float
    traceparent: str
    lines: int
    #: The encoded batch.
    value: bytes


encode_batch = msgspec.json.Encoder().encode
encode_mail = msgspec.msgpack.Encoder().encode
decode_mail = msgspec.msgpack.Decoder(LogMail).decode
_decode = msgspec.json.Decoder(LogBatch).decode
_TYPE = LOGS.encode()


def line_of(at: float, number: int, logger: str, message: str) -> Line:
    """A line as it is kept: valid Unicode, cut where it is long. ``number`` is the level of standard logging."""
    if len(message) > MAX_LINE_CHARACTERS:
        message = f"{message[:MAX_LINE_CHARACTERS]}… ({len(message) - MAX_LINE_CHARACTERS:,} more characters)"
    return Line(utc(at), level_of(number), _valid(logger[:_MAX_NAME_CHARACTERS]), _valid(message))


def level_of(number: int) -> str:
    """The name of a level of standard logging; what lies between two is the lower one."""
    return LEVELS[max(0, min(len(LEVELS) - 1, number // 10 - 1))]


def headers_of(app: str, mail: LogMail) -> Headers:
    """The headers of the record: a CloudEvent in binary mode, as state changes are."""
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", mail.id.encode()),
        ("ce_source", f"/engine/{app}".encode()),
        ("ce_type", _TYPE),
        ("ce_subject", mail.run_id.encode()),
        ("ce_time", msgspec.json.encode(utc(mail.at))[1:-1]),
    )
    trace = (("traceparent", mail.traceparent.encode()),) if mail.traceparent else ()
    return (*headers, *trace, ("content-type", b"application/json"))


def read_batch(value: bytes | None, headers: Headers) -> LogBatch | None:
    """What a record of the log topic says; None for a type this version does not know, which readers skip.

    Raises EventError where the record says it is one of ours and is not.
    """
    if type_of(headers) != _TYPE:
        return None
    if value is None or len(value) > _MAX_VALUE_BYTES:
        raise EventError(Reason.MALFORMED_DATA, f"a record of type {LOGS} has no value, or one of more than a mebibyte")
    return decode_batch(value)


def decode_batch(value: bytes) -> LogBatch:
    """The batch that a record's value holds. Raises EventError."""
    try:
        return _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventError(Reason.MALFORMED_DATA, f"a record of type {LOGS} cannot be read: {error}") from error


def _valid(text: str) -> str:
    # As everywhere: what was made of odd bytes shows them escaped, and can be encoded.
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
