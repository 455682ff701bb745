"""``engine run``: the engine alone, until a signal stops it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from typing import Annotated, Literal

from cyclopts import Parameter

from engine import logs
from engine.app import App
from engine.cli_flags import AppFlag, DaskFlag, HandlersFlag, HttpFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put
from engine.cluster import Cluster
from engine.errors import DaskUnavailable, KafkaUnavailable
from engine.kafka import KafkaBroker
from engine.loader import load

#: One attempt to connect to Dask, or one answer of its scheduler, takes at most so long.
_DASK_SECONDS = 10.0
#: Garbage of large objects is collected so often.
_COLLECT_SECONDS = 3.0
#: As a shell reports a program that SIGTERM ended, for the second signal, which waits for nothing.
_KILLED = 128 + signal.SIGTERM


async def run(
    handlers: HandlersFlag = None,
    *,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    dask: DaskFlag = None,
    http: HttpFlag = None,
    log: Annotated[
        Literal["auto", "json", "console"], Parameter(help="Form of the log on standard error; auto looks for a terminal.")
    ] = "auto",
    json: JsonFlag = False,
) -> None:
    """Run the engine until SIGTERM or Ctrl-C, which stop it in order; a second one ends it at once.

    With --json: one line {"kafka", "dask", "http", "pid"} on standard output when it is ready.
    """
    settings = settings_of(app=app, kafka=kafka, dask=dask, handlers=handlers, http=http)
    logs.configure(level=settings.log_level, as_json=None if log == "auto" else log == "json")
    # Two attempts at least fit into the time for connecting, so that the first can say what is waited for.
    attempt_seconds = min(_DASK_SECONDS, settings.connect_timeout_seconds / 2)
    flows = load(settings.handlers)
    modules = sorted({flow.module for flow in flows.values()})
    cluster = Cluster(
        settings.app,
        settings.dask,
        modules=modules,
        connect_timeout_seconds=attempt_seconds,
        results=settings.results,
        max_result_bytes=settings.max_result_bytes,
        max_run_tasks=settings.max_run_tasks,
    )
    engine = App(settings, flows, KafkaBroker(settings), cluster)
    is_stopping = False

    def stop() -> None:
        nonlocal is_stopping
        if is_stopping:
            os._exit(_KILLED)  # Nothing is lost: what was not told yet is on Kafka, for the next owner.
        is_stopping = True
        engine.stop()

    def tell() -> None:
        if json:
            address = engine.http
            http_address = None if address is None else f"http://{address}"
            put(json_text({"kafka": settings.kafka, "dask": settings.dask, "http": http_address, "pid": os.getpid()}))

    # What is loaded now stays: the collector need not look at it again, nor look as often as its defaults have it.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    loop = asyncio.get_running_loop()
    _collect(loop)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await engine.run(tell)
    except (KafkaUnavailable, DaskUnavailable):
        if not is_stopping:
            raise
        # It was told to stop while it waited for them: then it makes no difference that they are not there.


def _collect(loop: asyncio.AbstractEventLoop) -> None:
    """Collect all garbage now and again, as often as costs a hundredth of the time, and at most every few seconds.

    What Kafka's client has read ahead and had to drop (after a pause, a seek) is in a reference cycle, megabytes in a few
    objects. The collector counts objects, and would not look before gigabytes of it were there.
    """
    began = loop.time()
    gc.collect()
    loop.call_later(max(_COLLECT_SECONDS, 100 * (loop.time() - began)), _collect, loop)
