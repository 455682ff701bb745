"""The translator: what one record becomes, SCHEDULED state changes and dead letters; it reads and writes nothing."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec

from engine.broker import Outgoing, Record
from engine.dead_letters import OVERHEAD_BYTES, Content, Details, Replay, read_replay, write_letter
from engine.errors import EventError
from engine.events import Headers, Position, RawEvent, Reason, read
from engine.logs import logger
from engine.runs import repeat_id_of, run_id_of
from engine.settings import Settings
from engine.states import Envelope, Origin, Replayed, State, StateChange, utc
from engine.telemetry import Tracer
from engine.trace_contexts import child_of
from engine.triggers import Match, Refusal, Triggers


class Taken(msgspec.Struct):
    """What became of one record. A replay stands for the event that once lay at ``origin``."""

    record: Record
    started_at: float
    #: Where the event lies, or lay, and its own headers.
    origin: Position | None
    headers: Headers
    replay: Replay | None = None
    event_id: str = ""
    #: The producer's span, that of the record's ``process``, and the trace that a replay has a link to.
    producer: str | None = None
    context: str = ""
    replay_of: str | None = None
    outgoing: list[Outgoing] = []
    #: Why it became dead letters.
    reasons: list[str] = []
    #: Each SCHEDULED with the context of its ``send``.
    scheduled: list[tuple[str, StateChange]] = []

    @property
    def is_dead(self) -> bool:
        """Whether a dead letter came of it."""
        return len(self.outgoing) > len(self.scheduled)


class Translator:
    """Knows the triggers."""

    def __init__(self, settings: Settings, triggers: Triggers, tracer: Tracer) -> None:
        self._settings = settings
        self._triggers = triggers
        self._tracer = tracer

    def translate(self, record: Record) -> Taken:
        """The records to be written for a record of an event topic, or of the replays topic."""
        taken = Taken(record, time.time(), record.position, record.headers, event_id=str(record.position))
        try:
            if record.topic == self._settings.replays_topic:
                taken.replay = read_replay(record.headers)
                taken.origin, taken.headers = taken.replay.origin, taken.replay.headers
            event = self._read(taken)
            matches = self._match(taken, event)
        except EventError as error:
            taken.context = taken.context or self._tracer.begin(None, record.position)
            taken.outgoing.append(self._dead_letter(taken, error, taken.replay.flow if taken.replay else None))
            return taken
        for match in matches:
            found = self._check_size(match)
            if isinstance(found, Refusal):
                taken.outgoing.append(self._dead_letter(taken, found.error, found.flow))
                continue
            change = self._scheduled(taken, found, event)
            send = child_of(taken.context, change.run_id, 0, 0, "send")
            taken.outgoing.append(write_scheduled(self._settings, change, send))
            taken.scheduled.append((send, change))
        return taken

    def refused(self, taken: Taken, error: Exception, *, is_bare: bool = False) -> Outgoing:
        """The dead letter of a record of which something was too large for its topic; without its value.

        A bare one is without its key and headers, too: that always fits.
        """
        if is_bare:
            replay = taken.replay and msgspec.structs.replace(taken.replay, key=None)
            taken = msgspec.structs.replace(taken, headers=(), replay=replay)
        letter = self._dead_letter(taken, EventError(Reason.TOO_LARGE, str(error)), None, with_value=False)
        return msgspec.structs.replace(letter, key=None) if is_bare else letter

    def _read(self, taken: Taken) -> RawEvent | None:
        """The event; None where only the parameters of a run are known that had none."""
        if taken.origin is None:
            taken.context = self._tracer.begin(None, taken.record.position)
            return None
        replay = taken.replay
        has_event = replay is None or replay.content is Content.EVENT
        event = read(taken.record.value if has_event else None, taken.headers, taken.origin)
        taken.event_id = event.id
        if replay is None:
            taken.producer = event.traceparent
        else:
            taken.replay_of = replay.trace or event.traceparent
        taken.context = self._tracer.begin(taken.producer, taken.record.position)
        return event

    def _match(self, taken: Taken, event: RawEvent | None) -> list[Match | Refusal]:
        replay = taken.replay
        if replay is not None and replay.flow is not None and (event is None or replay.content is Content.PARAMETERS):
            return [self._triggers.match_parameters(replay.flow, taken.record.value or b"{}", replay.key)]
        if event is None or event.position is None:
            return []
        if replay is None:
            return self._triggers.match(event.position.topic, event)
        return self._triggers.match_again(event.position.topic, event, replay.flow)

    def _check_size(self, match: Match | Refusal) -> Match | Refusal:
        limit = self._settings.max_record_bytes
        if isinstance(match, Refusal) or len(match.parameters) + OVERHEAD_BYTES <= limit:
            return match
        size = len(match.parameters)
        return Refusal(match.flow, EventError(Reason.TOO_LARGE, f"{size:,} bytes of parameters, limit {limit:,}"))

    def _scheduled(self, taken: Taken, match: Match, event: RawEvent | None) -> StateChange:
        replay, place = taken.replay, taken.record.position
        identity = ("", "") if event is None else (event.source, event.id)
        run_id = run_id_of(self._settings.app, match.flow, *identity)
        replayed = None
        if replay is not None:
            # Its own identity, so that it does run again; and the same for each copy of this replay.
            run_id = repeat_id_of(run_id if event is not None else replay.repeats or "", replay.id)
            replayed = Replayed(replay.id, place.topic, place.partition, place.offset, replay.letter)
        origin = None
        if event is not None and event.position is not None:
            at = _time_of(taken)
            lies = (event.position.topic, event.position.partition, event.position.offset)
            origin = Origin(event.source, event.id, event.type, *lies, at=at, replay=replayed)
        return StateChange(
            run_id=run_id,
            flow=match.flow,
            state=State.SCHEDULED,
            seq=0,
            epoch=0,
            attempt=0,
            at=utc(taken.started_at),
            parameters=msgspec.Raw(match.parameters),
            event=origin,
            key=match.key,
            repeats=None if replay is None else replay.repeats,
        )

    def _dead_letter(self, taken: Taken, error: EventError, flow: str | None, *, with_value: bool = True) -> Outgoing:
        record, replay, limit = taken.record, taken.replay, self._settings.max_record_bytes
        if record.value is not None and with_value and len(record.value) + OVERHEAD_BYTES > limit:
            # Not even the dead-letter topic takes it: the letter says where the record lies.
            error = EventError(Reason.TOO_LARGE, f"{len(record.value):,} bytes; the record is at its origin")
        content = Content.ABSENT if not with_value else Content.EVENT if replay is None else replay.content
        details = Details(
            reason=error.reason,
            error=error.cause,
            origin=taken.origin,
            at=utc(time.time()).isoformat(),
            event_at=_time_of(taken),
            flow=flow,
            replay=None if replay is None else replay.id,
            key=None if replay is None else replay.key,
            trace=None if replay is None else replay.trace,
            content=content,
        )
        taken.reasons.append(details.reason)
        logger.warning("dead letter", reason=details.reason, error=error.cause, origin=str(taken.origin), flow=flow)
        return write_letter(self._settings.dead_letters_topic, details, record.key, record.value, taken.headers, limit)


def write_scheduled(settings: Settings, scheduled: StateChange, traceparent: str) -> Outgoing:
    """The record of a SCHEDULED. Its key is the ordering key where the run has one: runs of one key lie in one partition."""
    value, headers = Envelope.of(settings.app, scheduled.run_id).write(scheduled, traceparent)
    key = scheduled.run_id if scheduled.key is None else scheduled.key
    return Outgoing(settings.states_topic, key.encode(), value, headers)


def _time_of(taken: Taken) -> datetime:
    """When the producer says that it made the event, which may be any number; of a replay, what it says of that."""
    if taken.replay is not None and taken.replay.event_at is not None:
        return taken.replay.event_at
    try:
        return datetime.fromtimestamp(taken.record.timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)  # no time that anybody could have meant; the event is as good as any
