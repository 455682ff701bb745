"""Reads a topic for waits that look further back than memory reaches: from a time on, up to the recent events; no tail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from engine.broker import Broker, Partition, Record, Source
from engine.errors import EventError
from engine.event_waits import Cohort, RecentEvents, Seen
from engine.events import read

POLL_RECORDS = 500
_POLL_SECONDS = 0.2


class BacklogReader:
    """A reader for one cohort, which it moves on; what memory holds is left to memory."""

    def __init__(self, broker: Broker, topic: str, recent: RecentEvents, cohort: Cohort) -> None:
        self._topic, self._recent, self._cohort = topic, recent, cohort
        self._source = broker.source([topic], group=None, on_assigned=self._begin)
        #: By partition, where the source goes on.
        self._at: dict[int, int] = {}

    @property
    def is_done(self) -> bool:
        """Whether memory has all that is left."""
        return self._cohort.offsets is not None and not self._recent.lacking(self._cohort.offsets)

    async def start(self) -> None:
        """Connect and find where to begin. Raises KafkaUnavailable or TopicError."""
        await self._source.start()

    async def read(self) -> list[Seen]:
        """Some of the events that the cohort has not seen and memory does not hold. Raises KafkaUnavailable."""
        lacking = [] if self._cohort.offsets is None else self._recent.lacking(self._cohort.offsets)
        if self._cohort.offsets is not None:
            self._turn_to(lacking, self._cohort.offsets)
        records = await poll(self._source)
        offsets = self._cohort.offsets
        if offsets is None:
            return []  # The source gives nothing before ``_begin`` has answered; what goes wrong there the poll raises.
        if not records:
            for n in lacking:
                self._at[n] = await self._source.position((self._topic, n))
                offsets[n] = max(offsets.get(n, 0), self._at[n])
        return self._take(records, offsets)

    async def close(self) -> None:
        """Disconnect."""
        await self._source.close()

    async def _begin(self, assigned: Sequence[Partition]) -> Mapping[Partition, int]:
        cohort = self._cohort
        if cohort.offsets is None:
            # Taken before the question: where Kafka knows nothing so new, all that the tail has read by now is older.
            ends = dict(self._recent.ends)
            found = await asyncio.gather(*(self._source.offset_at(place, cohort.since_ms) for place in assigned))
            starts = {n: at for (_, n), at in zip(assigned, found, strict=True)}
            cohort.offsets = {n: ends.get(n, 0) if at is None else at for n, at in starts.items()}
            if all(at is None or at >= self._recent.origins.get(n, 0) for n, at in starts.items()):
                # Said now: a cohort whose waits all end on the way never gets to the tail to say it there.
                self._recent.learn(cohort.since_ms)
        return {place: cohort.offsets.get(place[1], 0) for place in assigned}

    def _turn_to(self, lacking: Sequence[int], offsets: Mapping[int, int]) -> None:
        """Read these partitions only, each where the cohort goes on."""
        for n in lacking:
            # Records that were left to memory may have gone from there since.
            if self._at.get(n, 0) > offsets.get(n, 0):
                self._at[n] = offsets.get(n, 0)
                self._source.seek((self._topic, n), self._at[n])
        mine = {(self._topic, n) for n in lacking} & self._source.assignment
        self._source.resume(sorted(mine))
        self._source.pause(sorted(self._source.assignment - mine))

    def _take(self, records: Sequence[Record], offsets: dict[int, int]) -> list[Seen]:
        events: list[Seen] = []
        for record in records:
            n, start = record.partition, self._recent.starts.get(record.partition, 0)
            self._at[n] = record.position.next_offset
            if record.offset < offsets.get(n, 0):
                continue
            # A record at or after the start says, too, that none is missing before it.
            offsets[n] = max(offsets.get(n, 0), min(self._at[n], start))
            if record.offset < start and (seen := read_event(record)) is not None:
                events.append(seen)
                if record.offset < self._recent.origins.get(n, 0):
                    self._cohort.history_ms = max(self._cohort.history_ms, record.timestamp_ms + 1)
        return events


def read_event(record: Record) -> Seen | None:
    """The event of a record; None where it is not one."""
    try:
        return Seen(read(record.value, record.headers, record.position), record.position, record.timestamp_ms)
    except EventError:
        return None  # Nobody can wait for it; the intake, where it reads the topic, writes the dead letter.


async def poll(source: Source) -> list[Record]:
    """A poll that may be cancelled, which closes the source."""
    polling = asyncio.ensure_future(source.poll(timeout_seconds=_POLL_SECONDS, max_records=POLL_RECORDS))
    try:
        # A poll itself must never be cancelled, so it is a task of its own.
        await asyncio.wait((polling,))
    except asyncio.CancelledError:
        await source.close()
        await asyncio.wait((polling,))
        if not polling.cancelled():
            polling.exception()  # seen; whoever closes asks for nothing more
        raise
    return polling.result()
