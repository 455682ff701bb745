"""Watches one topic for those who wait for its events: a tail that all share, and readers that look back.

A wait is first brought up: it is offered what lies between its ``since_ms`` and the tail, from the log as far as memory does
not reach, then from memory. When nothing is left it joins the waits of the tail, in the same turn of the event loop: no
record comes in between, and none is offered twice.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from engine.backlog_reader import POLL_RECORDS, BacklogReader, poll, read_event
from engine.broker import Broker, Partition, Record
from engine.errors import EngineError, EventWaitError, KafkaUnavailable, TopicError
from engine.event_waits import Answer, Cohort, RecentEvents, Seen, Wait, WaitIndex, in_parts, look
from engine.logs import logger

T = TypeVar("T")

#: What is kept of each topic, for waits that look back a little.
RECENT_EVENTS = 10_000
RECENT_BYTES = 16 * 1024 * 1024
#: Readers that look further back, at once.
CATCH_UPS = 2

#: So many calls of user code go to a thread at a time; then what was found is told.
_CALLS = 20_000
#: How often to ask whether Kafka is there and the topic has got more partitions.
_CHECK_SECONDS = 15.0
_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 5.0
#: A topic that was read before may be unknown to a broker that has just started: only then is it taken for deleted.
_TOPIC_TRIES = 8


class RunUserCode(Protocol):
    """Calls a function where it may block, e.g. ``asyncio.to_thread``."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """What ``work()`` returns."""
        ...


class _Patience:
    """How one activity bears with Kafka: says once that it is away, waits longer from time to time."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS
        self.trouble = ""

    def well(self) -> None:
        """It gets on."""
        if self.trouble:
            logger.info("waits for events go on", topic=self._topic)
        self.trouble, self._backoff_seconds = "", _FIRST_BACKOFF_SECONDS

    async def stumble(self, error: EngineError) -> None:
        """It does not: wait before the next try."""
        if not self.trouble:
            logger.warning("waits for events wait for Kafka", topic=self._topic, error=str(error))
        self.trouble = str(error)
        await asyncio.sleep(self._backoff_seconds)
        self._backoff_seconds = min(self._backoff_seconds * 2, _MAX_BACKOFF_SECONDS)


class _Queue:
    """Waits to be brought up."""

    def __init__(self) -> None:
        self.waits: dict[str, Wait] = {}
        self.news = asyncio.Event()

    def put(self, wait: Wait) -> None:
        self.waits[wait.wait_id] = wait
        self.news.set()

    async def take(self) -> list[Wait]:
        """All there are, at least one."""
        while not self.waits:
            self.news.clear()
            await self.news.wait()
        waits, self.waits = self.waits, {}
        return list(waits.values())


class TopicWatcher:
    """The waits of one topic. ``settle`` is told on the event loop how each ends, a dropped one, too."""

    def __init__(self, broker: Broker, topic: str, settle: Callable[[Answer], None], run_user_code: RunUserCode) -> None:
        self._broker, self._topic = broker, topic
        self._settle, self._run_user_code = settle, run_user_code
        self._recent = RecentEvents(RECENT_EVENTS, RECENT_BYTES)
        self._live = WaitIndex()
        #: Those for whom memory reaches back far enough, or may do so, and the others.
        self._near, self._far = _Queue(), _Queue()
        self._cohorts: list[Cohort] = []
        self._asked, self._opened = asyncio.Event(), asyncio.Event()
        self._topic_tries = 0
        self._patience = [_Patience(topic) for _ in range(2 + CATCH_UPS)]
        mine, near, *far = self._patience
        works = [self._tail(mine), self._bring_up_near(near), *(self._bring_up_far(patience) for patience in far)]
        self._tasks = [asyncio.create_task(work, name=f"waits for {topic}") for work in works]

    @property
    def trouble(self) -> str:
        """Empty while it gets on; otherwise what it waits for."""
        return next((patience.trouble for patience in self._patience if patience.trouble), "")

    def add(self, wait: Wait) -> None:
        """Look for its event, from its ``since_ms`` on."""
        self._asked.set()
        self._near.put(wait)

    def drop(self, wait: Wait) -> None:
        """Look no longer."""
        self._near.waits.pop(wait.wait_id, None)
        self._far.waits.pop(wait.wait_id, None)
        for index in (self._live, *(cohort.index for cohort in self._cohorts)):
            index.remove(wait)

    async def close(self) -> None:
        """Stop and disconnect. User code that still runs goes on in its thread; nobody hears what it finds."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _tail(self, patience: _Patience) -> None:
        while True:
            await self._asked.wait()
            try:
                await self._follow(patience)
            except KafkaUnavailable as error:
                # The next source goes on where this one stopped.
                await patience.stumble(error)
            except TopicError as error:
                self._topic_tries += 1
                if self._opened.is_set() and self._topic_tries < _TOPIC_TRIES:
                    await patience.stumble(error)
                else:
                    patience.trouble = ""
                    self._fail_all(error)
            except Exception as error:  # a fault of the settings or of ours: waiting for ever would hide it
                self._fail_all(error)

    async def _follow(self, patience: _Patience) -> None:
        """Offer the waits what comes. Returns when the topic has got more partitions."""

        async def begin(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
            fresh = [partition for partition in assigned if partition[1] not in self._recent.ends]
            # A partition that was added later has nothing that came before the tail.
            ends = dict.fromkeys(fresh, 0) if self._opened.is_set() else await source.end_offsets(fresh)
            self._recent.open({partition[1]: end for partition, end in ends.items()})
            self._opened.set()
            return {partition: self._recent.ends[partition[1]] for partition in assigned}

        source = self._broker.source([self._topic], group=None, on_assigned=begin)
        try:
            await source.start()
            self._topic_tries = 0
            checked_at = time.monotonic()
            while True:
                records = await poll(source)
                patience.well()
                events = [seen for record in records if (seen := self._take_in(record)) is not None]
                await self._offer(self._live, events)
                if time.monotonic() - checked_at >= _CHECK_SECONDS:
                    checked_at = time.monotonic()
                    if await self._broker.partitions(self._topic) != len(source.assignment):
                        return
        finally:
            await source.close()

    def _take_in(self, record: Record) -> Seen | None:
        seen = read_event(record)
        self._recent.append(record.partition, record.position.next_offset, seen)
        return seen

    async def _offer(self, index: WaitIndex, events: Sequence[Seen]) -> None:
        # Before anything is awaited: a wait that joins meanwhile has seen these events.
        offers = index.offers(events)
        settled: set[str] = set()
        for part in in_parts(offers, _CALLS):
            for answer in await self._run_user_code(functools.partial(look, part, settled)):
                index.remove(answer[0])
                self._settle(answer)

    async def _bring_up_near(self, patience: _Patience) -> None:
        while True:
            waits = await self._near.take()
            # While it is not open they are where ``drop`` finds them.
            if not self._opened.is_set():
                for wait in waits:
                    self._near.put(wait)
                await self._opened.wait()
                continue
            near = [wait for wait in waits if self._recent.covers(wait.since_ms)]
            for wait in waits:
                if not self._recent.covers(wait.since_ms):
                    self._far.put(wait)
            if near:
                cohort = Cohort(near)
                cohort.offsets = dict(self._recent.starts)
                await self._bring_up(cohort, patience)

    async def _bring_up_far(self, patience: _Patience) -> None:
        while True:
            await self._bring_up(Cohort(await self._far.take()), patience)

    async def _bring_up(self, cohort: Cohort, patience: _Patience) -> None:
        self._cohorts.append(cohort)
        try:
            while len(cohort.index) and not await self._advance(cohort, patience):
                pass
        except Exception as error:  # these waits end, the others go on
            self._fail(cohort.index, error)
        finally:
            self._cohorts.remove(cohort)

    async def _advance(self, cohort: Cohort, patience: _Patience) -> bool:
        """Offer the cohort some of what it has not seen. True when there was nothing left and it has joined the tail."""
        recent = self._recent
        if cohort.offsets is None or (cohort.cursor < recent.first and recent.lacking(cohort.offsets)):
            try:
                await self._read_log(cohort)
                patience.well()
            except (KafkaUnavailable, TopicError) as error:
                # It goes on at its offsets. Where the topic is gone the tail ends all waits.
                await patience.stumble(error)
            return False
        events, cohort.cursor = recent.after(cohort.cursor, cohort.since_ms, cohort.offsets, POLL_RECORDS)
        if events:
            cohort.offsets.update({seen.position.partition: seen.position.next_offset for seen in events})
            await self._offer(cohort.index, events)
            return False
        if cohort.cursor < recent.next:
            return False
        # Nothing is awaited between the look at what is left and this.
        recent.learn(cohort.history_ms)
        for wait in cohort.index:
            self._live.add(wait)
        return True

    async def _read_log(self, cohort: Cohort) -> None:
        """Offer the cohort what lies before the recent events."""
        reader = BacklogReader(self._broker, self._topic, self._recent, cohort)
        try:
            await reader.start()
            while len(cohort.index) and not reader.is_done:
                await self._offer(cohort.index, await reader.read())
        finally:
            await reader.close()

    def _fail_all(self, error: Exception) -> None:
        # What was read is forgotten: a topic that comes again is another one.
        self._asked.clear()
        self._opened.clear()
        self._recent = RecentEvents(RECENT_EVENTS, RECENT_BYTES)
        waiting = WaitIndex([*self._near.waits.values(), *self._far.waits.values()])
        self._near.waits.clear()
        self._far.waits.clear()
        for index in (waiting, self._live, *(cohort.index for cohort in self._cohorts)):
            self._fail(index, error)

    def _fail(self, index: WaitIndex, error: Exception) -> None:
        if not isinstance(error, EngineError):
            logger.error("waits for events failed", topic=self._topic, exc_info=error)
            error = EventWaitError(self._topic, f"{type(error).__name__}: {error}", "The engine's log says more.")
        for wait in list(index):
            index.remove(wait)
            self._settle((wait, error))
