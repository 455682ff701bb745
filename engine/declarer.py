"""The declarer: writes onto the state topic what flows this engine has, when it starts and before retention takes it."""

from __future__ import annotations

import time
from asyncio import sleep
from collections.abc import Mapping
from typing import Any

from engine.broker import Outgoing, Sink
from engine.declarations import Declaration, declare, without_schemas, write_declaration
from engine.errors import KafkaUnavailable, RecordTooLarge
from engine.flows import Flow
from engine.logs import logger
from engine.settings import Settings
from engine.states import utc

#: So often within the time that Kafka keeps the state topic, and once a day at least.
_TIMES = 4
_MOST_SECONDS = 86_400.0
_BACKOFF_SECONDS = 30.0


class Declarer:
    """Tells the flows of one engine."""

    def __init__(self, settings: Settings, flows: Mapping[str, Flow[..., Any]], sink: Sink) -> None:
        self._settings, self._flows, self._sink = settings, flows, sink
        self._every_seconds = min(settings.state_retention_seconds / _TIMES, _MOST_SECONDS)

    async def declare(self) -> None:
        """Write them all now. Raises KafkaUnavailable or TopicError."""
        at = utc(time.time())
        declared = [declare(flow, at) for flow in self._flows.values()]
        try:
            await self._sink.write([self._record(one) for one in declared])
        except RecordTooLarge:
            # One by one it turns out which; that one goes without its schemas, and nobody can check parameters before.
            for one in declared:
                await self._declare_small(one)

    async def run(self) -> None:
        """Write them again and again until cancelled."""
        wait_seconds = self._every_seconds
        while True:
            await sleep(wait_seconds)
            try:
                await self.declare()
                wait_seconds = self._every_seconds
            except KafkaUnavailable as error:
                # There is time: what was written before is still there.
                logger.warning("flows are declared later", error=str(error))
                wait_seconds = min(_BACKOFF_SECONDS, self._every_seconds)

    async def _declare_small(self, one: Declaration) -> None:
        try:
            await self._sink.write([self._record(one)])
        except RecordTooLarge as error:
            logger.warning("a flow is declared without its schemas", flow=one.name, error=str(error))
            await self._sink.write([self._record(without_schemas(one))])

    def _record(self, one: Declaration) -> Outgoing:
        value, headers = write_declaration(self._settings.app, one)
        # Its name as key: all declarations of a flow lie in one partition, in order.
        return Outgoing(self._settings.states_topic, one.name.encode(), value, headers)
