"""``engine dashboard``: pages, API and the history behind them, as a process of its own, until a signal stops it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from engine import logs
from engine.cli_flags import AppFlag, DaskFlag, HistoryFlag, HttpFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put
from engine.dashboard import Dashboard
from engine.kafka import KafkaBroker
from engine.projector_process import ProjectorProcess


async def dashboard(
    *,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    dask: DaskFlag = None,
    http: HttpFlag = None,
    history: HistoryFlag = None,
    engines: Annotated[
        list[str] | None, Parameter(name="--engines", negative=(), help="Where engines listen for HTTP, host:port.")
    ] = None,
    fresh: Annotated[bool, Parameter(negative=(), show_default=False, help="Begin with an empty history.")] = False,
    log: Annotated[
        Literal["auto", "json", "console"], Parameter(help="Form of the log on standard error; auto looks for a terminal.")
    ] = "auto",
    json: JsonFlag = False,
) -> None:
    """Serve the pages and the API at --http, and fill the history from the topics, until SIGTERM or Ctrl-C.

    Without --history the database lies in your data folder, by app. Beyond loopback it needs http_token, or a reverse
    proxy's http_user_header. With --json: one line {"http", "history", "kafka", "pid"} on standard output when it listens.
    """
    settings = settings_of(app=app, kafka=kafka, dask=dask, http=http, history=history, engines=engines)
    if not settings.history_path:
        settings = msgspec.structs.replace(settings, history=default_history(settings.app, os.environ, sys.platform))
    logs.configure(level=settings.log_level, as_json=None if log == "auto" else log == "json")
    serving = Dashboard(settings, KafkaBroker(settings), ProjectorProcess(settings, os.environ, fresh=fresh))

    def tell() -> None:
        if json:
            known = {"http": f"http://{serving.address}", "history": settings.history_shown, "kafka": settings.kafka}
            put(json_text({**known, "pid": os.getpid()}))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.stop)
    await serving.run(tell)


def default_history(app: str, environment: Mapping[str, str], platform: str) -> str:
    """Where the history of an app lies when nobody says so: the user's data folder, as the system has it."""
    home = Path(environment.get("HOME") or Path.home())
    usual = home / "Library/Application Support" if platform == "darwin" else home / ".local/share"
    return str(Path(environment.get("XDG_DATA_HOME") or usual) / "kafka-dask-engine" / app / "history.db")
