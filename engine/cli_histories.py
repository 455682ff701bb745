"""The history that a command looks at: the database where there is one, else one made in memory from the topics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engine import logs
from engine.cli_output import say
from engine.history import History
from engine.history_store import IN_MEMORY, HistoryStore
from engine.kafka import KafkaBroker
from engine.projector import Projector
from engine.run_finder import Histories
from engine.settings import Settings

#: Without a database so many records are read of each topic, the latest: some seconds.
LAST_RECORDS = 200_000


@asynccontextmanager
async def history_of(settings: Settings) -> AsyncIterator[History]:
    """An open history. Raises KafkaUnavailable, TopicError and the errors of the history."""
    logs.configure(level="WARNING")
    if (histories := histories_of(settings)) is not None:
        with histories() as found:
            yield found
        return
    broker = KafkaBroker(settings)
    projector = Projector(
        settings, broker, store := HistoryStore(IN_MEMORY, settings.app), last_records=LAST_RECORDS, with_logs=False
    )
    try:
        records = await projector.catch_up()
        if projector.is_cut:
            say(f"no history database (setting history): read the last {records:,} records alone; older runs are missing")
        yield History(store.connection, IN_MEMORY)
    finally:
        await projector.close()
        await broker.close()


def histories_of(settings: Settings) -> Histories | None:
    """How to open the database; None where there is none."""
    path = settings.history_path
    return (lambda: History.open(path)) if path and Path(path).is_file() else None
