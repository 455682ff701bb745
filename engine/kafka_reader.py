"""A reader of single Kafka records by their offsets, on an aiokafka consumer without a group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from engine.broker import Partition, Record
from engine.errors import KafkaUnavailable
from engine.kafka_connection import REQUEST_SECONDS, UNREACHABLE, KafkaConnection
from engine.kafka_source import record_of, stop_consumer

_POLL_SECONDS = 0.2
#: Records taken at once: what lies side by side comes with one request.
_MAX_RECORDS = 100
#: Rather read on over a gap than ask anew, up to so many records.
_GAP_RECORDS = 500


class KafkaReader:
    """Reads single records; connects when it is first used."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._consumer: Any = None
        #: How many partitions topics have.
        self._counts: dict[str, int] = {}

    async def read(self, partition: Partition, offsets: Collection[int]) -> dict[int, Record]:
        """The records at these offsets; those that the log does not hold, or no longer, are left out.

        Raises KafkaUnavailable, and TopicError where the topic does not exist.
        """
        place = TopicPartition(*partition)
        found: dict[int, Record] = {}
        wanted = frozenset(offsets)
        if place.topic not in self._counts:
            # Of a partition that there is not the consumer would ask for ever.
            self._counts.update(await self._connection.check_topics([place.topic]))
        if not wanted or place.partition >= self._counts[place.topic]:
            return found
        try:
            consumer = await self._connected()
            async with asyncio.timeout(REQUEST_SECONDS):
                beginning = (await consumer.beginning_offsets([place]))[place]
                end = (await consumer.end_offsets([place]))[place]
            reads_from = -1 - _GAP_RECORDS
            for offset in sorted(wanted):
                if offset < reads_from or not beginning <= offset < end:
                    continue
                if reads_from < 0:
                    # Right before the seek: what is assigned without a position becomes an error as soon as anybody waits.
                    consumer.assign([place])
                if not reads_from <= offset <= reads_from + _GAP_RECORDS:
                    consumer.seek(place, offset)
                reads_from = await self._read_one(place, offset, wanted, found)
        except OffsetOutOfRangeError:
            return found  # it was taken away while we asked: what is missing says so
        except UNREACHABLE as error:
            raise self._connection.unavailable(error) from error
        return found

    async def close(self) -> None:
        """Free everything."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)

    async def _read_one(self, place: TopicPartition, offset: int, wanted: Collection[int], found: dict[int, Record]) -> int:
        """Read on until ``offset`` is passed; answers where reading goes on."""
        deadline = time.monotonic() + REQUEST_SECONDS
        while True:
            fetched = await self._consumer.getmany(place, timeout_ms=int(_POLL_SECONDS * 1000), max_records=_MAX_RECORDS)
            records = fetched.get(place, [])
            for record in records:
                if record.offset in wanted:
                    found[record.offset] = record_of(place.topic, place.partition, record)
            if records and records[-1].offset >= offset:
                return int(records[-1].offset) + 1
            # After gaps nothing may follow: then only the position moves.
            if await self._consumer.position(place) > offset:
                return int(await self._consumer.position(place))
            if time.monotonic() > deadline:
                raise KafkaUnavailable(self._connection.settings.kafka, f"did not give the record at offset {offset}")

    async def _connected(self) -> Any:
        if self._consumer is None:
            settings = self._connection.settings
            consumer = AIOKafkaConsumer(
                **self._connection.options(REQUEST_SECONDS),
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                max_partition_fetch_bytes=max(1024 * 1024, settings.max_record_bytes),
                fetch_max_wait_ms=100,
            )
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await consumer.start()
            except BaseException:  # whatever it was goes on up; nothing half started stays behind
                await stop_consumer(consumer)
                raise
            self._consumer = consumer
        return self._consumer
