"""CloudEvents in HTTP requests: what events a request carries, and the records that they become; no I/O.

Source: CloudEvents 1.0.2, its HTTP protocol binding (binary, structured, batched) and JSON format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

import msgspec

from engine.broker import Outgoing
from engine.errors import EventError
from engine.events import Headers, Position, RawEvent, Reason, read, to_headers
from engine.http_answers import RequestRefused

#: Headers of a request as bytes, in their order.
RequestHeaders = Sequence[tuple[bytes, bytes]]

_QUOTED_PAIR = re.compile(r"\\(.)")
_STRUCTURED = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"


class _Required(msgspec.Struct):
    """What each event of a batch must have: looked at first, so that a long list of nothing is refused unread."""

    specversion: str
    id: str
    source: str
    type: str


def events_of(headers: RequestHeaders, topic: str, body: bytes) -> list[RawEvent]:
    """The events of a request. Raises EventError, or RequestRefused where it is of no kind the binding knows."""
    # The record does not exist yet, so the place in the body stands for its position.
    position = Position(topic, 0, 0)
    given = [(name.decode("latin-1").lower(), value) for name, value in headers]
    content_type = next((value.decode("latin-1") for name, value in given if name == "content-type"), "")
    media_type = content_type.partition(";")[0].strip().lower()
    trace = tuple((name, value) for name, value in given if name in ("traceparent", "tracestate"))
    if media_type == _BATCH:
        return _batch(body, trace, position)
    if media_type == _STRUCTURED:
        return [read(body, (("content-type", _STRUCTURED.encode()), *trace), position)]
    if media_type.startswith("application/cloudevents"):
        raise RequestRefused(415, "unsupported-media-type", f"send {_STRUCTURED} or {_BATCH}, not {media_type}")
    attributes = tuple((f"ce_{name[3:]}", _decode(name, value)) for name, value in given if name[:3] == "ce-")
    described = (("content-type", content_type.encode("latin-1")),) if content_type else ()
    if attributes:
        return [read(body or None, (*attributes, *described, *trace), position)]
    # Without attributes only JSON is taken: what a web page may send without asking first is of another type.
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise RequestRefused(
            415, "unsupported-media-type", "send application/json, or a CloudEvent (ce-* headers, or structured)"
        )
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EventError(Reason.MALFORMED_DATA, str(error)) from error
    return [read(body, (*described, *trace), position)]


def outgoing_of(topic: str, event: RawEvent) -> Outgoing:
    """The record of an event. Raises EventError for an event whose data is another."""
    key = event.extensions.get("partitionkey")
    if (event.datacontenttype or "").strip().lower().startswith("application/cloudevents"):
        # As a record of its own the event would be read as the one inside its data.
        raise EventError(Reason.MALFORMED_EVENT, "an event inside an event cannot be taken; send it by itself")
    headers = to_headers(event)
    if not event.type:
        # A bare record has no identity of its own: its readers name it by where it lies.
        headers = tuple((name, value) for name, value in headers if not name.startswith("ce_"))
    return Outgoing(topic, key.encode() if key else None, event.data, headers)


def _batch(body: bytes, trace: Headers, position: Position) -> list[RawEvent]:
    try:
        msgspec.json.decode(body, type=list[_Required])
        elements = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventError(Reason.MALFORMED_EVENT, f"not a batch of CloudEvents in JSON: {error}") from error
    headers = (("content-type", _STRUCTURED.encode()), *trace)
    events = []
    for index, element in enumerate(elements):
        try:
            events.append(read(bytes(element), headers, position))
        except EventError as error:
            # All or nothing: a sender that is told 400 may send the whole batch again.
            raise EventError(error.reason, f"event {index} of the batch: {error.cause}") from error
    return events


def _decode(name: str, value: bytes) -> bytes:
    """A header's value after HTTP binding §3.1.3.2: unquoted, then percent-decoded once, and UTF-8."""
    if len(value) >= 2 and value[:1] == b'"' == value[-1:]:
        value = _QUOTED_PAIR.sub(r"\1", value[1:-1].decode("latin-1")).encode("latin-1")
    decoded = unquote_to_bytes(value)
    try:
        decoded.decode()
    except UnicodeDecodeError as error:
        raise EventError(Reason.MALFORMED_EVENT, f"the header {name} is not percent-encoded UTF-8") from error
    return decoded
