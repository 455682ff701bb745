"""The event lister: reads events straight from their topic, and finds out what became of each; it writes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec

from engine.broker import Broker, Record, Standing
from engine.declarations import Declaration
from engine.errors import EventError, TopicError
from engine.event_fates import Knowledge, Verdict, flows_for, judge
from engine.events import RawEvent, read
from engine.history import History
from engine.runs import run_id_of
from engine.settings import Settings
from engine.snapshots import snapshot


class Listed(msgspec.Struct, frozen=True):
    """An event as it lies on its topic, and what became of it."""

    topic: str
    partition: int
    offset: int
    at: datetime
    source: str | None
    id: str | None
    type: str | None
    bytes: int
    verdict: Verdict


class EventLister:
    """Lists the events of one topic of an app."""

    def __init__(self, settings: Settings, broker: Broker, topic: str) -> None:
        self._settings, self._broker, self._topic = settings, broker, topic
        self._offsets = broker.offset_reader()

    async def close(self) -> None:
        """Free everything."""
        await self._offsets.close()

    async def standing(self) -> Standing:
        """How far the topic has come, the intake with it, and the topics that the history is made of.

        Raises KafkaUnavailable, and TopicError where the topic does not exist.
        """
        settings = self._settings
        topics = [self._topic, settings.states_topic, settings.dead_letters_topic]
        found = await self._offsets.read([settings.intake_group], topics)
        if not any(topic == self._topic for topic, _ in found.ends):
            raise TopicError(self._topic, "does not exist", "Check its name; `engine flows ls` lists topics of flows.")
        return found

    async def latest(self, standing: Standing, limit: int) -> list[Record]:
        """The last records, by the time that Kafka says, the oldest first."""
        starts = {
            n: max(standing.begins.get((topic, n), 0), end - limit)
            for (topic, n), end in standing.ends.items()
            if topic == self._topic
        }
        records: list[Record] = []
        async with aclosing(snapshot(self._broker, self._topic, starts=starts)) as found:
            async for record in found:
                records.append(record)
        records.sort(key=lambda record: (record.timestamp_ms, record.partition, record.offset))
        return records[max(0, len(records) - limit) :]

    def listed(
        self,
        records: Sequence[Record],
        history: History,
        declarations: Mapping[str, Declaration],
        standing: Standing,
        *,
        is_cut: bool = False,
    ) -> list[Listed]:
        """What became of each. ``is_cut`` says that the history was made of the last records alone."""
        committed = standing.committed.get(self._settings.intake_group, {})
        behind = self.behind(history, standing)
        oldest = time.time() - self._settings.history_retention_seconds
        made: list[Listed] = []
        for record in records:
            doubt = ""
            if behind:
                doubt = f"the history is {behind:,} records behind"
            elif is_cut:
                doubt = "only the last records were read; a history database has all"
            elif record.timestamp_ms / 1000 < oldest:
                doubt = "it is older than what the history keeps"
            until = committed.get((record.topic, record.partition))
            made.append(self._listed(record, history, Knowledge(list(declarations.values()), until, doubt)))
        return made

    def _listed(self, record: Record, history: History, known: Knowledge) -> Listed:
        event: RawEvent | EventError
        try:
            event = read(record.value, record.headers, record.position)
        except EventError as error:
            event = error  # told in its verdict
        same = []
        source = id = type = None
        if not isinstance(event, EventError):
            source, id, type = event.source, event.id, event.type
            for one in flows_for(record.topic, event, known.declarations):
                run = history.run(run_id_of(self._settings.app, one.name, event.source, event.id))
                same += [run] if run is not None else []
        verdict = judge(record.topic, event, record.offset, history.event(record.position), same, known)
        at = datetime.fromtimestamp(max(0, min(record.timestamp_ms, 253_402_300_799_000)) / 1000, UTC)
        size = len(record.value or b"")
        return Listed(record.topic, record.partition, record.offset, at, source, id, type, size, verdict)

    def behind(self, history: History, standing: Standing) -> int:
        """Records that the history has not read of those that were there when we looked how far the intake is."""
        wanted = (self._settings.states_topic, self._settings.dead_letters_topic)
        read = history.offsets()
        unread = [
            end - read.get(place, standing.begins.get(place, 0)) for place, end in standing.ends.items() if place[0] in wanted
        ]
        return sum(max(0, count) for count in unread)
