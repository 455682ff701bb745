"""The projector: reads the state, dead-letter and log topics into a history database, from where the database says it was.

It belongs to no consumer group and writes nothing to Kafka. Its offsets lie in the database, written in one transaction with
the rows they led to, so that after any crash it goes on exactly where those end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from engine.broker import Broker, Partition, Record, Source
from engine.errors import KafkaUnavailable, TopicError
from engine.history_errors import HistoryUnavailable
from engine.history_schema import Offsets
from engine.history_store import HistoryStore
from engine.logs import logger
from engine.projection import read_all
from engine.settings import Settings

#: Records of one transaction at most.
BATCH_RECORDS = 5_000
_POLL_SECONDS = 0.2
#: Between two attempts to reach Kafka or the database; it doubles up to the limit.
_BACKOFF_SECONDS, _BACKOFF_LIMIT_SECONDS = 0.2, 5.0
#: How often what is too old or too much is dropped.
_FORGET_SECONDS = 60.0
#: How often it is looked whether the file is still there while nothing comes.
_LOOK_SECONDS = 1.0


class Projector:
    """``await Projector(settings, broker, store).run()``; ``stop`` ends it after the batch at hand."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        store: HistoryStore,
        *,
        fresh: bool = False,
        last_records: int | None = None,
        with_logs: bool = True,
    ) -> None:
        """``fresh`` begins with empty tables; ``last_records`` reads no more than so many, the latest of each topic."""
        self._settings, self._broker, self._store = settings, broker, store
        self._topics = [settings.states_topic, settings.dead_letters_topic, *([settings.logs_topic] if with_logs else [])]
        self._fresh, self._last_records = fresh, last_records
        self._stopping = asyncio.Event()
        self._source: Source | None = None
        self._offsets: Offsets = {}
        self._ends: dict[Partition, int] = {}
        self._forget_at = self._look_at = 0.0
        self._trouble = ""
        self._on_trouble: Callable[[str], None] = lambda trouble: None
        #: Records taken in, and whether some lie before those that ``last_records`` allowed.
        self.records = 0
        self.is_cut = False

    def stop(self) -> None:
        """Let ``run`` return."""
        self._stopping.set()

    async def run(
        self, on_ready: Callable[[], None] = lambda: None, on_trouble: Callable[[str], None] = lambda trouble: None
    ) -> None:
        """Project until stopped, over any trouble of Kafka or the database that may pass; ``on_trouble`` is told of it, and
        with an empty text that it is over.

        Raises HistoryInUse and HistoryUnreadable.
        """
        self._on_trouble = on_trouble
        backoff = _BACKOFF_SECONDS
        while not self._stopping.is_set():
            taken = self.records
            try:
                await self._open()
                on_ready()
                await self._project(until_end=False)
            except (KafkaUnavailable, TopicError, HistoryUnavailable) as error:
                # Nothing of the batch was kept, nor its offsets: it is read again.
                backoff = _BACKOFF_SECONDS if self.records > taken else min(2 * backoff, _BACKOFF_LIMIT_SECONDS)
                logger.warning("history waits", error=str(error), again_in_seconds=backoff)
                self._tell(str(error))
                await self._close()
                await self._rest(backoff)
            finally:
                await self._close()

    async def catch_up(self) -> int:
        """Project what lies on the topics now, then return, how many records it was.

        Raises KafkaUnavailable, TopicError and the errors of the history.
        """
        if self._fresh:
            await self._expect_topics()
        try:
            await self._open()
            await self._project(until_end=True)
            # Last, so that a database made anew has what the one before it had.
            await self._forget()
        finally:
            await self._close_source()
        return self.records

    async def close(self) -> None:
        """Free everything."""
        await self._close()

    async def _expect_topics(self) -> None:
        """Before tables are dropped: what could not be read anew is kept."""
        for topic in self._topics:
            if await self._broker.partitions(topic) is None:
                raise TopicError(topic, "does not exist", "The engine makes it when it starts; are --app and --kafka right?")

    async def _open(self) -> None:
        is_new = await asyncio.to_thread(self._store.open, fresh=self._fresh)
        self._fresh = False
        self._offsets = await asyncio.to_thread(self._store.offsets)
        source = self._source = self._broker.source(self._topics, group=None, on_assigned=self._begin)
        await source.start()
        logger.info("history projects", place=self._store.place, is_new=is_new)

    async def _begin(self, assigned: Sequence[Partition]) -> Mapping[Partition, int]:
        source = self._reader
        self._ends = await source.end_offsets(assigned)
        known = {place: self._offsets[place].next_offset for place in assigned if place in self._offsets}
        if beyond := [place for place, offset in known.items() if offset > self._ends[place]]:
            logger.warning("the topics were made anew: history begins anew", topics=sorted({topic for topic, _ in beyond}))
            await asyncio.to_thread(self._store.empty)
            self._offsets, known = {}, {}
        starts: dict[Partition, int] = {}
        for place in assigned:
            first = await source.offset_at(place, 0)
            if place in known:
                starts[place] = known[place]
                if first is not None and first > known[place]:
                    # Retention of the topic was faster than we: what ended in there stays open in the tables.
                    missing = first - known[place]
                    logger.warning("records have expired before history read them", partition=place, records=missing)
                    starts[place] = first
            elif first is not None and self._last_records is not None:
                share = self._last_records // sum(topic == place[0] for topic, _ in assigned)
                starts[place] = max(first, self._ends[place] - share)
                self.is_cut |= starts[place] > first
        return starts

    async def _project(self, *, until_end: bool) -> None:
        while not self._stopping.is_set():
            records = await self._gather()
            if records:
                await self._write(records)
                self._tell("")
            elif until_end and await self._is_at_end():
                return
            elif time.monotonic() >= self._look_at:
                # Who deletes the database of a quiet app need not wait for the next record to have another one.
                self._look_at = time.monotonic() + _LOOK_SECONDS
                await self._expect_there()
                if self._trouble and await self._is_at_end():
                    self._tell("")
            if not until_end and time.monotonic() >= self._forget_at:
                await self._forget()

    async def _gather(self) -> list[Record]:
        """A batch: as much as there is, but nobody waits for it to be full."""
        source = self._reader
        records = await source.poll(timeout_seconds=_POLL_SECONDS, max_records=BATCH_RECORDS)
        while records and len(records) < BATCH_RECORDS:
            more = await source.poll(timeout_seconds=0.0, max_records=BATCH_RECORDS - len(records))
            if not more:
                break
            records += more
        return records

    async def _write(self, records: list[Record]) -> None:
        await self._expect_there()
        readings = read_all(records, self._settings.states_topic, self._settings.logs_topic)
        for origin, error in readings.unreadable:
            logger.error("unreadable record", origin=origin, error=error)
        book = await asyncio.to_thread(self._store.write, readings, self._offsets)
        self._offsets = book.offsets
        self.records += len(records)

    async def _expect_there(self) -> None:
        if not await asyncio.to_thread(self._store.is_there):
            raise HistoryUnavailable(self._store.place, "its file was deleted or replaced; it is opened again")

    def _tell(self, trouble: str) -> None:
        """That it is open again is no end of trouble: on a full disk it can be opened, and not written to."""
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)

    async def _is_at_end(self) -> bool:
        source = self._reader
        return all([await source.position(place) >= end for place, end in self._ends.items()])

    async def _forget(self) -> None:
        settings = self._settings
        self._forget_at = time.monotonic() + _FORGET_SECONDS
        forgotten = await asyncio.to_thread(
            self._store.forget,
            time.time(),
            settings.history_retention_seconds,
            settings.history_retention_runs,
            settings.dedup_window_seconds,
        )
        if forgotten:
            logger.info("history forgets", runs=forgotten)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return  # The time is over: once more.

    @property
    def _reader(self) -> Source:
        if self._source is None:
            raise RuntimeError("the projector is not open")
        return self._source

    async def _close(self) -> None:
        await self._close_source()
        await asyncio.to_thread(self._store.close)

    async def _close_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            await source.close()
