"""A reader of Kafka topics on aiokafka's consumer, which knows eager rebalancing only; never commits by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError

from engine.broker import OnAssigned, OnRevoked, Partition, Record
from engine.events import Headers
from engine.kafka_connection import REQUEST_SECONDS, UNREACHABLE, KafkaConnection

#: A fetch that finds nothing is answered after so long. A partition that is resumed waits behind it.
FETCH_WAIT_SECONDS = 0.1
#: Between two heartbeats.
HEARTBEAT_SECONDS = 0.5
#: A fetch brings about so much of a partition, and of all. What is read ahead stays in memory, and is thrown away by a pause
#: or a seek. A record that is larger comes all the same, alone (KIP-74).
FETCH_BYTES = 512 * 1024
MOST_FETCH_BYTES = 8 * 1024 * 1024
#: Leaving a group politely takes a request; without Kafka it is given up after so long.
CLOSE_SECONDS = 5.0


class KafkaSource(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """A member of a consumer group, or a reader without a group, on aiokafka's consumer."""

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Sequence[str],
        group: str | None,
        from_latest: bool,
        on_assigned: OnAssigned | None,
        on_revoked: OnRevoked | None,
    ) -> None:
        self._connection, self._topics, self._group = connection, tuple(topics), group
        self._from_latest = from_latest
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._consumer: Any = None
        self._assignment: frozenset[Partition] = frozenset()
        self._paused: set[Partition] = set()
        self._settling: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self._fetching: asyncio.Task[dict[TopicPartition, list[Any]]] | None = None
        self._failure: BaseException | None = None

    @property
    def assignment(self) -> frozenset[Partition]:
        """The partitions this member reads now."""
        return self._assignment

    async def start(self) -> None:
        """Join and wait for the first assignment, at most a session's timeout. Raises KafkaUnavailable, TopicError."""
        counts = await self._connection.check_topics(self._topics)
        settings = self._connection.settings
        # The group waits so long for its slowest member and answers a join only then: a request may take longer.
        rebalance_seconds = settings.session_timeout_seconds + settings.grace_seconds
        consumer = AIOKafkaConsumer(
            **self._connection.options(rebalance_seconds + REQUEST_SECONDS),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="latest" if self._from_latest else "earliest",
            isolation_level="read_committed",
            session_timeout_ms=int(settings.session_timeout_seconds * 1000),
            # With a heartbeat a member hears, too, that others have come or gone: so long may a handover wait for it.
            heartbeat_interval_ms=int(min(HEARTBEAT_SECONDS, settings.session_timeout_seconds / 4) * 1000),
            rebalance_timeout_ms=int(rebalance_seconds * 1000),
            fetch_max_wait_ms=int(FETCH_WAIT_SECONDS * 1000),
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_bytes=MOST_FETCH_BYTES,
        )
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await consumer.start()
        except UNREACHABLE as error:
            await stop_consumer(consumer)
            raise self._connection.unavailable(error) from error
        except BaseException:  # whatever it was goes on up; nothing half started stays behind
            await stop_consumer(consumer)
            raise
        self._consumer = consumer
        if self._group is None:
            everything = [TopicPartition(topic, n) for topic in self._topics for n in range(counts[topic])]
            consumer.assign(everything)
            await self.on_partitions_assigned(everything)
        else:
            consumer.subscribe(self._topics, listener=self)
        # Whoever starts to read at the end may write as soon as this returns. A slow group comes with a later poll.
        try:
            async with asyncio.timeout(settings.session_timeout_seconds):
                await self._joined.wait()
        except TimeoutError:
            return

    async def poll(self, *, timeout_seconds: float, max_records: int) -> list[Record]:
        """Records in order within each partition; an empty list after ``timeout_seconds`` without any.

        Raises what went wrong in ``on_assigned`` or ``on_revoked``, and KafkaUnavailable.
        """
        self._raise_failure()
        # A cancelled getmany would switch off aiokafka's watch over max_poll_interval, and one that meets a rebalance
        # waits for its end: so it is a task that a later poll goes on waiting for.
        if self._fetching is None:
            fetch = self._consumer.getmany(timeout_ms=int(timeout_seconds * 1000), max_records=max_records)
            self._fetching = asyncio.ensure_future(fetch)
        await asyncio.wait((self._fetching,), timeout=timeout_seconds + FETCH_WAIT_SECONDS)
        self._raise_failure()
        if self._fetching is None or not self._fetching.done():
            return []
        fetching, self._fetching = self._fetching, None
        try:
            found = fetching.result()
        except (ConsumerStoppedError, asyncio.CancelledError):
            return []  # Closed meanwhile: nothing was handed out.
        except UNREACHABLE as error:
            raise self._connection.unavailable(error) from error
        records: list[Record] = []
        for (topic, partition), batch in found.items():
            records += [record_of(topic, partition, read) for read in batch]
        return records

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        """Commit next offsets of partitions still assigned. False where the group refused. Raises KafkaUnavailable."""
        owned = {TopicPartition(*p): offset for p, offset in offsets.items() if p in self._assignment}
        if self._group is None:
            return False
        if not owned:
            return True
        try:
            async with asyncio.timeout(REQUEST_SECONDS):  # aiokafka itself tries for ever
                await self._consumer.commit(owned)
        except (CommitFailedError, IllegalStateError):
            return False  # A rebalance is under way: the records come again, here or elsewhere.
        except UNREACHABLE as error:
            raise self._connection.unavailable(error) from error
        return True

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop reading these, staying in the group."""
        for partition in partitions:
            if partition not in self._assignment:
                continue
            self._paused.add(partition)
            held = self._held(partition)
            if held:
                self._consumer.seek(TopicPartition(*partition), held[0].offset)
            self._consumer.pause(TopicPartition(*partition))

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Read these again."""
        for partition in partitions:
            self._paused.discard(partition)
            # What is not settled is resumed when ``on_assigned`` has said where to begin.
            if partition in self._assignment and (self._settling is None or self._settling.done()):
                self._consumer.resume(TopicPartition(*partition))

    def seek(self, partition: Partition, offset: int) -> None:
        """Go on at ``offset``."""
        if partition in self._assignment:
            self._held(partition)
            self._consumer.seek(TopicPartition(*partition), offset)

    async def end_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The offset that the next record of each partition will get. Raises KafkaUnavailable."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                found = await self._consumer.end_offsets([TopicPartition(*p) for p in partitions])
        except UNREACHABLE as error:
            raise self._connection.unavailable(error) from error
        return {(topic, n): offset for (topic, n), offset in found.items()}

    async def committed(self, partition: Partition) -> int | None:
        """The group's committed offset, None where there is none. Raises KafkaUnavailable."""
        if self._group is None:
            return None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                offset: int | None = await self._consumer.committed(TopicPartition(*partition))
        except UNREACHABLE as error:
            raise self._connection.unavailable(error) from error
        return offset

    async def offset_at(self, partition: Partition, timestamp_ms: int) -> int | None:
        """The first offset whose record is not older than ``timestamp_ms``, or None. Raises KafkaUnavailable."""
        place = TopicPartition(*partition)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                found = (await self._consumer.offsets_for_times({place: timestamp_ms}))[place]
        except UNREACHABLE as error:
            raise self._connection.unavailable(error) from error
        return None if found is None else int(found.offset)

    async def position(self, partition: Partition) -> int:
        """Where reading goes on: after the last record handed out, and after gaps. Raises KafkaUnavailable."""
        place = TopicPartition(*partition)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                offset: int = await self._consumer.position(place)
        except UNREACHABLE as error:
            raise self._connection.unavailable(error) from error
        fetching = self._fetching
        if fetching is not None and fetching.done() and not fetching.cancelled() and fetching.exception() is None:
            # Fetched, but not handed out yet.
            held = fetching.result().get(place)
            return int(held[0].offset) if held else offset
        return offset

    async def close(self) -> None:
        """Leave the group (without a commit) and free everything."""
        if self._consumer is None:
            return
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.wait((self._settling,))
        await stop_consumer(self._consumer)
        self._assignment = frozenset()
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait((self._fetching,))

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Called by aiokafka before it joins again: every partition is given up (eager rebalancing)."""
        lost = sorted((p.topic, p.partition) for p in revoked)
        if self._settling is not None:
            await asyncio.wait((self._settling,))
        try:
            if lost and self._on_revoked is not None:
                await self._on_revoked(lost)
        except Exception as error:  # aiokafka would swallow it: the next poll raises it
            self._failure = error
        self._assignment = frozenset()
        for partition in lost:
            self._held(partition)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Called by aiokafka with the new assignment, before anything of it was fetched."""
        places = sorted(assigned)
        self._assignment = frozenset((p.topic, p.partition) for p in places)
        self._paused &= self._assignment
        # Nothing is read before ``on_assigned`` has said where to begin. That goes on beside aiokafka's own task, which
        # sends no heartbeat before this method returns.
        self._consumer.pause(*places)
        self._settling = asyncio.ensure_future(self._settle(places))

    async def _settle(self, places: Sequence[TopicPartition]) -> None:
        partitions = [(p.topic, p.partition) for p in places]
        try:
            starts: dict[Partition, int] = {}
            if self._from_latest:
                ends = await self.end_offsets(partitions)
                starts = {p: end for p, end in ends.items() if await self.committed(p) is None}
            if partitions and self._on_assigned is not None:
                starts.update(await self._on_assigned(partitions))
            for partition, offset in starts.items():
                if partition in self._assignment:
                    self._consumer.seek(TopicPartition(*partition), offset)
            self._consumer.resume(*(p for p in places if tuple(p) not in self._paused))
        except Exception as error:  # the partitions stay paused; the next poll raises it
            self._failure = error
        self._joined.set()

    def _held(self, partition: Partition) -> list[Any]:
        """Take back what a fetch brought after its poll had gone."""
        if self._fetching is None or not self._fetching.done() or self._fetching.exception() is not None:
            return []
        return self._fetching.result().pop(TopicPartition(*partition), [])

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


async def stop_consumer(consumer: Any) -> None:
    """Leave the group and free everything, also where Kafka is away."""
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait((stopping,), timeout=CLOSE_SECONDS)
    if not stopping.done():
        stopping.cancel()
        await asyncio.wait((stopping,))
    if stopping.cancelled() or stopping.exception() is not None:
        # Without Kafka aiokafka's stop() stumbles over a fetch that it cancelled itself, and leaves its connections open.
        await consumer._client.close()


def record_of(topic: str, partition: int, found: Any) -> Record:
    """A record as aiokafka gave it."""
    return Record(topic, partition, found.offset, found.key, found.value, _headers(found.headers), found.timestamp)


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> Headers:
    # Kafka tells null from empty in a header's value; nothing we read does.
    for _, content in headers:
        if content is None:
            return tuple([(name, content or b"") for name, content in headers])
    return tuple(headers)  # type: ignore[arg-type]
