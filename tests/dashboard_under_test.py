"""A dashboard on the log in memory, with its projector beside it in the same event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from engine.broker import TopicSpec
from engine.dashboard import Dashboard
from engine.history_store import HistoryStore
from engine.memory import MemoryBroker
from engine.projector import Projector
from engine.settings import Settings

APP = "app"


class Beside:
    """A projector of this process, in the place of one of its own."""

    def __init__(self, settings: Settings, broker: MemoryBroker) -> None:
        self.trouble = ""
        self.is_elsewhere = False
        self._projector = Projector(settings, broker, HistoryStore(settings.history_path, settings.app))

        self._stopping = asyncio.Event()

    async def run(self) -> None:
        await self._projector.run()
        await self._stopping.wait()

    def stop(self) -> None:
        self._projector.stop()
        self._stopping.set()


async def a_log(*topics: str) -> MemoryBroker:
    """With the topics of an engine, and others of one partition."""
    broker = MemoryBroker()
    own = [TopicSpec(f"{APP}.{name}", 1) for name in ("states", "dead-letters", "replays", "logs")]
    await broker.ensure_topics([*own, *(TopicSpec(topic, 1) for topic in topics)])
    return broker


@contextlib.asynccontextmanager
async def serving(folder: Path, broker: MemoryBroker, **more: Any) -> AsyncIterator[Dashboard]:
    """A dashboard that listens. Its Dask does not answer."""
    given = {"app": APP, "http": "127.0.0.1:0", "history": str(folder / "history.db"), "dask": "inproc://127.0.0.1/1/1"}
    settings = Settings(**(given | more))
    dashboard = Dashboard(settings, broker, Beside(settings, broker))
    listening = asyncio.Event()
    running = asyncio.create_task(dashboard.run(listening.set))
    waiting = asyncio.create_task(listening.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        if running.done():
            running.result()
        yield dashboard
    finally:
        dashboard.stop()
        await running
