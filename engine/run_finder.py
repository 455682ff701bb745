"""The run finder: learns what is known of a run, from the history and single records, or from the whole state topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, aclosing

import msgspec

from engine.broker import Broker, Reader, Record
from engine.errors import EventError, KafkaUnavailable
from engine.history import History
from engine.history_errors import HistoryUnavailable, HistoryUnreadable
from engine.history_schema import Progress, RunRow, where_of
from engine.logs import logger
from engine.repeats import Story
from engine.settings import Settings
from engine.snapshots import snapshot
from engine.states import State, StateChange, is_ownership, read, type_of
from engine.subscriber import Deduplicator

#: Gives an open history; leaving the context lets it go. It blocks, so it is called in a thread.
Histories = Callable[[], AbstractContextManager[History]]


class _Seen(msgspec.Struct, frozen=True):
    """What the history says."""

    row: RunRow | None
    repeats: dict[str, bool]
    #: Where it has not read yet, by partition of the state topic.
    unread: dict[int, Progress]


class RunFinder:
    """Finds runs of one app."""

    def __init__(self, settings: Settings, broker: Broker, histories: Histories | None = None) -> None:
        self._settings, self._broker, self._histories = settings, broker, histories
        self._topic = settings.states_topic
        self._reader: Reader | None = None
        self._reading = asyncio.Lock()

    async def find(self, run_id: str, *, with_calls: bool = False, needs_end: bool = True) -> Story:
        """What is known of a run; ``with_calls`` of its tasks, too.

        Without ``needs_end`` a run may have ended that is said to be open. Raises KafkaUnavailable or TopicError.
        """
        seen = None if self._histories is None else await asyncio.to_thread(self._look, self._histories, run_id)
        if seen is None:
            return await self._read(Story(), run_id, {})
        if seen.row is None:
            # Too new, or gone: only what the history has not read yet can tell.
            return await self._read(Story(), run_id, seen.unread)
        story = await self.story_of(seen.row, seen.repeats, with_calls=with_calls)
        partition = story.partition
        if needs_end and story.end is None and partition in seen.unread:
            await self._read(story, run_id, seen.unread, only=partition)
        return story

    async def story_of(self, row: RunRow, repeats: Mapping[str, bool], *, with_calls: bool = False) -> Story:
        """The same of a run that the history knows: by its one record, or with its calls by those until its end."""
        partition, offset = where_of(row.place)
        story = Story(partition=partition, key=row.run_key, repeats=dict(repeats))
        if with_calls:
            await self._read(story, row.run_id, {partition: Progress(offset)}, only=partition, until_end=True)
        elif (record := await self._record(partition, offset)) is not None:
            _take(story, row.run_id, record, Deduplicator())
        if story.end is None and State(row.state).is_end:
            story.end = State(row.state)
        return story

    async def close(self) -> None:
        """Free everything."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    def _look(self, histories: Histories, run_id: str) -> _Seen | None:
        try:
            with histories() as history:
                # First how far it is: a run that it takes in after this, and before we look for it, is read twice, not never.
                unread = {n: known for (topic, n), known in history.progress().items() if topic == self._topic}
                row = history.run(run_id)
                row = row if row is not None and row.run_id == run_id else None
                repeats = {one.run_id: State(one.state).is_end for one in history.repeats(run_id)} if row else {}
                return _Seen(row, repeats, unread)
        except (HistoryUnavailable, HistoryUnreadable) as error:
            # The topic has it all; only it takes longer.
            logger.warning("without the history the whole state topic is read", error=str(error))
            return None

    async def _record(self, partition: int, offset: int) -> Record | None:
        async with self._reading:
            if self._reader is None:
                self._reader = self._broker.reader()
            try:
                return (await self._reader.read((self._topic, partition), [offset])).get(offset)
            except KafkaUnavailable:
                await self.close()  # whoever asks next gets a connection of its own
                raise

    async def _read(
        self,
        story: Story,
        run_id: str,
        begins: Mapping[int, Progress],
        *,
        only: int | None = None,
        until_end: bool = False,
    ) -> Story:
        """From where ``begins`` says on, and a partition that is not in it from its beginning; ``only`` one, or all."""
        counted: dict[int, Deduplicator] = {}
        for partition, progress in begins.items():
            counted.setdefault(partition, Deduplicator()).begin_epoch(progress.epoch)
        starts = {partition: progress.next_offset for partition, progress in begins.items()}
        async with aclosing(snapshot(self._broker, self._topic, starts=starts, only=only)) as records:
            async for record in records:
                _take(story, run_id, record, counted.setdefault(record.partition, Deduplicator()))
                if until_end and story.end is not None:
                    break
        return story


def _take(story: Story, run_id: str, record: Record, counted: Deduplicator) -> None:
    if is_ownership(type_of(record.headers)):
        counted.begin_epoch(record.offset)
        return
    value = record.value or b""
    # Most records are of other runs, and need not be decoded to know it.
    if run_id.encode() not in value and not any(repeat.encode() in value for repeat in story.repeats):
        return
    try:
        change = read(record.value, record.headers)
    except EventError:
        return  # The dispatcher that owns the partition says so; it is no change of any run.
    if isinstance(change, StateChange) and counted.is_new(change):
        story.take(run_id, change, record.partition)
