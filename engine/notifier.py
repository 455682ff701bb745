"""The notifier: a consumer group on the state topic that tells targets of what flows, tasks and rules ask for.

It is in no run's way: it writes nothing but its offsets, and those only up to the first record that somebody is still to be
told of. So each target hears of everything at least once, or the log says that it was given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from engine.addressees import Addressees
from engine.broker import Broker, Partition, Record, Source
from engine.deliveries import Delivery, Holds, hold_all
from engine.episodes import Episodes, Firing
from engine.errors import KafkaUnavailable, TopicError
from engine.logs import logger
from engine.notices import Notice, notice_of, notice_of_firing
from engine.rules import Kind
from engine.sender_builder import Outboxes
from engine.settings import Settings
from engine.states import StateChange
from engine.subscriber import Changes
from engine.targets import Target

#: What rules over time are made anew from at a start: so many records at most, the latest.
REBUILD_RECORDS = 200_000
_POLL_SECONDS, _POLL_RECORDS = 0.2, 1_000
#: While an outbox has no room for what has been read.
_BLOCKED_POLL_SECONDS = 0.05
_COMMIT_SECONDS = 0.5
_TICK_SECONDS = 0.5
#: Between two attempts to reach Kafka; it doubles up to the limit.
_BACKOFF_SECONDS, _BACKOFF_LIMIT_SECONDS = 0.2, 5.0
#: Kinds that are right only where all partitions are read.
_WHOLE = frozenset({Kind.FAILURES, Kind.NO_RUN})


class Notifier:
    """``await Notifier(settings, broker, addressees, outboxes).run()``; ``stop`` ends it in order."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        addressees: Addressees,
        outboxes: Outboxes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._broker, self._clock = settings, broker, clock
        self._addressees, self._outboxes = addressees, outboxes
        self._topic = settings.states_topic
        self._stopping = asyncio.Event()
        self._source: Source | None = None
        # A group that is new begins with what comes from now on: nobody wants to be told of last week.
        self._from_latest = True
        self._changes = Changes()
        self._holds: dict[Partition, Holds] = {}
        self._committed: dict[Partition, int] = {}
        self._paused: frozenset[Partition] = frozenset()
        #: Read, but not looked at yet; made of what was read, but not in an outbox yet.
        self._waiting: deque[Record] = deque()
        self._offers: deque[Delivery] = deque()
        #: What was dealt with before the start and is read again for rules over time: up to where, and what it was.
        self._until: dict[Partition, int] = {}
        self._past: list[StateChange] = []
        self._told_until = 0.0
        self._episodes = Episodes(addressees.rules, clock())
        self._is_whole = True
        #: When it was asked where the partitions end, and the answer: rules hear of a time when all until then was read.
        self._mark: tuple[float, Mapping[Partition, int]] | None = None
        self._mark_at = self._commit_at = 0.0

    def stop(self) -> None:
        """Let ``run`` return, when what is under way has come to its end, or its grace has."""
        self._stopping.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Tell until stopped, over any trouble of Kafka that may pass."""
        workers = [asyncio.create_task(outbox.run(), name=f"engine-outbox-{n}") for n, outbox in enumerate(self._outboxes.all)]
        try:
            backoff = _BACKOFF_SECONDS
            while not self._stopping.is_set():
                try:
                    await self._open()
                    on_ready()
                    backoff = _BACKOFF_SECONDS
                    await self._listen()
                except (KafkaUnavailable, TopicError) as error:
                    # What was not committed is read again.
                    logger.warning("notifications wait", error=str(error), again_in_seconds=backoff)
                    await self._close_source()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), backoff)
                    backoff = min(2 * backoff, _BACKOFF_LIMIT_SECONDS)
            await self._finish(workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            for sender in self._outboxes.senders:
                sender.close()
            await self._close_source()

    async def _open(self) -> None:
        if await self._broker.partitions(self._topic) is None:
            # Then all that will be on it comes from now on, also what comes before we are there.
            self._from_latest = False
            raise TopicError(self._topic, "does not exist", "Start the engine: it makes the topic.")
        group = self._settings.notify_group
        self._source = self._broker.source([self._topic], group=group, on_assigned=self._assigned, on_revoked=self._revoked)
        await self._source.start()
        logger.info("notifier listens", group=group, targets=len(self._outboxes.all), rules=len(self._addressees.rules))

    async def _listen(self) -> None:
        source = self._reader
        while not self._stopping.is_set():
            seconds = _BLOCKED_POLL_SECONDS if self._offers else _POLL_SECONDS
            self._sort(await source.poll(timeout_seconds=seconds, max_records=_POLL_RECORDS))
            await self._rebuild()
            self._hand_on()
            self._pace()
            await self._tick()
            await self._commit()

    async def _finish(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Order matters: what is under way ends before its offset is committed, and the group is left last."""
        for outbox in self._outboxes.all:
            outbox.stop()
        if workers:
            await asyncio.wait(workers, timeout=self._settings.grace_seconds)
        self._commit_at = 0.0
        if self._source is not None:
            with contextlib.suppress(KafkaUnavailable):  # Then it is told again after the next start.
                await self._commit()
        await self._close_source()
        logger.info("notifier stopped", group=self._settings.notify_group)

    # Partitions come and go.

    async def _assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        self._forget()
        source, now = self._reader, self._clock()
        ends = await source.end_offsets(partitions)
        known = {place: offset for place in partitions if (offset := await source.committed(place)) is not None}
        # An offset beyond the end is that of a topic of the same name that is no more.
        self._committed = {place: offset for place, offset in known.items() if offset <= ends[place]}
        begin = {place: ends[place] if self._from_latest and place not in known else 0 for place in partitions}
        begin |= self._committed
        self._paused &= frozenset(partitions)
        self._episodes = Episodes(self._addressees.rules, now)
        self._is_whole = len(partitions) == await self._broker.partitions(self._topic)
        if not self._is_whole and any(rule.kind in _WHOLE for rule in self._addressees.rules):
            logger.warning(
                "rules that count rest: another notifier reads a part of the state topic; run one", topic=self._topic
            )
        starts = await self._look_back(begin, now)
        self._until = {place: begin[place] for place, start in starts.items() if start < begin[place]}
        # Last: from here on there is something to commit, and time to tell rules of.
        self._holds = {place: Holds(offset) for place, offset in begin.items()}
        return begin | starts

    async def _look_back(self, begin: Mapping[Partition, int], now: float) -> dict[Partition, int]:
        """Where to read from for the sake of rules over time, and until when the last notifier has told of what was due."""
        horizon = self._episodes.horizon_seconds
        self._told_until = now
        if not horizon:
            return {}
        reader = self._broker.reader()
        try:
            last = [await reader.read(place, {offset - 1}) for place, offset in self._committed.items() if offset]
        finally:
            await reader.close()
        times = [record.timestamp_ms / 1000 for found in last for record in found.values()]
        # Before it committed the last of them it was alive, and had told of all that was due.
        self._told_until = min(max(times, default=now), now)
        starts: dict[Partition, int] = {}
        for place, offset in begin.items():
            start = await self._reader.offset_at(place, int((self._told_until - horizon) * 1000))
            if start is not None:
                least = max(offset - REBUILD_RECORDS // len(begin), 0)
                starts[place] = max(min(start, offset), least)
                if start < least:
                    logger.warning("rules look back less far than they reach", partition=place, records=offset - least)
        return starts

    async def _revoked(self, partitions: Sequence[Partition]) -> None:
        self._commit_at = 0.0
        with contextlib.suppress(KafkaUnavailable):  # Then whoever gets them tells again.
            await self._commit()
        self._forget()

    def _forget(self) -> None:
        """All that is not under way: whoever reads the partitions next begins with it."""
        for outbox in self._outboxes.all:
            outbox.drop()
        self._holds, self._committed, self._until = {}, {}, {}
        self._changes.clear()
        self._waiting.clear()
        self._offers.clear()
        self._past.clear()
        self._mark = None

    # From record to outbox.

    def _sort(self, records: Iterable[Record]) -> None:
        for record in records:
            place = (record.topic, record.partition)
            if record.offset < self._until.get(place, 0):
                if (change := self._changes.take(record)) is not None:
                    self._past.append(change)
                if record.offset + 1 >= self._until[place]:
                    del self._until[place]
            elif place in self._holds:
                self._until.pop(place, None)  # What lay before is gone.
                self._waiting.append(record)

    async def _rebuild(self) -> None:
        """When all partitions are where they begin: make anew what rules over time knew."""
        for place, until in list(self._until.items()):
            if place in self._reader.assignment and await self._reader.position(place) >= until:
                self._until.pop(place, None)
        if not self._until and self._past:
            past, self._past = self._past, []
            self._episodes.rebuild(past, self._told_until, self._clock())

    def _hand_on(self) -> None:
        """Look at what was read, as far as outboxes have room."""
        while self._put_in() and self._waiting and not self._until:
            record = self._waiting.popleft()
            holds = self._holds[record.topic, record.partition]
            change = self._changes.take(record)
            if change is not None:
                for notice, target in self._told_of(change):
                    self._offer(notice, target, [(holds, record.offset)])
            holds.pass_by(record.offset + 1)

    def _told_of(self, change: StateChange) -> Iterable[tuple[Notice, Target]]:
        app, url = self._settings.app, self._settings.dashboard_url
        for addressee in self._addressees.of(change):
            yield notice_of(app, addressee.origin, change, url, addressee.rule), addressee.target
        yield from self._fired(self._episodes.take(change, self._clock()))

    def _fired(self, firings: Iterable[Firing]) -> Iterable[tuple[Notice, Target]]:
        for firing in firings:
            if self._is_whole or firing.rule.kind not in _WHOLE:
                notice = notice_of_firing(self._settings.app, firing, self._settings.dashboard_url)
                for target in firing.rule.to:
                    yield notice, target

    def _offer(self, notice: Notice, target: Target, held: Sequence[tuple[Holds, int]]) -> None:
        if target not in self._outboxes.by_target:
            return  # It cannot be used, which was said at the start.
        self._offers.append(Delivery(notice, target, time.monotonic(), hold_all(held)))

    def _put_in(self) -> bool:
        """Whether all that has been made is in an outbox."""
        while self._offers:
            if not self._outboxes.by_target[self._offers[0].target].offer(self._offers[0]):
                return False
            self._offers.popleft()
        return True

    def _pace(self) -> None:
        """Read no further where there is no room; polls go on, or the group would take us for dead."""
        if self._offers:
            wanted = frozenset(self._holds)
        else:
            wanted = frozenset(self._holds) - frozenset(self._until) if self._until else frozenset()
        if wanted - self._paused:
            self._reader.pause(sorted(wanted - self._paused))
        if self._paused - wanted:
            self._reader.resume(sorted(self._paused - wanted))
        self._paused = wanted

    # What goes by the clock.

    async def _tick(self) -> None:
        """Tell rules of the time, when all that was written until then has been read."""
        if not self._episodes.horizon_seconds or self._until or not self._holds:
            return
        source, now = self._reader, self._clock()
        if self._mark is None and time.monotonic() >= self._mark_at:
            self._mark_at = time.monotonic() + _TICK_SECONDS
            self._mark = (now, await source.end_offsets(sorted(self._holds)))
        if self._mark is None or self._waiting or self._offers:
            return
        at, ends = self._mark
        for place, end in ends.items():
            holds = self._holds.get(place)
            if holds is None or place not in source.assignment:
                return
            if holds.next_offset < end and await source.position(place) < end:
                return
        self._mark = None
        everywhere = [(holds, holds.next_offset) for holds in self._holds.values()]
        for notice, target in self._fired(self._episodes.tick(at)):
            self._offer(notice, target, everywhere)

    async def _commit(self) -> None:
        if time.monotonic() < self._commit_at:
            return
        self._commit_at = time.monotonic() + _COMMIT_SECONDS
        safe = {place: holds.safe_offset for place, holds in self._holds.items()}
        news = {place: offset for place, offset in safe.items() if self._committed.get(place) != offset}
        if news and await self._reader.commit(news):
            self._committed |= news

    @property
    def _reader(self) -> Source:
        if self._source is None:
            raise RuntimeError("the notifier is not open")
        return self._source

    async def _close_source(self) -> None:
        self._forget()
        source, self._source = self._source, None
        if source is not None:
            await source.close()
