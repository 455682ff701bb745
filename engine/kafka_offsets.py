"""Reads where partitions begin and end and what groups have committed, without belonging to any group."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from engine.broker import Partition, Standing
from engine.kafka_connection import UNREACHABLE, KafkaConnection
from engine.kafka_source import stop_consumer

#: One request takes at most so long; who asks has a shorter patience of its own.
_REQUEST_SECONDS = 2.0


class KafkaOffsets:
    """Asks one Kafka cluster; connects when it is first used, and anew after trouble."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._admin: Any = None
        self._consumer: Any = None
        #: Connections on their way out: nobody who asks waits for them.
        self._leaving: set[asyncio.Task[None]] = set()

    async def read(self, groups: Sequence[str], topics: Collection[str]) -> Standing:
        """See engine.broker.OffsetReader. Raises KafkaUnavailable; cancelled half-way it is as good as new."""
        try:
            await self._connect()
            return await self._read(groups, topics)
        except BaseException as error:  # no event hangs on it: offsets are only looked at
            # What was asked may still be answered, to nobody: the next question has connections of its own.
            self._leave()
            if isinstance(error, UNREACHABLE):
                raise self._connection.unavailable(error) from error
            raise

    async def close(self) -> None:
        """Free everything."""
        self._leave()
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _leave(self) -> None:
        if self._admin is not None or self._consumer is not None:
            leaving = asyncio.create_task(_close(self._admin, self._consumer), name="kafka-offsets-close")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
        self._admin = self._consumer = None

    async def _connect(self) -> None:
        options = self._connection.options(_REQUEST_SECONDS)
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(**options)
            await self._admin.start()
        if self._consumer is None:
            self._consumer = AIOKafkaConsumer(**options, group_id=None, enable_auto_commit=False)
            await self._consumer.start()

    async def _read(self, groups: Sequence[str], topics: Collection[str]) -> Standing:
        answers = await asyncio.gather(*(self._admin.list_consumer_group_offsets(group) for group in groups))
        committed: dict[str, dict[Partition, int]] = {
            group: {(place.topic, place.partition): known.offset for place, known in answer.items() if known.offset >= 0}
            for group, answer in zip(groups, answers, strict=True)
        }
        wanted = {*topics, *(topic for places in committed.values() for topic, _ in places)}
        # All topics are asked for: naming one would make it where the cluster makes topics automatically.
        found = {
            topic["topic"]: topic["partitions"] for topic in await self._admin.describe_topics() if not topic["error_code"]
        }
        places = [TopicPartition(topic, n) for topic in sorted(wanted & found.keys()) for n in range(len(found[topic]))]
        if not places:
            return Standing({}, {}, committed)
        begins, ends = await asyncio.gather(self._consumer.beginning_offsets(places), self._consumer.end_offsets(places))
        return Standing(_plain(begins), _plain(ends), committed)


async def _close(admin: Any, consumer: Any) -> None:
    if consumer is not None:
        await stop_consumer(consumer)
    if admin is not None:
        await admin.close()


def _plain(offsets: dict[Any, int]) -> dict[Partition, int]:
    return {(place.topic, place.partition): offset for place, offset in offsets.items()}
