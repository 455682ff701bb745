"""The intake: reads event topics and replays, and writes one SCHEDULED state change for each flow an event starts.

Source offsets are committed only after what their records became is acknowledged; what cannot become a run goes to the
dead-letter topic, and the partition goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from engine.broker import Broker, Outgoing, Partition, Record, Sink
from engine.errors import KafkaUnavailable, RecordTooLarge
from engine.events import Position
from engine.logs import logger
from engine.metrics import Counts
from engine.settings import Settings
from engine.states import StateChange
from engine.stops import Stops
from engine.telemetry import Tracer
from engine.translator import Taken, Translator
from engine.triggers import Triggers

_POLL_SECONDS = 0.2
_COMMIT_INTERVAL_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 5.0


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
        counts: Counts | None = None,
        lettered: Collection[str] = (),
    ) -> None:
        """``on_scheduled`` is told of each SCHEDULED and where on the state topic it lies, once that is certain.

        ``lettered`` are the flows whose runs become dead letters where they fail.
        """
        self._settings = settings
        self._sink = sink
        self._translator = Translator(settings, triggers, tracer)
        self._tracer = tracer
        self._on_scheduled = on_scheduled
        self._counts = counts or Counts()
        topics = [*triggers.topics, settings.replays_topic]
        self._source = broker.source(topics, group=settings.intake_group, on_revoked=self._revoked)
        #: Topics that are read no further.
        self.stops = Stops(broker, settings.dead_letters_topic, settings.dead_letter_limit, lettered)
        self._done: dict[Partition, int] = {}
        self._revocations = 0
        self._committed_at = 0.0
        #: Whether it was said that commits fail.
        self._is_trouble_told = False
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
            await self._hold()
            await self._commit()

    async def close(self) -> None:
        """Commit, leave the group. Call after ``run`` has returned or was never begun."""
        self._is_closing = True
        self._committed_at = 0.0
        await self._commit()
        await self.stops.close()
        await self._source.close()

    def stop(self) -> None:
        """Make ``run`` return after the records it has in hand."""
        self._is_closing = True

    async def _take(self, records: list[Record]) -> None:
        revocations = self._revocations
        taken: list[Taken] = []
        left: dict[Partition, int] = {}
        for record in records:
            if self.stops.is_stopped(record.topic):
                left.setdefault((record.topic, record.partition), record.offset)
                continue
            taken.append(self._translator.translate(record))
            if record.topic != self._settings.replays_topic:
                self.stops.count(record.topic, [change.flow for _, change in taken[-1].scheduled], is_dead=taken[-1].is_dead)
        for partition, offset in left.items():
            self._source.seek(partition, offset)
        positions = await self._write([outgoing for one in taken for outgoing in one.outgoing], taken)
        for one in taken:
            # Only now: an offset committed earlier would lose the event if we died in between.
            if revocations == self._revocations:
                self._done[one.record.topic, one.record.partition] = one.record.offset + 1
            self._counts.took(one.record.topic, [change.flow for _, change in one.scheduled], one.reasons)
        self._hand_over(taken, positions)
        if self._tracer.is_on:
            self._trace(taken, time.time())

    def _hand_over(self, taken: list[Taken], positions: list[Position]) -> None:
        written = [position for position in positions if position.topic == self._settings.states_topic]
        if written:
            changes = [msgspec.structs.replace(change, traceparent=send) for one in taken for send, change in one.scheduled]
            self._on_scheduled(list(zip(written, changes, strict=True)))

    async def _hold(self) -> None:
        """Read no further in stopped topics, whichever of their partitions are ours by now; go on in those that resume."""
        mine = self._source.assignment
        if resumed := await self.stops.look():
            self._source.resume([partition for partition in mine if partition[0] in resumed])
        self._source.pause([partition for partition in mine if self.stops.is_stopped(partition[0])])

    async def _write(self, outgoing: list[Outgoing], taken: list[Taken]) -> list[Position]:
        """Write what the records became and answer where it lies. Only a topic with a smaller limit than ours makes it go
        one by one; then nothing is answered."""
        try:
            return await self._write_patiently(outgoing)
        except RecordTooLarge:
            for one in taken:
                try:
                    await self._write_patiently(one.outgoing)
                except RecordTooLarge as error:
                    await self._write_small_letter(one, error)
            return []

    async def _write_small_letter(self, taken: Taken, error: RecordTooLarge) -> None:
        """As much of a letter as the topic takes."""
        try:
            await self._write_patiently([self._translator.refused(taken, error)])
        except RecordTooLarge:  # its headers alone are too much
            await self._write_patiently([self._translator.refused(taken, error, is_bare=True)])

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
            # Refused, the group is rebalancing: the records come again, to us or another, and make the same run ids.
            if await self._source.commit(self._done):
                self._done.clear()
            self._is_trouble_told = False
        except KafkaUnavailable as error:
            # The offsets stay in hand for the next try. Said once: Kafka may be away for long.
            if not self._is_trouble_told:
                logger.warning("cannot commit the events taken in", error=str(error))
            self._is_trouble_told = True

    async def _revoked(self, partitions: Sequence[Partition]) -> None:
        # They may come back to us after another member went further: what was taken in before is not to be committed then,
        # for it would take the group back.
        self._revocations += 1
        self._done.clear()

    def _trace(self, taken: list[Taken], ended_at: float) -> None:
        group, topic = self._settings.intake_group, self._settings.states_topic
        for one in taken:
            position = one.record.position
            times = (one.started_at, ended_at)
            self._tracer.process(one.context, one.producer, position, group, one.event_id, *times, one.replay_of)
            for send, change in one.scheduled:
                self._tracer.send(send, one.context, change, topic, one.started_at, ended_at)
