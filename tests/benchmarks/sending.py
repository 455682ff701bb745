"""Sends events, ready-made: whole batches are encoded before the clock starts, so that sending costs the client little."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer

from engine.broker import Outgoing

#: Every topic of events has so many partitions.
PARTITIONS = 4
#: Encoded records, their topic and partition.
Batch = tuple[Any, str, int]
_BATCH_BYTES = 500_000
#: Records of one batch, so that a broker has something to hand out before all of a round is written.
_BATCH_RECORDS = 500


class Sender:
    """A producer of its own, as any user would have one: idempotent, acks=all."""

    def __init__(self, kafka: str) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka, enable_idempotence=True, acks="all", max_batch_size=_BATCH_BYTES
        )
        self._sent = 0

    async def start(self) -> None:
        await self._producer.start()

    async def close(self) -> None:
        await self._producer.stop()

    def prepare(self, records: Sequence[Outgoing]) -> list[Batch]:
        """Spread ``records`` evenly over the partitions."""
        # The first batches of all partitions first, so that each of them has something early.
        batches: list[Batch] = []
        for begin in range(0, len(records), PARTITIONS * _BATCH_RECORDS):
            part = records[begin : begin + PARTITIONS * _BATCH_RECORDS]
            for partition in range(PARTITIONS):
                own = part[partition::PARTITIONS]
                if own:
                    batches.append((self._encode(own), own[0].topic, partition))
        return batches

    def _encode(self, records: Sequence[Outgoing]) -> Any:
        builder = self._producer.create_batch()
        for record in records:
            if builder.append(key=None, value=record.value, timestamp=None, headers=list(record.headers)) is None:
                raise SystemExit("a batch is full: make _BATCH_RECORDS smaller")
        builder.close()
        return builder

    async def send(self, batches: Sequence[Batch]) -> None:
        """Return when Kafka has all of it."""
        futures = [
            await self._producer.send_batch(builder, topic, partition=partition) for builder, topic, partition in batches
        ]
        await asyncio.gather(*futures)

    async def send_one(self, record: Outgoing) -> None:
        """Hand one record over; it leaves at once."""
        self._sent += 1
        await self._producer.send(record.topic, record.value, headers=list(record.headers), partition=self._sent % PARTITIONS)
