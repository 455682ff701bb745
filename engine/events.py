"""Events: reading CloudEvents and bare records from raw bytes, writing them back; pure values and rules.

Sources: CloudEvents 1.0.2, its Kafka protocol binding 1.0.2 and JSON format 1.0.2; W3C Trace Context level 1.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

import msgspec

from engine.errors import EventError

T = TypeVar("T")

#: Kafka record headers: names may repeat, values are bytes (Kafka also allows None, which we read as empty).
Headers = tuple[tuple[str, bytes], ...]

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,64}\Z")
_REQUIRED = ("id", "source", "type")
_CONTEXT = frozenset({"specversion", "id", "source", "type", "subject", "time", "dataschema", "datacontenttype"})


class Reason(StrEnum):
    """Why a record went to the dead-letter topic: the value of its ``x-engine-reason`` header."""

    MALFORMED_EVENT = "malformed-event"  #: its CloudEvents attributes are missing, repeated or wrong
    MALFORMED_DATA = "malformed-data"  #: its data is not the JSON it should be
    INVALID_PARAMETERS = "invalid-parameters"  #: its data does not fit the parameters of the flow
    PREDICATE_FAILED = "predicate-failed"  #: the ``where`` of a trigger raised
    KEY_FAILED = "key-failed"  #: the ``key`` of a trigger raised or gave no string
    TOO_LARGE = "too-large"  #: the state change it would make is larger than the state topic takes
    RUN_FAILED = "run-failed"  #: its run FAILED, and the flow says ``on_failure="dead-letter"``
    RUN_CRASHED = "run-crashed"  #: its run CRASHED, and the flow says ``on_failure="dead-letter"``
    UNKNOWN_FLOW = "unknown-flow"  #: it was replayed into a flow that no handler declares
    NO_MATCH = "no-match"  #: it was replayed, and no trigger of its topic takes it
    MALFORMED_REPLAY = "malformed-replay"  #: a record of the replays topic that is no replay


class Position(msgspec.Struct, frozen=True, order=True, gc=False):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int

    @property
    def next_offset(self) -> int:
        """What to commit when this record is done with."""
        return self.offset + 1

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class Event(msgspec.Struct, Generic[T], frozen=True, kw_only=True, omit_defaults=True):
    """What happened. Its identity is ``source`` and ``id``.

    A flow that asks for ``Event[Order]`` gets the whole of it, with ``data`` decoded to ``Order``.
    """

    id: str
    source: str
    #: The empty string for a bare record, which only a trigger without ``type`` accepts.
    type: str = ""
    subject: str | None = None
    time: datetime | None = None
    dataschema: str | None = None
    datacontenttype: str | None = None
    #: CloudEvents extension attributes, as text.
    extensions: dict[str, str] = {}
    #: Where the record lay; None for an event that never was a record.
    position: Position | None = None
    #: The producer's span (W3C); None where it sent none, or a malformed one.
    traceparent: str | None = None
    tracestate: str | None = None
    data: T


#: An event whose data is still the bytes as they came; None where there were none.
RawEvent = Event[bytes | None]


def read(value: bytes | None, headers: Headers, position: Position) -> RawEvent:
    """The event that a record carries: CloudEvents binary or structured mode, else a bare record.

    A bare record has the id ``topic/partition/offset``, the topic as source and the empty type. Its data is not looked at yet.
    Raises EventError (malformed-event).
    """
    content_type = ""
    attributes: dict[str, str] | None = None
    trace: dict[str, list[bytes]] = {}
    for name, content in headers:
        lower = name.lower()
        if lower == "content-type":
            content_type = _text(lower, content)
        elif lower.startswith("ce_"):
            attributes = {} if attributes is None else attributes
            if lower[3:] in attributes:
                raise EventError(Reason.MALFORMED_EVENT, f"the header {lower} is there twice")
            attributes[lower[3:]] = _text(lower, content)
        elif lower in ("traceparent", "tracestate"):
            trace.setdefault(lower, []).append(content)
    if content_type.lower().startswith("application/cloudevents"):
        attributes, value = _structured(value, content_type)
    elif attributes is None:
        if not trace and not content_type:
            return Event(id=str(position), source=position.topic, position=position, data=value)
        attributes = {"specversion": "1.0", "id": str(position), "source": position.topic, "type": ""}
        if content_type:
            attributes["datacontenttype"] = content_type
        return _event(attributes, value, position, trace)
    elif content_type:
        attributes["datacontenttype"] = content_type
    _check(attributes)
    return _event(attributes, value, position, trace)


def from_structured(value: bytes, position: Position) -> RawEvent:
    """The event in a JSON document of the CloudEvents JSON format. Raises EventError (malformed-event)."""
    attributes, data = _structured(value, "application/cloudevents+json")
    _check(attributes)
    return _event(attributes, data, position, {})


def decode_data(event: RawEvent, type: Any) -> Any:
    """The event's data as ``type`` (anything msgspec converts to). No data reads as None.

    Raises EventError: malformed-data where the bytes are not what their content type says, invalid-parameters where the
    value does not fit the type; the text names the field.
    """
    content_type = (event.datacontenttype or "application/json").partition(";")[0].strip().lower()
    if type is bytes and event.data is not None:
        return event.data
    is_text = content_type.startswith("text/") and event.data is not None
    if not is_text and content_type != "application/json" and not content_type.endswith("+json"):
        raise EventError(
            Reason.MALFORMED_DATA, f"data of content type {content_type!r} cannot be decoded; send application/json"
        )
    try:
        if is_text:
            return msgspec.convert((event.data or b"").decode(), type)
        if event.data is None or event.data == b"":
            return msgspec.convert(None, type)
        return msgspec.json.decode(event.data, type=type)
    except msgspec.ValidationError as error:
        raise EventError(Reason.INVALID_PARAMETERS, str(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise EventError(Reason.MALFORMED_DATA, f"{error}") from error
    except Exception as error:  # a type's own code (__post_init__ …): the record goes to the dead letters with what it raised
        raise EventError(Reason.INVALID_PARAMETERS, text_of(error)) from error


def to_headers(event: Event[Any]) -> Headers:
    """The record headers of an event in CloudEvents binary mode; the record's value is its encoded data."""
    attributes = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time.isoformat() if event.time is not None else None,
        "dataschema": event.dataschema,
        **event.extensions,
    }
    headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items() if text is not None]
    headers.append(("content-type", (event.datacontenttype or "application/json").encode()))
    if event.traceparent is not None:
        headers.append(("traceparent", event.traceparent.encode()))
    if event.tracestate is not None:
        headers.append(("tracestate", event.tracestate.encode()))
    return tuple(headers)


def valid_traceparent(text: str | None) -> str | None:
    """``text`` where it is a well-formed version-00 traceparent, else None: W3C says to start a new trace then."""
    return text if text is not None and _TRACEPARENT.match(text) else None


def text_of(error: Exception) -> str:
    """Name and text of what user code raised."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except Exception as broken:  # user code in __str__: the dead letter is written all the same
        return f"{name}: <its text cannot be had: {type(broken).__name__}>"


def _text(name: str, content: bytes | None) -> str:
    try:
        return (content or b"").decode()
    except UnicodeDecodeError as error:
        raise EventError(Reason.MALFORMED_EVENT, f"the header {name} is not UTF-8") from error


def _structured(value: bytes | None, content_type: str) -> tuple[dict[str, str], bytes | None]:
    if not content_type.lower().startswith("application/cloudevents+json"):
        raise EventError(Reason.MALFORMED_EVENT, f"{content_type} is not supported; send application/cloudevents+json")
    try:
        document = msgspec.json.decode(value or b"", type=dict[str, msgspec.Raw])
        raw_data = document.pop("data", None)
        data = None if raw_data is None or bytes(raw_data) == b"null" else bytes(raw_data)
        if (encoded := document.pop("data_base64", None)) is not None:
            data = base64.b64decode(msgspec.json.decode(encoded, type=str), validate=True)
        elif data is not None and not _is_json(document.get("datacontenttype")):
            # JSON format 1.0.2 §3.1.1: data of another media type is a JSON string that holds the text.
            data = msgspec.json.decode(data, type=str).encode()
        attributes = {name: _scalar(name, raw) for name, raw in document.items() if bytes(raw) != b"null"}
    except EventError:
        raise
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EventError(Reason.MALFORMED_EVENT, f"not a CloudEvent in JSON: {error}") from error
    return attributes, data


def _is_json(raw: msgspec.Raw | None) -> bool:
    if raw is None or bytes(raw) == b"null":
        return True
    kind = msgspec.json.decode(raw, type=str).partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _scalar(name: str, raw: msgspec.Raw) -> str:
    value = msgspec.json.decode(raw, type=str | bool | int)
    if isinstance(value, bool):
        return "true" if value else "false"
    if name in _CONTEXT and not isinstance(value, str):
        raise EventError(Reason.MALFORMED_EVENT, f"the attribute {name} is not a string")
    return str(value)


def _check(attributes: Mapping[str, str]) -> None:
    version = attributes.get("specversion")
    if version != "1.0":
        seen = "missing" if version is None else f"{version[:20]!r}"
        raise EventError(Reason.MALFORMED_EVENT, f"specversion is {seen}; the engine reads 1.0")
    for name in _REQUIRED:
        if not attributes.get(name):
            raise EventError(Reason.MALFORMED_EVENT, f"the required attribute {name} is missing or empty")


def _event(
    attributes: dict[str, str], data: bytes | None, position: Position, trace: Mapping[str, Iterable[bytes]]
) -> RawEvent:
    known = {name: attributes.pop(name, None) for name in _CONTEXT}
    if unknown := [name for name in attributes if not _ATTRIBUTE.match(name)]:
        raise EventError(Reason.MALFORMED_EVENT, f"{unknown[0][:64]!r} is not a valid attribute name")
    try:
        time = None if known["time"] is None else msgspec.convert(known["time"], datetime)
    except msgspec.ValidationError as error:
        raise EventError(Reason.MALFORMED_EVENT, f"time is not RFC 3339: {known['time'][:64]!r}") from error  # type: ignore[index]
    return Event(
        id=known["id"] or "",
        source=known["source"] or "",
        type=known["type"] or "",
        subject=known["subject"],
        time=time,
        dataschema=known["dataschema"],
        datacontenttype=known["datacontenttype"],
        # The headers go before the extensions: the record's last sender is nearer than the event's first.
        traceparent=valid_traceparent(_single(trace.get("traceparent")) or attributes.pop("traceparent", None)),
        tracestate=_single(trace.get("tracestate")) or attributes.pop("tracestate", None),
        extensions=attributes,
        position=position,
        data=data,
    )


def _single(values: Iterable[bytes] | None) -> str | None:
    """The only value; None where it is repeated or not ASCII, which makes a trace header malformed."""
    found = list(values or ())
    value = found[0] if len(found) == 1 else None
    return value.decode() if value is not None and value.isascii() else None
