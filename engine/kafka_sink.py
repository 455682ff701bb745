"""A writer of Kafka topics on aiokafka's idempotent producer: once, in order, in whole batches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder

from engine.broker import Outgoing
from engine.errors import EngineError, KafkaUnavailable, RecordTooLarge, TopicError
from engine.events import Position
from engine.kafka_connection import REQUEST_SECONDS, START_SECONDS, UNREACHABLE, KafkaConnection

#: How long a write is tried before it counts as failed: longer than the restart of a broker takes.
DELIVERY_SECONDS = 20.0
#: A close waits no longer for what is under way: whoever wanted to know of it has given up by then.
CLOSE_SECONDS = 5.0
#: Batches are no larger, even where the topic takes more: what fails is sent again as a whole.
BATCH_BYTES = 512 * 1024

# The hash is written in Python and costs as much as all the rest of a record; the changes of a run share their key.
_hash = lru_cache(maxsize=4_096)(murmur2)


class _Topic(msgspec.Struct, frozen=True):
    partitions: int
    limit: int


class _Batch(msgspec.Struct):
    topic: str
    partition: int
    builder: Any
    #: Where its records stand in the write.
    indexes: list[int] = []


class KafkaSink:
    """A producer whose records arrive once and in order within a partition (idempotent, acks=all)."""

    def __init__(self, connection: KafkaConnection, delivery_seconds: float) -> None:
        self._connection = connection
        self._delivery_seconds = delivery_seconds
        self._producer: Any = None
        self._topics: dict[str, _Topic] = {}
        self._stale: set[str] = set()
        # Held while a write hands over its batches, so that writes reach a partition in the order they were called.
        self._turn = asyncio.Lock()
        self._closed = False

    async def start(self) -> None:
        """Connect. Raises KafkaUnavailable."""
        producer = AIOKafkaProducer(**self._connection.options(REQUEST_SECONDS), enable_idempotence=True, acks="all")
        try:
            async with asyncio.timeout(START_SECONDS):
                await producer.start()
        except UNREACHABLE as error:
            await producer.stop()
            raise self._connection.unavailable(error) from error
        except BaseException:  # whatever it was goes on up; nothing half started stays behind
            await producer.stop()
            raise
        self._producer = producer

    async def write(self, records: Sequence[Outgoing]) -> list[Position]:
        """Write all and answer, when all are acknowledged, where each lies.

        Raises RecordTooLarge before anything of the call was written, TopicError where a topic or partition does not
        exist, KafkaUnavailable when it gave up: any part may have been written then, and writing again may repeat it.
        Where Kafka is there and has too few replicas in sync, that is TooFewReplicas.
        """
        if not records:
            return []
        deliveries: list[asyncio.Future[Any]] = []
        failure: EngineError | None = None
        async with self._turn:
            await self._look_up({record.topic for record in records})
            batches = self._pack(records)
            producer = await self._usable()
            try:
                async with asyncio.timeout(self._delivery_seconds):
                    for batch in batches:
                        delivery = await producer.send_batch(batch.builder, batch.topic, partition=batch.partition)
                        # Also where this write is cancelled: what becomes of it then is nobody's business any more.
                        delivery.add_done_callback(_retrieved)
                        deliveries.append(delivery)
            except UNREACHABLE as error:
                failure = self._connection.unavailable(error)
        if deliveries:
            await asyncio.wait(deliveries, timeout=self._delivery_seconds if failure is None else 0)
        positions: list[Any] = [None] * len(records)
        for batch, delivery in zip(batches, deliveries, strict=False):
            if not delivery.done():
                failure = failure or self._connection.unavailable(TimeoutError())
            elif (cause := delivery.exception()) is not None:
                failure = self._failure(batch, cause)
            else:
                base = delivery.result().offset
                for offset, index in enumerate(batch.indexes, base):
                    positions[index] = Position(batch.topic, batch.partition, offset)
        if failure is None:
            return positions
        # The sequence numbers of this producer have a gap now, which Kafka refuses: the next write gets another one.
        # Whatever this one still holds must not be written after that.
        async with self._turn:
            if self._producer is producer:
                self._producer = None
                await _stop(producer, 0)
        if isinstance(failure, KafkaUnavailable):
            failure = await self._connection.why(failure, {(batch.topic, batch.partition) for batch in batches})
        raise failure

    async def close(self) -> None:
        """Write what is under way, then free everything."""
        self._closed = True
        async with self._turn:
            producer, self._producer = self._producer, None
            if producer is not None:
                await _stop(producer, min(self._delivery_seconds, CLOSE_SECONDS))

    async def _look_up(self, topics: set[str]) -> None:
        for topic in topics - (self._topics.keys() - self._stale):
            counts = await self._connection.check_topics([topic])
            self._topics[topic] = _Topic(counts[topic], await self._connection.record_limit(topic))
            self._stale.discard(topic)

    def _pack(self, records: Sequence[Outgoing]) -> list[_Batch]:
        """All batches of a write, in order; nothing is sent before the last record has been found to fit."""
        batches: list[_Batch] = []
        filling: dict[tuple[str, int], _Batch] = {}
        chance: dict[str, int] = {}
        for index, record in enumerate(records):
            name, key, partition = record.topic, record.key, record.partition
            headers = list(record.headers)
            topic = self._topics[name]
            if partition is None:
                if key is not None:
                    partition = (_hash(key) & 0x7FFFFFFF) % topic.partitions
                else:
                    partition = chance.setdefault(name, random.randrange(topic.partitions))  # noqa: S311  # no secret
            elif not 0 <= partition < topic.partitions:
                raise TopicError(name, f"has no partition {partition}", f"It has {topic.partitions}.")
            place = (name, partition)
            batch = filling.get(place)
            if batch is None or batch.builder.append(timestamp=None, key=key, value=record.value, headers=headers) is None:
                batch = filling[place] = _Batch(name, partition, BatchBuilder(min(BATCH_BYTES, topic.limit), 0))
                batches.append(batch)
                # The first record of a batch always fits the builder, whatever its size.
                batch.builder.append(timestamp=None, key=key, value=record.value, headers=headers)
                if (size := batch.builder.size()) > topic.limit:
                    raise RecordTooLarge(name, size, topic.limit)
            batch.indexes.append(index)
        for batch in batches:
            batch.builder.close()
        return batches

    async def _usable(self) -> Any:
        if self._closed:
            raise self._connection.unavailable(KafkaError("the sink is closed"))
        if self._producer is None:
            await self.start()
        return self._producer

    def _failure(self, batch: _Batch, error: BaseException) -> EngineError:
        if isinstance(error, MessageSizeTooLargeError):
            # The topic takes less than when it was asked: ask again for the next write.
            self._stale.add(batch.topic)
            return RecordTooLarge(batch.topic, batch.builder.size(), self._topics[batch.topic].limit)
        return self._connection.unavailable(error)


async def _stop(producer: Any, patience_seconds: float) -> None:
    stopping = asyncio.ensure_future(producer.stop())
    await asyncio.wait((stopping,), timeout=patience_seconds)
    if not stopping.done():
        # An idempotent producer of aiokafka tries for ever, and its stop() waits for that: only this makes it give up. What
        # its sender stumbles over then is no news, and what it does about that fails where there are no transactions.
        producer._sender.sender_task.remove_done_callback(producer._sender._fail_all)
        producer._sender.sender_task.add_done_callback(_retrieved)
        held = producer._message_accumulator
        queued = [batch for batches in held._batches.values() for batch in batches]
        # One that is about to be tried again is looked for, when it fails, among those under way, where it is no longer.
        held._pending_batches.update(batch for batch in queued if batch.retry_count)
        held.fail_all(KafkaError("given up"))
        for batch in {*held._pending_batches, *queued}:
            batch._drain_waiter.add_done_callback(_retrieved)
    try:
        await stopping
    except (KafkaError, KeyError):
        # A batch about to be tried again is no longer where aiokafka looks for it; its write has failed already.
        await producer.client.close()


def _retrieved(given_up: asyncio.Future[Any]) -> None:
    """Whoever wanted to know of its failure has heard of it, or has gone: asyncio need not say it once more."""
    if not given_up.cancelled():
        given_up.exception()
