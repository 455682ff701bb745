"""``engine demo``: everything once, on real data, then gone again."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from engine import logs
from engine.broker import Record, Source
from engine.cli_dev import engine_command
from engine.cli_flags import AppFlag, DaskFlag, KafkaFlag, settings_of
from engine.cli_output import say
from engine.command_errors import HandlerError, UsageError
from engine.demo import run_demo
from engine.devstack import DevStack
from engine.handler_paths import import_paths
from engine.kafka import KafkaBroker
from engine.loader import load
from engine.nycflights import DEFAULT_FLIGHTS, TOPIC, demo_events
from engine.processes import ChildProcess
from engine.settings import Settings
from engine.stack_options import StackOptions
from engine.subscriber import Subscription

#: In the project's checkout, beside ``engine``.
_HANDLERS = ("handlers.flights",)
_POLL_SECONDS = 0.2
_POLL_RECORDS = 500
_LOG_LINES = 20
_INTERRUPTED = 130


async def demo(
    *,
    flights: Annotated[int, Parameter(help="How many departures; the default is a snowy day of 2013.")] = DEFAULT_FLIGHTS,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    dask: DaskFlag = None,
) -> int:
    """Send a day of departures from New York as events and watch flows turn them into delay reports; then stop everything.

    Starts a Kafka and Dask workers of its own, unless given some. Exits 0 when every event came to its expected end.
    """
    logs.configure()
    if flights < 1:
        raise UsageError("--flights", f"{flights} is not a number of flights", "Give at least 1.")
    # A name of its own each time: the same events sent twice to one app make no second run.
    name = app or f"demo-{uuid.uuid4().hex[:8]}"
    settings = settings_of(app=name, kafka=kafka or "127.0.0.1:0", dask=dask or "tcp://127.0.0.1:0", handlers=_HANDLERS)
    if find_spec("handlers") is None:
        raise HandlerError(
            _HANDLERS[0],
            "the demo's flows are not part of the installed package",
            "Clone the project and run in it: pip install -e '.[dev]' && engine demo.",
        )
    load(settings.handlers)
    if kafka is not None and app is None:
        await _skip_earlier_events(settings)
    with tempfile.TemporaryDirectory(prefix="engine-demo-", ignore_cleanup_errors=True) as folder:
        options = StackOptions(
            app=settings.app,
            directory=Path(folder),
            kafka=kafka,
            dask=dask,
            engine=engine_command(settings),
            http="127.0.0.1:0",
            import_paths=import_paths(settings.handlers),
            # Else the scheduler leaves a folder behind in the system's own place for temporary files.
            environment={"DASK_TEMPORARY_DIRECTORY": folder},
        )
        async with DevStack(options, say) as stack:
            playing = asyncio.create_task(_play(stack, settings, flights), name="demo")
            stopping = asyncio.create_task(stack.wait(), name="demo-stop")
            await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
                await stopping  # raises what the stack could not go on with
                return _INTERRUPTED
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
            code = playing.result()
            if code != 0:
                _show_log(stack)
            return code


async def _play(stack: DevStack, settings: Settings, flights: int) -> int:
    broker = KafkaBroker(settings_of(app=settings.app, kafka=stack.kafka, dask=stack.dask))
    changes = Subscription(broker, settings.states_topic)
    dead_letters = broker.source([settings.dead_letters_topic], group=None, from_latest=True)
    sink = broker.sink()
    try:
        # Both readers begin at the end, so they must be there before anything is sent.
        await changes.start()
        await dead_letters.start()
        await sink.start()
        return await run_demo(
            send=sink.write,
            changes=changes,
            dead_letters=_records(dead_letters),
            events=demo_events(flights),
            console=Console(),
        )
    finally:
        await sink.close()
        await dead_letters.close()
        await changes.close()


async def _skip_earlier_events(settings: Settings) -> None:
    """An app that is new to this Kafka would begin with the events of earlier demos: its intake begins at their end."""
    broker = KafkaBroker(settings)
    if await broker.partitions(TOPIC) is None:
        return
    source = broker.source([TOPIC], group=settings.intake_group, from_latest=True)
    try:
        await source.start()
        await source.commit(await source.end_offsets(sorted(source.assignment)))
    finally:
        await source.close()


async def _records(source: Source) -> AsyncIterator[Record]:
    while True:
        for record in await source.poll(timeout_seconds=_POLL_SECONDS, max_records=_POLL_RECORDS):
            yield record


def _show_log(stack: DevStack) -> None:
    log = ChildProcess("engine", (), log_file=stack.directory / "logs" / "engine.log", environment={})
    say(f"the engine's log ends with:\n{log.tail(_LOG_LINES)}")
