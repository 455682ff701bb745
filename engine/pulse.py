"""The pulse: asks Kafka now and then whether it answers, so that an engine without work knows, too; changes nothing."""

from __future__ import annotations

import asyncio

from engine.broker import Broker
from engine.errors import KafkaUnavailable
from engine.logs import logger

#: Between two questions; each may take as long as one request does.
INTERVAL_SECONDS = 5.0


class Pulse:
    """What an engine says of Kafka while none of its parts has anything to write."""

    def __init__(self, broker: Broker, topic: str, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._broker, self._topic, self._interval_seconds = broker, topic, interval_seconds
        #: Empty while Kafka answers; otherwise why it does not.
        self.trouble = ""

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self._broker.partitions(self._topic)
            except KafkaUnavailable as error:
                # No event is touched: the parts that read and write wait by themselves, and go on by themselves.
                if not self.trouble:
                    logger.warning("Kafka does not answer", error=str(error))
                self.trouble = str(error)
            else:
                self.trouble = ""
