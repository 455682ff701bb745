"""The declaration reader: the flows as running engines have declared them, from the history, or from the state topic itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

from engine.broker import Broker
from engine.declarations import Declaration, is_declaration, read_declaration
from engine.errors import EventError
from engine.history_errors import HistoryUnavailable, HistoryUnreadable
from engine.logs import logger
from engine.run_finder import Histories
from engine.settings import Settings
from engine.snapshots import snapshot
from engine.states import type_of


class DeclarationReader:
    """Reads what is said of the flows of one app."""

    def __init__(self, settings: Settings, broker: Broker, histories: Histories | None = None) -> None:
        self._settings, self._broker, self._histories = settings, broker, histories

    async def one(self, flow: str) -> Declaration | None:
        """The declaration of a flow; None where no engine has made one. Raises KafkaUnavailable or TopicError."""
        known, unread = await self._known()
        if flow not in known:  # else a newer one may follow in a moment; that is as if we had asked a moment ago
            known |= await self._read(unread)
        return known.get(flow)

    async def all(self) -> dict[str, Declaration]:
        """All of them by name, in the order of names. Raises KafkaUnavailable or TopicError."""
        known, unread = await self._known()
        known |= await self._read(unread)
        return dict(sorted(known.items()))

    async def _known(self) -> tuple[dict[str, Declaration], Mapping[int, int] | None]:
        """What the history has, and from where on it has not read."""
        histories, topic = self._histories, self._settings.states_topic
        if histories is None:
            return {}, None

        def look() -> tuple[dict[str, Declaration], Mapping[int, int]]:
            with histories() as history:
                unread = {n: known.next_offset for (name, n), known in history.progress().items() if name == topic}
                return {one.name: one for one in history.declarations()}, unread

        try:
            return await asyncio.to_thread(look)
        except (HistoryUnavailable, HistoryUnreadable) as error:
            # The topic has them, too; only it takes longer.
            logger.warning("without the history the whole state topic is read", error=str(error))
            return {}, None

    async def _read(self, starts: Mapping[int, int] | None) -> dict[str, Declaration]:
        found: dict[str, Declaration] = {}
        async with aclosing(snapshot(self._broker, self._settings.states_topic, starts=starts)) as records:
            async for record in records:
                if not is_declaration(type_of(record.headers)):
                    continue
                try:
                    one = read_declaration(record.value)
                except EventError as error:
                    # Of a newer version, say; the engine that wrote it knows what it means.
                    logger.warning("unreadable declaration", origin=str(record.position), error=str(error))
                    continue
                if one.name not in found or one.at >= found[one.name].at:
                    found[one.name] = one
        return found
