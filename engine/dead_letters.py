"""Dead letters, their marks and their replays as records: how each is written and read; no I/O.

What the engine adds to a record's own headers stands behind them and begins with one certain header. So whatever a
producer called its headers, ours are those from the last one of that name on, and its own stay as they were.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum

import msgspec

from engine.broker import Outgoing, Record
from engine.errors import EventError
from engine.events import Headers, Position, Reason, valid_traceparent
from engine.runs import digest

#: What the headers that are added, and the key, may take beside the value.
OVERHEAD_BYTES = 65_536
#: What a header costs beside its name and content.
_HEADER_BYTES = 10
_MAX_ERROR_TEXT = 4_096
_REASON, _REPLAY, _MARK, _EVENT_AT = "x-engine-reason", "x-engine-replay", "x-engine-mark", "x-engine-event-at"


class Content(StrEnum):
    """What the value of a letter is: its ``x-engine-value`` header, which is left out for the first."""

    EVENT = "event"  #: the record's own
    PARAMETERS = "parameters"  #: the event is gone from its topic; these are the parameters of the flow that it gave
    ABSENT = "absent"  #: too large for a letter


class Marked(StrEnum):
    """What was done with a letter."""

    DROPPED = "dropped"
    REPLAYED = "replayed"


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine says of a letter, beside the record's own key, value and headers."""

    reason: str
    error: str = ""
    #: Where the event lay; None where there was none.
    origin: Position | None = None
    #: RFC 3339. When it became a letter, and when its producer had made the event.
    at: str = ""
    event_at: datetime | None = None
    flow: str | None = None
    #: The replay that has failed again.
    replay: str | None = None
    #: The run that has failed, its ordering key and its trace.
    run_id: str | None = None
    key: str | None = None
    trace: str | None = None
    content: Content = Content.EVENT

    @property
    def identity(self) -> str:
        """The same for each copy of one letter, which may be written more than once; a digest."""
        parts = ("run", self.run_id) if self.run_id else ("record", str(self.origin), self.flow or "", self.replay or "")
        return digest(*parts)


class Letter(msgspec.Struct, frozen=True):
    """A dead letter as it lies on its topic."""

    record: Record
    details: Details
    #: The headers of the event itself.
    headers: Headers

    @property
    def id(self) -> str:
        """Where it lies: ``partition/offset``."""
        return f"{self.record.partition}/{self.record.offset}"


class Mark(msgspec.Struct, frozen=True):
    """That a letter was dropped or replayed: a record of the dead-letter topic, in the letter's own partition."""

    marked: Marked
    #: ``partition/offset`` of the letter, and its identity.
    letter: str
    identity: str
    at: str
    replay: str | None = None


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """An event, or a flow's parameters, to be taken in once more: what a record of the replays topic says."""

    id: str
    origin: Position | None = None
    #: When its producer had made it: a run that waits for other events looks for them from then on.
    event_at: datetime | None = None
    #: The only flow to run; None for all that the triggers of the origin's topic choose.
    flow: str | None = None
    letter: str | None = None
    #: The run that it repeats, its ordering key, and the trace to link to.
    repeats: str | None = None
    key: str | None = None
    trace: str | None = None
    content: Content = Content.EVENT
    #: The headers of the event itself.
    headers: Headers = ()


def replay_id_of(identity: str, earlier: int, flow: str | None, value: bytes | None) -> str:
    """The id of a letter's replay when it was replayed ``earlier`` times: the same command, repeated, is the same replay.

    ``value`` is the edited one, None for the letter's own.
    """
    edited = "" if value is None else hashlib.blake2b(value, digest_size=16).hexdigest()
    return digest(identity, str(earlier), flow or "", edited)


def write_letter(
    topic: str, details: Details, key: bytes | None, value: bytes | None, headers: Headers, limit_bytes: int
) -> Outgoing:
    """The record of a letter. What would not fit is left out: the value first, and the letter says so; then key and headers."""
    around = len(key or b"") + sum(len(name) + len(content or b"") + _HEADER_BYTES for name, content in headers)
    if len(value or b"") + around + OVERHEAD_BYTES > limit_bytes:
        details = msgspec.structs.replace(details, content=Content.ABSENT)
    if around + OVERHEAD_BYTES > limit_bytes:
        key, headers = None, ()
    added = [
        (_REASON, details.reason),
        ("x-engine-error", details.error[:_MAX_ERROR_TEXT]),
        ("x-engine-origin", None if details.origin is None else str(details.origin)),
        ("x-engine-at", details.at),
        (_EVENT_AT, None if details.event_at is None else details.event_at.isoformat()),
        ("x-engine-flow", details.flow),
        ("x-engine-replay-of", details.replay),
        ("x-engine-run", details.run_id),
        ("x-engine-key", details.key),
        ("x-engine-trace", details.trace),
        ("x-engine-value", None if details.content is Content.EVENT else details.content.value),
    ]
    kept = None if details.content is Content.ABSENT else value
    return Outgoing(topic, key, kept, (*headers, *_encoded(added)))


def write_mark(topic: str, mark: Mark) -> Outgoing:
    """The record of a mark: behind its letter, so that whoever follows the partition sees them in order."""
    added = [
        (_MARK, mark.marked.value),
        ("x-engine-letter", mark.letter),
        ("x-engine-identity", mark.identity),
        ("x-engine-at", mark.at),
        (_REPLAY, mark.replay),
    ]
    return Outgoing(topic, None, None, _encoded(added), partition=int(mark.letter.partition("/")[0]))


def read_letter(record: Record) -> Letter | Mark | None:
    """What a record of the dead-letter topic is; None for what this version does not know."""
    own, added = _split(record.headers, _REASON)
    if added:
        return Letter(record, _details(added), own)
    _, marked = _split(record.headers, _MARK)
    try:
        return Mark(
            Marked(marked[_MARK]),
            marked["x-engine-letter"],
            marked["x-engine-identity"],
            marked.get("x-engine-at", ""),
            marked.get(_REPLAY),
        )
    except (KeyError, ValueError):
        return None  # Somebody else's record, or a newer version's: readers skip it.


def write_replay(topic: str, replay: Replay, key: bytes | None, value: bytes | None) -> Outgoing:
    """The record that makes the intake take something in once more."""
    added = [
        (_REPLAY, replay.id),
        ("x-engine-origin", None if replay.origin is None else str(replay.origin)),
        (_EVENT_AT, None if replay.event_at is None else replay.event_at.isoformat()),
        ("x-engine-flow", replay.flow),
        ("x-engine-letter", replay.letter),
        ("x-engine-repeats", replay.repeats),
        ("x-engine-key", replay.key),
        ("x-engine-trace", replay.trace),
        ("x-engine-value", None if replay.content is Content.EVENT else replay.content.value),
    ]
    return Outgoing(topic, key, value, (*replay.headers, *_encoded(added)))


def read_replay(headers: Headers) -> Replay:
    """What a record of the replays topic asks for. Raises EventError (malformed-replay)."""
    own, added = _split(headers, _REPLAY)
    if not added.get(_REPLAY):
        raise EventError(Reason.MALFORMED_REPLAY, f"the header {_REPLAY} is missing or empty")
    content = _content(added)
    origin = _position(added.get("x-engine-origin"))
    flow = added.get("x-engine-flow")
    if content is Content.ABSENT or (origin is None and content is Content.EVENT) or (flow is None and origin is None):
        raise EventError(Reason.MALFORMED_REPLAY, "it needs a value, and x-engine-origin as topic/partition/offset")
    if content is Content.PARAMETERS and flow is None:
        raise EventError(Reason.MALFORMED_REPLAY, "parameters need x-engine-flow")
    return Replay(
        id=added[_REPLAY],
        origin=origin,
        event_at=_moment(added.get(_EVENT_AT)),
        flow=flow,
        letter=added.get("x-engine-letter"),
        repeats=added.get("x-engine-repeats"),
        key=added.get("x-engine-key"),
        trace=valid_traceparent(added.get("x-engine-trace")),
        content=content,
        headers=own,
    )


def _details(added: dict[str, str]) -> Details:
    return Details(
        reason=added[_REASON],
        error=added.get("x-engine-error", ""),
        origin=_position(added.get("x-engine-origin")),
        at=added.get("x-engine-at", ""),
        event_at=_moment(added.get(_EVENT_AT)),
        flow=added.get("x-engine-flow"),
        replay=added.get("x-engine-replay-of"),
        run_id=added.get("x-engine-run"),
        key=added.get("x-engine-key"),
        trace=valid_traceparent(added.get("x-engine-trace")),
        content=_content(added),
    )


def _content(added: dict[str, str]) -> Content:
    try:
        return Content(added.get("x-engine-value", Content.EVENT))
    except ValueError:
        return Content.ABSENT  # Of a newer version: nothing that this one could take in.


def _position(text: str | None) -> Position | None:
    topic, _, rest = (text or "").partition("/")
    partition, _, offset = rest.partition("/")
    if not topic or not _is_number(partition) or not _is_number(offset):
        return None
    return Position(topic, int(partition), int(offset))


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None  # None was said, or by somebody who does not know how: the record's own time has to do.
    return moment if moment.tzinfo is not None else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _split(headers: Headers, first: str) -> tuple[Headers, dict[str, str]]:
    """The headers before the last one called ``first``, and those from there on."""
    for place in range(len(headers) - 1, -1, -1):
        if headers[place][0] == first:
            return headers[:place], {name: content.decode(errors="replace") for name, content in headers[place:]}
    return headers, {}


def _encoded(added: list[tuple[str, str | None]]) -> Headers:
    return tuple((name, text.encode(errors="replace")) for name, text in added if text is not None)
