"""Errors of a Kafka that is there and does not do its part; like all others they say what failed, why, and what to do next."""

from __future__ import annotations

from engine.errors import KafkaUnavailable


class TooFewReplicas(KafkaUnavailable):
    """Raised when Kafka answers, and takes no writes to a partition: too few of the brokers that keep it are in sync.

    Nothing acknowledged is lost. The engine tries again and goes on when enough are back; a command exits.
    """

    def __init__(self, servers: str, cause: str) -> None:
        super().__init__(servers, cause)

    def __str__(self) -> str:
        return (
            f"Kafka at {self.servers} takes no writes: {self.cause}. "
            "Is a broker down? It goes on by itself when enough are back; "
            f"`kafka-topics.sh --bootstrap-server {self.servers} --describe --under-min-isr-partitions` lists them all."
        )
