"""Waits for events: what a flow waits for, which waits an event concerns, which recent events are at hand; pure."""

from __future__ import annotations

import bisect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from engine.errors import EngineError, EventWaitError
from engine.events import Position, RawEvent

#: What an event takes in memory beside its data, roughly.
_OVERHEAD_BYTES = 1_000


class Wait(msgspec.Struct, frozen=True):
    """A run that waits for an event."""

    #: Unique among open waits.
    wait_id: str
    topic: str
    #: Exact, or a prefix that ends in ``.*``; None for any, bare records included.
    type: str | None
    source: str | None
    #: User code: called away from the event loop, one event after the other. None takes the first event.
    matches: Callable[[RawEvent], bool] | None
    #: Records older than this (Kafka's timestamp, milliseconds since the epoch) are not looked at.
    since_ms: int
    #: What this run has had already; it is skipped.
    had: frozenset[Position]


class Seen(msgspec.Struct, frozen=True):
    """An event as it was read, and when its record was written."""

    event: RawEvent
    position: Position
    timestamp_ms: int

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, roughly."""
        return _OVERHEAD_BYTES + len(self.event.data or b"")


class Offer(msgspec.Struct, frozen=True):
    """An event and the waits it concerns, as they were when it came."""

    seen: Seen
    waits: tuple[tuple[Wait, ...], ...]
    #: Waits whose run has had this event.
    had_by: frozenset[str]

    @property
    def count(self) -> int:
        """How often user code may be called for it."""
        return sum(map(len, self.waits))


#: How a wait ended: with its event, or with what its ``matches`` raised.
Answer = tuple[Wait, RawEvent | EngineError]


class _Bucket:
    """Waits of one type and source."""

    def __init__(self) -> None:
        self.waits: dict[str, Wait] = {}
        self._snapshot: tuple[Wait, ...] | None = None

    def put(self, wait: Wait) -> None:
        self.waits[wait.wait_id] = wait
        self._snapshot = None

    def remove(self, wait: Wait) -> bool:
        # Another wait may bear the id of one that was dropped.
        if self.waits.get(wait.wait_id) is not wait:
            return False
        del self.waits[wait.wait_id]
        self._snapshot = None
        return True

    def snapshot(self) -> tuple[Wait, ...]:
        """Shared by all events of a batch: 5,000 waits are not copied for each of them."""
        if self._snapshot is None:
            self._snapshot = tuple(self.waits.values())
        return self._snapshot


class WaitIndex:
    """Waits by type and source, so that an event meets only those it may concern."""

    def __init__(self, waits: Iterable[Wait] = ()) -> None:
        self._buckets: dict[tuple[str | None, str | None], _Bucket] = {}
        self._had: dict[Position, set[str]] = {}
        self._count = 0
        for wait in waits:
            self.add(wait)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Wait]:
        return (wait for bucket in self._buckets.values() for wait in bucket.waits.values())

    def add(self, wait: Wait) -> None:
        """Offer it what comes from now on."""
        self._buckets.setdefault((wait.type, wait.source), _Bucket()).put(wait)
        self._count += 1
        for position in wait.had:
            self._had.setdefault(position, set()).add(wait.wait_id)

    def remove(self, wait: Wait) -> None:
        """Forget it; nothing happens where it is not here."""
        bucket = self._buckets.get((wait.type, wait.source))
        if bucket is None or not bucket.remove(wait):
            return
        self._count -= 1
        if not bucket.waits:
            del self._buckets[wait.type, wait.source]
        for position in wait.had:
            self._had[position].discard(wait.wait_id)
            if not self._had[position]:
                del self._had[position]

    def offers(self, events: Iterable[Seen]) -> list[Offer]:
        """Each event that concerns a wait, with all waits that it concerns."""
        found = ((seen, self._concerned(seen.event)) for seen in events)
        return [Offer(seen, waits, frozenset(self._had.get(seen.position, ()))) for seen, waits in found if waits]

    def _concerned(self, event: RawEvent) -> tuple[tuple[Wait, ...], ...]:
        # A set of keys: a type that itself ends in ".*" is its own pattern.
        patterns = {event.type, None, *(f"{event.type[: n + 1]}*" for n, sign in enumerate(event.type) if sign == ".")}
        keys = ((pattern, source) for pattern in patterns for source in (event.source, None))
        return tuple(self._buckets[key].snapshot() for key in keys if key in self._buckets)


def look(offers: Iterable[Offer], settled: set[str]) -> list[Answer]:
    """Which waits end with these events, in order; runs user code. Those in ``settled`` are left out, new ones put in."""
    answers: list[Answer] = []
    for offer in offers:
        event, timestamp_ms, had_by = offer.seen.event, offer.seen.timestamp_ms, offer.had_by
        for waits in offer.waits:
            for wait in waits:
                if timestamp_ms < wait.since_ms or wait.wait_id in settled or (had_by and wait.wait_id in had_by):
                    continue
                answer: RawEvent | EngineError = event
                if wait.matches is not None:
                    try:
                        if not wait.matches(event):  # asking for the truth of a value may raise, too
                            continue
                    except (Exception, SystemExit) as error:  # user code: its wait ends, the event goes on to others
                        answer = _failed(wait, offer.seen.position, error)
                settled.add(wait.wait_id)
                answers.append((wait, answer))
    return answers


def in_parts(offers: Iterable[Offer], calls: int) -> Iterator[list[Offer]]:
    """Parts of about so many calls of user code."""
    part: list[Offer] = []
    count = 0
    for offer in offers:
        part.append(offer)
        count += offer.count
        if count >= calls:
            yield part
            part, count = [], 0
    if part:
        yield part


def _failed(wait: Wait, position: Position, error: BaseException) -> EventWaitError:
    text = "".join(traceback.format_exception_only(error)).strip()
    return EventWaitError(wait.topic, f"where raised {text} for the event at {position}", "Correct the where of the wait.")


class RecentEvents:
    """The last events of a topic in the order they came, and from where on they are complete."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._max_count, self._max_bytes = max_count, max_bytes
        self._bytes = 0
        #: By number of arrival; with each the latest timestamp up to it, which only grows and so can be bisected.
        self._events: dict[int, tuple[Seen, int]] = {}
        #: The oldest one at hand, and the one to come next.
        self.first = self.next = 0
        self._latest_ms = 0
        #: Records before the first one read are older than this; None while that is not known.
        self._history_ms: int | None = None
        self._evicted_ms = 0
        #: By partition: where the first record read lay, the first one at hand, and the next to come.
        self.origins: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._events)

    def open(self, origins: Mapping[int, int]) -> None:
        """These partitions are read from these offsets on."""
        for known in (self.origins, self.starts, self.ends):
            known.update(origins)

    def append(self, partition: int, next_offset: int, seen: Seen | None) -> None:
        """A record was read, before ``next_offset``; None where it was no event."""
        if next_offset <= self.ends[partition]:
            # The topic was made anew, or its end was lost: what is said of it below must hold for its new life.
            self.origins[partition] = self.starts[partition] = min(self.starts[partition], next_offset - 1)
        self.ends[partition] = next_offset
        if seen is None:
            return
        self._latest_ms = max(self._latest_ms, seen.timestamp_ms)
        self._events[self.next] = seen, self._latest_ms
        self.next += 1
        self._bytes += seen.size_bytes
        while self._events and (len(self._events) > self._max_count or self._bytes > self._max_bytes):
            gone, _ = self._events.pop(self.first)
            self.first += 1
            self._bytes -= gone.size_bytes
            n, offset = gone.position.partition, gone.position.next_offset
            self.starts[n] = max(self.starts[n], offset) if offset <= self.ends[n] else self.starts[n]
            self._evicted_ms = max(self._evicted_ms, gone.timestamp_ms + 1)

    def learn(self, history_ms: int) -> None:
        """It was found out that everything before ``origins`` is older than this."""
        self._history_ms = history_ms if self._history_ms is None else min(history_ms, self._history_ms)

    def covers(self, since_ms: int) -> bool:
        """Whether no record that is not older lies before what is at hand."""
        return self._history_ms is not None and since_ms >= max(self._history_ms, self._evicted_ms)

    def lacking(self, offsets: Mapping[int, int]) -> list[int]:
        """Partitions for which a reader that goes on at ``offsets`` has to look elsewhere first."""
        return [partition for partition, start in self.starts.items() if offsets.get(partition, 0) < start]

    def after(self, cursor: int, since_ms: int, offsets: Mapping[int, int], limit: int) -> tuple[list[Seen], int]:
        """About ``limit`` events from ``cursor`` on that are not older and not before ``offsets``, and the next cursor."""
        numbers = range(max(cursor, self.first), self.next)
        start = bisect.bisect_left(numbers, since_ms, key=lambda number: self._events[number][1])
        part = numbers[start : start + limit]
        events: Sequence[Seen] = [self._events[number][0] for number in part]
        found = [seen for seen in events if seen.position.offset >= offsets.get(seen.position.partition, 0)]
        return found, part.stop


class Cohort:
    """Waits that are offered together what lies before the tail of their topic."""

    def __init__(self, waits: Iterable[Wait]) -> None:
        self.index = WaitIndex(waits)
        self.since_ms = min(wait.since_ms for wait in self.index)
        #: By partition, what to look at next; None while that is not known.
        self.offsets: dict[int, int] | None = None
        #: The next of the recent events to look at.
        self.cursor = 0
        #: What lies before the first record of the tail is older than this, when all of it that matters was read.
        self.history_ms = self.since_ms
