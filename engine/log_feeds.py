"""Feeds: the log lines of one run as they come, from the history database or straight from the topics; print nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from engine.broker import Broker, Partition, Record, Source
from engine.command_errors import NotFound
from engine.errors import EventError, TopicError
from engine.history import History
from engine.history_schema import place_of
from engine.log_rows import LogFilter, LogRow, lines_of
from engine.murmur import murmur2
from engine.run_logs import read_batch
from engine.settings import Settings
from engine.states import State
from engine.subscriber import Subscription

#: Without a database so many records of the run's partition are read, the latest.
LAST_RECORDS = 200_000
_POLL_SECONDS, _POLL_RECORDS = 0.2, 1_000
#: Lines read from a database in one go.
_PAGE = 1_000


class Feed(Protocol):
    """Where the lines of a run come from."""

    async def latest(self, limit: int) -> list[LogRow]:
        """The last lines of what is there now. Raises NotFound where it is known that there is no such run."""
        ...

    async def more(self) -> list[LogRow]:
        """What has come since; waits a little where nothing has."""
        ...

    async def has_ended(self) -> bool:
        """Whether the run has ended. Raises NotFound where there is no such run."""
        ...

    async def close(self) -> None:
        """Free everything."""
        ...


class HistoryFeed:
    """Lines from a history database, which a projector fills."""

    def __init__(self, history: History, run_id: str, wanted: LogFilter, app: str) -> None:
        """``run_id`` may be a beginning of it that no other run has."""
        self._history, self._wanted, self._app = history, wanted, app
        self._run_id = run_id
        self._after = -1

    async def latest(self, limit: int) -> list[LogRow]:
        """See Feed."""
        run = self._history.run(self._run_id)
        self._run_id = self._run_id if run is None else run.run_id
        # First where we are: what comes while we read is told by ``more``, once.
        last = self._history.logs(self._run_id, limit=1, wanted=LogFilter(latest=True))
        if run is None and not last:
            remedy = f"`engine runs ls` lists those that are kept; it may belong to another app than {self._app} (--app)."
            raise NotFound("run", self._run_id, remedy)
        self._after = last[0].seq if last else -1
        wanted = msgspec.structs.replace(self._wanted, latest=True)
        return [line for line in self._history.logs(self._run_id, limit=limit, wanted=wanted) if line.seq <= self._after]

    async def more(self) -> list[LogRow]:
        """See Feed."""
        found = self._history.logs(self._run_id, after=self._after, limit=_PAGE, wanted=self._wanted)
        if not found:
            await asyncio.sleep(_POLL_SECONDS)
            return found
        self._after = found[-1].seq
        return found

    async def has_ended(self) -> bool:
        """See Feed."""
        run = self._history.run(self._run_id)
        return run is not None and State(run.state).is_end

    async def close(self) -> None:
        """See Feed."""
        self._history.close()


class TopicFeed:
    """Lines from the log topic, and the end of the run from the state topic."""

    def __init__(self, settings: Settings, broker: Broker, run_id: str, wanted: LogFilter) -> None:
        self._settings, self._broker = settings, broker
        self._run_id, self._wanted = run_id, wanted
        self._place: Partition = (settings.logs_topic, 0)
        self._end = 0
        #: Whether older lines were left unread.
        self.is_cut = False
        self._source: Source = broker.source([settings.logs_topic], group=None, on_assigned=self._begin)
        self._watching: asyncio.Task[None] | None = None

    async def latest(self, limit: int) -> list[LogRow]:
        """See Feed."""
        topic = self._settings.logs_topic
        count = await self._broker.partitions(topic)
        if count is None:
            raise TopicError(topic, "does not exist", "The engine makes it when it starts; is --app right?")
        self._place = (topic, (murmur2(self._run_id.encode()) & 0x7FFFFFFF) % count)
        await self._source.start()
        found: deque[LogRow] = deque(maxlen=limit)
        while await self._source.position(self._place) < self._end:
            found.extend(await self.more())
        return list(found)

    async def more(self) -> list[LogRow]:
        """See Feed."""
        records = await self._source.poll(timeout_seconds=_POLL_SECONDS, max_records=_POLL_RECORDS)
        return [line for record in records for line in self._read(record)]

    async def has_ended(self) -> bool:
        """See Feed."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="logs-watch")
        if not self._watching.done():
            return False
        await self._watching
        return True

    async def close(self) -> None:
        """See Feed."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._source.close()
        await self._broker.close()

    async def _begin(self, assigned: Sequence[Partition]) -> Mapping[Partition, int]:
        starts = await self._source.end_offsets(assigned)
        self._end = starts[self._place]
        first = await self._source.offset_at(self._place, 0)
        if first is not None:
            starts[self._place] = max(first, self._end - LAST_RECORDS)
            self.is_cut = starts[self._place] > first
        # All of a run lies in one partition.
        self._source.pause([place for place in assigned if place != self._place])
        return starts

    def _read(self, record: Record) -> list[LogRow]:
        if record.key != self._run_id.encode():
            return []
        try:
            batch = read_batch(record.value, record.headers)
        except EventError:
            return []  # The projector and whoever looks at the topic see it; here it is no line of ours.
        if batch is None or batch.run_id != self._run_id:
            return []
        lines = lines_of(place_of(record.partition, record.offset), record.value or b"")
        return [line for line in lines if self._wanted.takes(line)]

    async def _watch(self) -> None:
        """Return when the run has ended."""
        seen: list[str] = []

        def expect_seen() -> None:
            if not seen:
                remedy = f"Give its whole id; it may belong to another app than {self._settings.app} (--app)."
                raise NotFound("run", self._run_id, remedy)

        topic = self._settings.states_topic
        async with Subscription(
            self._broker, topic, from_beginning=True, run_id=self._run_id, on_caught_up=expect_seen
        ) as subscription:
            async for change in subscription:
                seen.append(change.run_id)
                if change.is_flow_run and change.state.is_end:
                    return
