"""engine.pulse: an engine without work notices that Kafka is away, and that it is back."""

from __future__ import annotations

import asyncio

from engine.broker import TopicSpec
from engine.errors import KafkaUnavailable
from engine.memory import MemoryBroker
from engine.pulse import Pulse
from tests.waiting import eventually


class Mortal(MemoryBroker):
    is_away = False

    async def partitions(self, topic: str) -> int | None:
        if self.is_away:
            raise KafkaUnavailable("127.0.0.1:9092", "no answer in time")
        return await super().partitions(topic)


async def test_kafka_away_and_back_is_told_without_anything_to_write() -> None:
    log = Mortal()
    await log.ensure_topics([TopicSpec("states", 1)])
    pulse = Pulse(log, "states", interval_seconds=0.001)
    asking = asyncio.create_task(pulse.run())
    assert pulse.trouble == ""
    log.is_away = True
    await eventually(lambda: "no answer in time" in pulse.trouble)
    log.is_away = False
    await eventually(lambda: pulse.trouble == "")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
