"""A sink that connects when it is first used, and again after trouble: for whom pages matter more than Kafka being there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from engine.broker import Broker, Outgoing, Sink
from engine.errors import KafkaUnavailable
from engine.events import Position


class PatientSink:
    """``start`` does nothing; ``write`` raises KafkaUnavailable where there is no Kafka, and the next one looks again."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._sink: Sink | None = None
        self._connecting = asyncio.Lock()
        self._is_closed = False

    async def start(self) -> None:
        """Nothing yet."""

    async def write(self, records: Sequence[Outgoing]) -> list[Position]:
        """See engine.broker.Sink."""
        async with self._connecting:
            if self._is_closed:
                raise KafkaUnavailable("the sink", "it is closed")
            if self._sink is None:
                sink = self._broker.sink()
                await sink.start()
                self._sink = sink
        return await self._sink.write(records)

    async def close(self) -> None:
        """Write what is under way, then free everything."""
        async with self._connecting:
            self._is_closed = True
            if self._sink is not None:
                await self._sink.close()
