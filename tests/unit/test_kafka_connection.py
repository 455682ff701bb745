"""engine.kafka_connection: what a failed write is told to come from."""

from __future__ import annotations

import pytest

from engine.errors import KafkaUnavailable
from engine.kafka_connection import KafkaConnection, shortage
from engine.settings import Settings


def partition(number: int, in_sync: int, leader: int = 1) -> dict[str, object]:
    return {"partition": number, "leader": leader, "isr": [*range(1, in_sync + 1)], "replicas": [1, 2, 3]}


@pytest.mark.parametrize(
    ("in_sync", "leader", "least", "said"),
    [
        (3, 1, 2, ""),
        (2, 1, 2, ""),
        (1, 1, 2, "too few in-sync replicas of partition 0 of orders, 1 of the 2 that its min.insync.replicas asks for"),
        (1, -1, 1, "partition 0 of orders has no leader, all brokers that keep it are away"),
    ],
)
def test_the_cause_is_named(in_sync: int, leader: int, least: int, said: str) -> None:
    assert shortage({("orders", 0)}, {"orders": [partition(0, in_sync, leader)]}, {"orders": least}) == said


def test_only_what_was_written_to_counts() -> None:
    """Others may be short of replicas, and a topic may be gone."""
    found = {"orders": [partition(0, 3), partition(1, 1)], "other": [partition(0, 1)]}
    assert shortage({("orders", 0), ("gone", 0)}, found, {"orders": 2, "other": 2}) == ""


def test_of_many_the_first_is_named_and_the_others_are_counted() -> None:
    found = {"orders": [partition(number, 1) for number in range(3)]}
    said = shortage({("orders", number) for number in range(3)}, found, {"orders": 2})
    assert said.startswith("too few in-sync replicas of partition 0 of orders")
    assert said.endswith(", and 2 partitions more")


def test_who_may_not_read_settings_hears_nothing_wrong() -> None:
    assert shortage({("orders", 0)}, {"orders": [partition(0, 1)]}, {}) == ""


@pytest.mark.parametrize("text", ["node 1 is not ready.", "node 1 is not ready"])
def test_the_cause_is_one_sentence_whether_or_not_it_ends_as_one(text: str) -> None:
    assert "is not ready. Is it running" in str(KafkaConnection(Settings()).unavailable(OSError(text)))


async def test_where_no_broker_is_it_says_so_and_nothing_of_sockets() -> None:
    connection = KafkaConnection(Settings(kafka="127.0.0.1:1"))
    with pytest.raises(KafkaUnavailable) as info:
        await connection.partition_counts()
    assert str(info.value).startswith("cannot reach Kafka at 127.0.0.1:1: no broker answers there. Is it running")
