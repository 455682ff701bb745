"""The contract with a log of records: what the engine needs of Kafka, and nothing of how Kafka does it.

``engine.kafka`` and ``engine.memory`` fulfil it and pass the same tests (tests/contract).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from engine.events import Headers, Position

#: A partition of a topic: (topic, partition).
Partition = tuple[str, int]

#: Asked once per assignment with the partitions just assigned. Answers at which offset to start each one; one that is
#: missing in the answer starts at the group's committed offset, or at the earliest record where there is none.
OnAssigned = Callable[[Sequence[Partition]], Awaitable[Mapping[Partition, int]]]

#: Told which partitions are being taken away, before the group hands them to another member.
OnRevoked = Callable[[Sequence[Partition]], Awaitable[None]]


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as the log gave it; nothing in it has been looked at."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    #: Milliseconds since the epoch, set by the producer.
    timestamp_ms: int

    @property
    def position(self) -> Position:
        """Where the record lies."""
        return Position(self.topic, self.partition, self.offset)


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A record to be written. Without a partition the key chooses (murmur2 as Kafka's own clients do), or chance."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Standing(msgspec.Struct, frozen=True):
    """Where partitions begin and end, and what groups have committed, at about one moment."""

    #: The first offset that is still there, and the one that the next record gets.
    begins: Mapping[Partition, int]
    ends: Mapping[Partition, int]
    #: By group; the *next* offset of each partition that has one.
    committed: Mapping[str, Mapping[Partition, int]]


class TopicSpec(msgspec.Struct, frozen=True):
    """How a topic is made when it is missing."""

    name: str
    #: -1 leaves it to the broker's default.
    partitions: int = -1
    replication_factor: int = -1
    #: Kafka's topic settings, e.g. ``{"retention.ms": "604800000"}``.
    config: Mapping[str, str] = msgspec.field(default_factory=dict)


class Source(Protocol):
    """A member of a consumer group, or a reader without a group."""

    @property
    def assignment(self) -> frozenset[Partition]:
        """The partitions this member reads now."""
        ...

    async def start(self) -> None:
        """Join. Raises KafkaUnavailable or TopicError."""
        ...

    async def poll(self, *, timeout_seconds: float, max_records: int) -> list[Record]:
        """Records in order within each partition; an empty list after ``timeout_seconds`` without any.

        Never cancel or wrap it in a timeout. Raises what went wrong in ``on_assigned`` or ``on_revoked``, too.
        """
        ...

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        """Commit the *next* offset of each partition that is still assigned; the others are left out.

        False where the group refused (it is rebalancing): the records come again, or to somebody else.
        Raises KafkaUnavailable.
        """
        ...

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop reading these, staying in the group; holds over a rebalance while the partition stays assigned."""
        ...

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Read these again."""
        ...

    def seek(self, partition: Partition, offset: int) -> None:
        """Go on at ``offset``."""
        ...

    async def end_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The offset that the next record of each partition will get."""
        ...

    async def committed(self, partition: Partition) -> int | None:
        """The group's committed offset, None where there is none."""
        ...

    async def offset_at(self, partition: Partition, timestamp_ms: int) -> int | None:
        """The first offset whose record is not older than ``timestamp_ms``; None where there is no such record."""
        ...

    async def position(self, partition: Partition) -> int:
        """Where reading goes on: after the last record handed out, and after what is known to hold none.

        A transaction's marker and what compaction took leave offsets that no record will ever bring.
        Raises KafkaUnavailable.
        """
        ...

    async def close(self) -> None:
        """Leave the group (without a commit) and free everything."""
        ...


class Sink(Protocol):
    """A producer whose records arrive once and in order within a partition (idempotent, acks=all)."""

    async def start(self) -> None:
        """Connect. Raises KafkaUnavailable."""
        ...

    async def write(self, records: Sequence[Outgoing]) -> list[Position]:
        """Write all and answer, when all are acknowledged, where each lies.

        Raises RecordTooLarge before anything of the call was written, TopicError where a topic does not exist,
        KafkaUnavailable when it gave up: then any part may have been written, and writing it again may repeat records.
        """
        ...

    async def close(self) -> None:
        """Write what is under way, then free everything."""
        ...


class Reader(Protocol):
    """Reads single records by their offsets."""

    async def read(self, partition: Partition, offsets: Collection[int]) -> dict[int, Record]:
        """The records at these offsets; those that the log does not hold, or no longer, are left out.

        Raises KafkaUnavailable, and TopicError where the topic does not exist.
        """
        ...

    async def close(self) -> None:
        """Free everything."""
        ...


class OffsetReader(Protocol):
    """Reads how groups stand, from outside."""

    async def read(self, groups: Sequence[str], topics: Collection[str]) -> Standing:
        """How these groups stand, in all partitions of the topics that they have committed any of, and of ``topics``.

        A topic that does not exist is left out. Raises KafkaUnavailable; it may be cancelled.
        """
        ...

    async def close(self) -> None:
        """Free everything."""
        ...


class Broker(Protocol):
    """Makes sources and sinks on one log."""

    def source(
        self,
        topics: Sequence[str],
        *,
        group: str | None,
        from_latest: bool = False,
        on_assigned: OnAssigned | None = None,
        on_revoked: OnRevoked | None = None,
    ) -> Source:
        """A reader of ``topics``: member of ``group``, or of every partition where it is None.

        Where the group has no committed offset it begins with the earliest record, or with what comes from now on.
        """
        ...

    def sink(self) -> Sink:
        """A new producer."""
        ...

    def reader(self) -> Reader:
        """A new reader of single records, which connects when it is first used."""
        ...

    def offset_reader(self) -> OffsetReader:
        """A new reader of how groups stand, which connects when it is first used."""
        ...

    async def ensure_topics(self, topics: Sequence[TopicSpec]) -> list[str]:
        """Make the topics that are missing; answers their names. Raises KafkaUnavailable or TopicError."""
        ...

    async def partitions(self, topic: str) -> int | None:
        """How many partitions a topic has; None where it does not exist. Raises KafkaUnavailable."""
        ...

    async def close(self) -> None:
        """Free what sources and sinks share."""
        ...
