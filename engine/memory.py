"""The contract of ``engine.broker`` within one process and one event loop: for tests and trying out, nothing is kept."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import random
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import msgspec

from engine.broker import OnAssigned, OnRevoked, Outgoing, Partition, Record, TopicSpec
from engine.errors import KafkaUnavailable, RecordTooLarge, TopicError
from engine.events import Position
from engine.memory_reader import MemoryOffsets, MemoryReader
from engine.murmur import murmur2

#: Kafka's own default of max.message.bytes.
DEFAULT_LIMIT_BYTES = 1_048_588

#: What Kafka adds to the bytes of a record that lies alone in its batch, roughly.
_OVERHEAD_BYTES = 75
_HEADER_OVERHEAD_BYTES = 2

_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z")


class _Topic(msgspec.Struct):
    logs: list[list[Record]]
    limit: int


class _Group(msgspec.Struct):
    #: Held during a rebalance: the members see one after the other.
    rebalancing: asyncio.Lock
    members: list[MemorySource] = []
    committed: dict[Partition, int] = {}


class MemoryBroker:
    """Topics, consumer groups and producers that live as long as this object."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._news = asyncio.Event()

    def source(
        self,
        topics: Sequence[str],
        *,
        group: str | None,
        from_latest: bool = False,
        on_assigned: OnAssigned | None = None,
        on_revoked: OnRevoked | None = None,
    ) -> MemorySource:
        """A reader of ``topics``: member of ``group``, or of every partition where it is None."""
        return MemorySource(self, topics, group, from_latest, on_assigned, on_revoked)

    def sink(self) -> MemorySink:
        """A new producer."""
        return MemorySink(self)

    def reader(self) -> MemoryReader:
        """A new reader of single records."""
        return MemoryReader(lambda topic: self.topic(topic).logs)

    def offset_reader(self) -> MemoryOffsets:
        """A new reader of how groups stand."""
        return MemoryOffsets(lambda: {name: topic.logs for name, topic in self._topics.items()}, self._committed)

    async def ensure_topics(self, topics: Sequence[TopicSpec]) -> list[str]:
        """Make the topics that are missing; answers their names. Raises TopicError."""
        missing = [topic for topic in topics if topic.name not in self._topics]
        for topic in missing:
            if not _NAME.match(topic.name) or topic.partitions == 0:
                raise TopicError(topic.name, "its name or number of partitions is not valid", "Correct its settings.")
            limit = int(topic.config.get("max.message.bytes", DEFAULT_LIMIT_BYTES))
            self._topics[topic.name] = _Topic([[] for _ in range(max(1, topic.partitions))], limit)
        return [topic.name for topic in missing]

    async def partitions(self, topic: str) -> int | None:
        """How many partitions a topic has; None where it does not exist."""
        return len(self._topics[topic].logs) if topic in self._topics else None

    async def close(self) -> None:
        """Nothing to free."""

    def topic(self, name: str) -> _Topic:
        """Raises TopicError where it does not exist."""
        if name not in self._topics:
            raise TopicError(name, "does not exist", "Check its name, or create the topic.")
        return self._topics[name]

    def log(self, partition: Partition) -> list[Record]:
        """The records of a partition; each lies at its offset. Raises TopicError where the topic does not exist."""
        return self.topic(partition[0]).logs[partition[1]]

    def group(self, name: str) -> _Group:
        """A group, made when it is first asked for."""
        return self._groups.setdefault(name, _Group(asyncio.Lock()))

    def _committed(self, group: str) -> dict[Partition, int]:
        return self._groups[group].committed if group in self._groups else {}

    def tell(self) -> None:
        """Wake every poll: there are records, or another assignment."""
        self._news.set()
        self._news = asyncio.Event()

    async def news(self, timeout_seconds: float) -> None:
        """Wait until somebody tells, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._news.wait()

    async def rebalance(self, group: _Group) -> None:
        """Take all partitions from all members, then hand them out in turn, as Kafka's eager rebalancing does."""
        for member in group.members:
            await member.revoke()
        topics = sorted({topic for member in group.members for topic in member.topics})
        shares: dict[int, list[Partition]] = {id(member): [] for member in group.members}
        turns = itertools.cycle(group.members)
        for place in [(topic, n) for topic in topics for n in range(len(self._topics[topic].logs))]:
            member = next(member for member in turns if place[0] in member.topics)
            shares[id(member)].append(place)
        for member in group.members:
            member.assign(shares[id(member)])


class MemorySource:
    """A member of a consumer group, or a reader without a group."""

    def __init__(
        self,
        broker: MemoryBroker,
        topics: Sequence[str],
        group: str | None,
        from_latest: bool,
        on_assigned: OnAssigned | None,
        on_revoked: OnRevoked | None,
    ) -> None:
        self.topics = tuple(topics)
        self._broker, self._from_latest = broker, from_latest
        self._group = None if group is None else broker.group(group)
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._assignment: frozenset[Partition] = frozenset()
        #: Where to go on; a partition is missing before ``on_assigned`` has said where to begin.
        self._offsets: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._settling: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._closed = False

    @property
    def assignment(self) -> frozenset[Partition]:
        """The partitions this member reads now."""
        return self._assignment

    async def start(self) -> None:
        """Join, and wait for the first assignment. Raises TopicError."""
        for topic in self.topics:
            self._broker.topic(topic)
        if self._group is None:
            self.assign([(topic, n) for topic in self.topics for n in range(len(self._broker.topic(topic).logs))])
        else:
            async with self._group.rebalancing:
                self._group.members.append(self)
                await self._broker.rebalance(self._group)
        if self._settling is not None:
            await asyncio.wait((self._settling,))

    async def poll(self, *, timeout_seconds: float, max_records: int) -> list[Record]:
        """Records in order within each partition; an empty list after ``timeout_seconds`` without any."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            records = self._take(max_records)
            left = deadline - time.monotonic()
            if records or left <= 0 or self._closed:
                # A poll that finds something must not keep others from running.
                await asyncio.sleep(0)
                return records
            await self._broker.news(left)

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        """Commit next offsets of partitions still assigned. False without a group."""
        if self._group is None:
            return False
        self._group.committed.update({p: offset for p, offset in offsets.items() if p in self._assignment})
        return True

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop reading these, staying in the group."""
        self._paused.update(p for p in partitions if p in self._assignment)

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Read these again."""
        self._paused.difference_update(partitions)
        self._broker.tell()

    def seek(self, partition: Partition, offset: int) -> None:
        """Go on at ``offset``."""
        if partition in self._assignment:
            self._offsets[partition] = offset
            self._broker.tell()

    async def end_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The offset that the next record of each partition will get."""
        return {partition: len(self._broker.log(partition)) for partition in partitions}

    async def committed(self, partition: Partition) -> int | None:
        """The group's committed offset, None where there is none."""
        return None if self._group is None else self._group.committed.get(partition)

    async def offset_at(self, partition: Partition, timestamp_ms: int) -> int | None:
        """The first offset whose record is not older than ``timestamp_ms``; None where there is no such record."""
        log = self._broker.log(partition)
        offset = bisect.bisect_left(log, timestamp_ms, key=lambda record: record.timestamp_ms)
        return offset if offset < len(log) else None

    async def position(self, partition: Partition) -> int:
        """Where reading goes on."""
        return self._offsets[partition]

    async def close(self) -> None:
        """Leave the group (without a commit)."""
        if self._closed:
            return
        self._closed = True
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.wait((self._settling,))
        self._assignment, self._offsets = frozenset(), {}
        self._broker.tell()
        if self._group is not None:
            async with self._group.rebalancing:
                if self in self._group.members:
                    self._group.members.remove(self)
                    await self._broker.rebalance(self._group)

    async def revoke(self) -> None:
        """Called by a rebalance: give up every partition, after the owner was told."""
        if self._settling is not None:
            await asyncio.wait((self._settling,))
        lost = sorted(self._assignment)
        # No record is handed out between the telling and the loss.
        self._offsets = {}
        try:
            if lost and self._on_revoked is not None:
                await self._on_revoked(lost)
        except Exception as error:  # the next poll raises it
            self._fail(error)
        self._assignment = frozenset()

    def assign(self, partitions: Sequence[Partition]) -> None:
        """Called by a rebalance: these are read when ``on_assigned`` has said where to begin."""
        self._assignment = frozenset(partitions)
        self._paused &= self._assignment
        self._settling = asyncio.ensure_future(self._settle(partitions))

    async def _settle(self, partitions: Sequence[Partition]) -> None:
        committed = self._group.committed if self._group is not None else {}
        try:
            ends = await self.end_offsets(partitions)
            starts = {p: committed.get(p, ends[p] if self._from_latest else 0) for p in partitions}
            if partitions and self._on_assigned is not None:
                starts.update(await self._on_assigned(partitions))
        except Exception as error:  # nothing of the assignment is read; the next poll raises it
            self._fail(error)
        else:
            self._offsets = {p: offset for p, offset in starts.items() if p in self._assignment}
            self._broker.tell()

    def _take(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        # The partition read now goes to the end of the line, so that a full one does not starve the others.
        for place in list(self._offsets):
            if place in self._paused or len(records) >= max_records:
                continue
            log, offset = self._broker.log(place), self._offsets[place]
            if offset > len(log):  # out of range: as Kafka does
                offset = len(log) if self._from_latest else 0
            found = log[offset : offset + max_records - len(records)]
            del self._offsets[place]
            self._offsets[place] = offset + len(found)
            records += found
        return records

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._broker.tell()


class MemorySink:
    """A producer whose records arrive once and in order within a partition."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker, self._closed = broker, False

    async def start(self) -> None:
        """Nothing to connect to."""

    async def write(self, records: Sequence[Outgoing]) -> list[Position]:
        """Write all and answer where each lies. Raises RecordTooLarge or TopicError, before anything was written."""
        if self._closed:
            raise KafkaUnavailable("memory", "the sink is closed")
        chance: dict[str, int] = {}
        places = [self._place(record, chance) for record in records]
        positions: list[Position] = []
        for record, (topic, partition) in zip(records, places, strict=True):
            log = self._broker.log((topic, partition))
            at = int(time.time() * 1000)
            log.append(Record(topic, partition, len(log), record.key, record.value, tuple(record.headers), at))
            positions.append(log[-1].position)
        # Kafka answers later, too: whoever writes gives the others a turn.
        await asyncio.sleep(0)
        self._broker.tell()
        return positions

    async def close(self) -> None:
        """No write can come after this."""
        self._closed = True

    def _place(self, record: Outgoing, chance: dict[str, int]) -> Partition:
        topic = self._broker.topic(record.topic)
        if (size := _size(record)) > topic.limit:
            raise RecordTooLarge(record.topic, size, topic.limit)
        count = len(topic.logs)
        if record.partition is not None:
            if not 0 <= record.partition < count:
                raise TopicError(record.topic, f"has no partition {record.partition}", f"It has {count}.")
            return record.topic, record.partition
        if record.key is not None:
            return record.topic, (murmur2(record.key) & 0x7FFFFFFF) % count
        return record.topic, chance.setdefault(record.topic, random.randrange(count))  # noqa: S311  # no secret


def _size(record: Outgoing) -> int:
    parts: Iterable[bytes | None] = (record.key, record.value, *(content for _, content in record.headers))
    names = sum(len(name.encode()) + _HEADER_OVERHEAD_BYTES for name, _ in record.headers)
    return _OVERHEAD_BYTES + names + sum(len(part) for part in parts if part is not None)
