"""``engine history run`` and ``rebuild``: the projector as a process of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from typing import Annotated

from cyclopts import Parameter

from engine import logs
from engine.cli_flags import AppFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put, say
from engine.command_errors import UsageError
from engine.history_store import HistoryStore
from engine.kafka import KafkaBroker
from engine.projector import Projector
from engine.settings import Settings


async def run(
    *,
    history: HistoryFlag = None,
    fresh: Annotated[bool, Parameter(negative=(), show_default=False, help="Begin with empty tables.")] = False,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Fill the history database from the topics, from where it was, until SIGTERM or Ctrl-C; one process to a database.

    It outlives trouble of Kafka and of the database, and logs it. With --json: one line {"history", "kafka", "pid"} on standard
    output when it has begun, then a line {"trouble"} whenever it has to wait, empty when that is over.
    """
    settings = _settings(history, app, kafka)
    logs.configure(level=settings.log_level)
    projector = Projector(settings, KafkaBroker(settings), HistoryStore(settings.history_path, settings.app), fresh=fresh)
    told = False

    def tell() -> None:
        nonlocal told
        if json and not told:
            put(json_text({"history": settings.history_shown, "kafka": settings.kafka, "pid": os.getpid()}))
        told = True

    def tell_trouble(trouble: str) -> None:
        if json:
            put(json_text({"trouble": trouble}))

    # As ``engine run`` does: what is loaded now stays, and batches of records are no garbage until they are written.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, projector.stop)
    await projector.run(tell, tell_trouble)


async def rebuild(*, history: HistoryFlag = None, app: AppFlag = None, kafka: KafkaFlag = None, json: JsonFlag = False) -> None:
    """Drop the tables of the history and read the topics from their beginning; then exit.

    What the topics no longer hold is gone from the history, too. Stopped half-way, `engine history run` goes on with it.
    """
    settings = _settings(history, app, kafka)
    logs.configure(level=settings.log_level)
    store = HistoryStore(settings.history_path, settings.app)
    projector = Projector(settings, KafkaBroker(settings), store, fresh=True)
    try:
        records = await projector.catch_up()
    finally:
        await projector.close()
    if json:
        put(json_text({"history": settings.history_shown, "records": records}))
    else:
        say(f"{settings.history_shown}: made anew from {records:,} records")


def _settings(history: str | None, app: str | None, kafka: str | None) -> Settings:
    settings = settings_of(app=app, kafka=kafka, history=history)
    if not settings.history_path:
        raise UsageError(
            "history", "no database is named", "Give --history FILE or URL, ENGINE_HISTORY, or history in engine.toml."
        )
    return settings
