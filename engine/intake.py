"""The intake: reads event topics and writes one SCHEDULED state change for each flow an event starts.

Source offsets are committed only after what their records became is acknowledged; what cannot become a run goes to the
dead-letter topic, and the partition goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from engine.broker import Broker, Outgoing, Partition, Record, Sink
from engine.errors import EventError, KafkaUnavailable, RecordTooLarge
from engine.events import Position, RawEvent, Reason, read
from engine.logs import logger
from engine.runs import run_id_of
from engine.settings import Settings
from engine.states import Envelope, Origin, State, StateChange, utc
from engine.telemetry import Tracer, child_of
from engine.triggers import Match, Refusal, Triggers

_POLL_SECONDS = 0.2
_COMMIT_INTERVAL_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 5.0
#: What headers, key and the other fields of a SCHEDULED may take beside its parameters.
_OVERHEAD_BYTES = 65_536
_MAX_ERROR_TEXT = 4_096


class _Taken(msgspec.Struct, frozen=True):
    """What became of one record."""

    record: Record
    started_at: float
    event_id: str
    #: The producer's span, and that of the record's ``process``.
    producer: str | None
    context: str
    outgoing: list[Outgoing]
    #: Each SCHEDULED with the context of its ``send``.
    scheduled: list[tuple[str, StateChange]] = []


class Intake:
    """A member of the group ``<app>.intake``."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        sink: Sink,
        triggers: Triggers,
        tracer: Tracer,
        on_scheduled: Callable[[Sequence[tuple[Position, StateChange]]], None],
    ) -> None:
        """``on_scheduled`` is told of each SCHEDULED and where on the state topic it lies, once that is certain."""
        self._settings = settings
        self._sink = sink
        self._triggers = triggers
        self._tracer = tracer
        self._on_scheduled = on_scheduled
        self._source = broker.source(triggers.topics, group=settings.intake_group)
        self._done: dict[Partition, int] = {}
        self._committed_at = 0.0
        self._is_closing = False
        #: Empty while records flow; otherwise what they wait for.
        self.trouble = "not started"

    async def start(self) -> None:
        """Join the group. Raises KafkaUnavailable or TopicError."""
        await self._source.start()
        self.trouble = ""

    async def run(self) -> None:
        """Take events in until ``close``."""
        while not self._is_closing:
            records = await self._source.poll(timeout_seconds=_POLL_SECONDS, max_records=self._settings.poll_records)
            if records:
                await self._take(records)
            await self._commit()

    async def close(self) -> None:
        """Finish the records in hand, commit, leave the group. Call after ``run`` has returned or was never begun."""
        self._is_closing = True
        self._committed_at = 0.0
        await self._commit()
        await self._source.close()

    def stop(self) -> None:
        """Make ``run`` return after the records it has in hand."""
        self._is_closing = True

    async def _take(self, records: list[Record]) -> None:
        taken = [self._translate(record) for record in records]
        positions = await self._write([outgoing for one in taken for outgoing in one.outgoing], taken)
        # Only now: an offset committed earlier would lose the event if we died in between.
        for record in records:
            self._done[record.topic, record.partition] = record.offset + 1
        written = [position for position in positions if position.topic == self._settings.states_topic]
        changes = [msgspec.structs.replace(change, traceparent=send) for one in taken for send, change in one.scheduled]
        self._on_scheduled(list(zip(written, changes, strict=False)))
        if self._tracer.is_on:
            self._trace(taken, time.time())

    def _translate(self, record: Record) -> _Taken:
        now = time.time()
        try:
            event = read(record.value, record.headers, record.position)
        except EventError as error:
            context = self._tracer.begin(None, record.position)
            return _Taken(record, now, str(record.position), None, context, [self._dead_letter(record, error, None)])
        context = self._tracer.begin(event.traceparent, record.position)
        taken = _Taken(record, now, event.id, event.traceparent, context, [])
        for match in self._triggers.match(record.topic, event):
            found = self._check_size(match)
            if isinstance(found, Refusal):
                taken.outgoing.append(self._dead_letter(record, found.error, found.flow))
                continue
            change = self._scheduled(found, event, record, now)
            send = child_of(context, change.run_id, 0, 0, "send")
            value, headers = Envelope.of(self._settings.app, change.run_id).write(change, send)
            key = change.run_id if found.key is None else found.key
            taken.outgoing.append(Outgoing(self._settings.states_topic, key.encode(), value, headers))
            taken.scheduled.append((send, change))
        return taken

    def _check_size(self, match: Match | Refusal) -> Match | Refusal:
        limit = self._settings.max_record_bytes
        if isinstance(match, Refusal) or len(match.parameters) + _OVERHEAD_BYTES <= limit:
            return match
        size = len(match.parameters)
        return Refusal(match.flow, EventError(Reason.TOO_LARGE, f"{size:,} bytes of parameters, limit {limit:,}"))

    def _scheduled(self, match: Match, event: RawEvent, record: Record, now: float) -> StateChange:
        return StateChange(
            run_id=run_id_of(self._settings.app, match.flow, event.source, event.id),
            flow=match.flow,
            state=State.SCHEDULED,
            seq=0,
            epoch=0,
            attempt=0,
            at=utc(now),
            parameters=msgspec.Raw(match.parameters),
            event=Origin(
                *(event.source, event.id, event.type, record.topic, record.partition, record.offset),
                at=datetime.fromtimestamp(record.timestamp_ms / 1000, UTC),
            ),
            key=match.key,
        )

    def _dead_letter(self, record: Record, error: EventError, flow: str | None, *, with_value: bool = True) -> Outgoing:
        value = record.value
        if value is not None and (not with_value or len(value) + _OVERHEAD_BYTES > self._settings.max_record_bytes):
            # Not even the dead-letter topic takes it: the letter says where the record lies.
            error = EventError(Reason.TOO_LARGE, f"{len(value):,} bytes; the record is at its origin")
            value = None
        headers = [
            *record.headers,
            ("x-engine-reason", error.reason.encode()),
            ("x-engine-error", error.cause[:_MAX_ERROR_TEXT].encode(errors="replace")),
            ("x-engine-origin", str(record.position).encode()),
            ("x-engine-at", utc(time.time()).isoformat().encode()),
        ]
        if flow is not None:
            headers.append(("x-engine-flow", flow.encode()))
        logger.warning("dead letter", reason=str(error.reason), error=error.cause, origin=str(record.position), flow=flow)
        return Outgoing(self._settings.dead_letters_topic, record.key, value, tuple(headers))

    async def _write(self, outgoing: list[Outgoing], taken: list[_Taken]) -> list[Position]:
        """Write what the records became and answer where it lies. Only a topic with a smaller limit than ours makes it go
        one by one; then nothing is answered."""
        try:
            return await self._write_patiently(outgoing)
        except RecordTooLarge:
            for one in taken:
                try:
                    await self._write_patiently(one.outgoing)
                except RecordTooLarge as error:
                    refused = EventError(Reason.TOO_LARGE, str(error))
                    await self._write_patiently([self._dead_letter(one.record, refused, None, with_value=False)])
            return []

    async def _write_patiently(self, outgoing: list[Outgoing]) -> list[Position]:
        backoff_seconds = 0.1
        while True:
            try:
                positions = await self._sink.write(outgoing)
                break
            except KafkaUnavailable as error:
                # Nothing is committed, so nothing is lost; written again it may repeat, and run ids tell repeats.
                if not self.trouble:
                    logger.warning("events wait for Kafka", error=str(error))
                self.trouble = str(error)
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(backoff_seconds * 2, _MAX_BACKOFF_SECONDS)
        self.trouble = ""
        return positions

    async def _commit(self) -> None:
        now = time.monotonic()
        if not self._done or now - self._committed_at < _COMMIT_INTERVAL_SECONDS:
            return
        self._committed_at = now
        try:
            if await self._source.commit(self._done):
                self._done.clear()
            else:
                # The group is rebalancing: the records come again, to us or another, and make the same run ids.
                self._done = {part: offset for part, offset in self._done.items() if part in self._source.assignment}
        except KafkaUnavailable as error:
            # The offsets stay in hand for the next try.
            logger.warning("cannot commit the events taken in", error=str(error))

    def _trace(self, taken: list[_Taken], ended_at: float) -> None:
        group, topic = self._settings.intake_group, self._settings.states_topic
        for one in taken:
            position = one.record.position
            self._tracer.process(one.context, one.producer, position, group, one.event_id, one.started_at, ended_at)
            for send, change in one.scheduled:
                self._tracer.send(send, one.context, change, topic, one.started_at, ended_at)
