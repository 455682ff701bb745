"""Kafka behind the contract of ``engine.broker``; only the modules engine.kafka* import aiokafka."""

from __future__ import annotations

from collections.abc import Sequence

from engine.broker import OnAssigned, OnRevoked, TopicSpec
from engine.kafka_connection import KafkaConnection
from engine.kafka_offsets import KafkaOffsets
from engine.kafka_reader import KafkaReader
from engine.kafka_sink import DELIVERY_SECONDS, KafkaSink
from engine.kafka_source import KafkaSource
from engine.settings import Settings


class KafkaBroker:
    """Sources and sinks on one Kafka cluster."""

    def __init__(self, settings: Settings) -> None:
        self._connection = KafkaConnection(settings)

    def source(
        self,
        topics: Sequence[str],
        *,
        group: str | None,
        from_latest: bool = False,
        on_assigned: OnAssigned | None = None,
        on_revoked: OnRevoked | None = None,
    ) -> KafkaSource:
        """A reader of ``topics``: member of ``group``, or of every partition where it is None.

        ``on_assigned`` runs beside the group's heartbeats; nothing of the assignment is read before it has answered.
        """
        return KafkaSource(self._connection, topics, group, from_latest, on_assigned, on_revoked)

    def sink(self, *, delivery_seconds: float = DELIVERY_SECONDS) -> KafkaSink:
        """A new producer, whose writes fail after ``delivery_seconds``."""
        return KafkaSink(self._connection, delivery_seconds)

    def reader(self) -> KafkaReader:
        """A new reader of single records, which connects when it is first used."""
        return KafkaReader(self._connection)

    def offset_reader(self) -> KafkaOffsets:
        """A new reader of how groups stand, which connects when it is first used."""
        return KafkaOffsets(self._connection)

    async def ensure_topics(self, topics: Sequence[TopicSpec]) -> list[str]:
        """Make the topics that are missing; answers their names. Raises KafkaUnavailable or TopicError."""
        return await self._connection.ensure_topics(topics)

    async def partitions(self, topic: str) -> int | None:
        """How many partitions a topic has; None where it does not exist. Raises KafkaUnavailable."""
        return (await self._connection.partition_counts()).get(topic)

    async def close(self) -> None:
        """Nothing to free: sources and sinks own their connections."""
