"""``engine runs retry`` and ``rerun``: a run once more, from its beginning, as a new run that says which it repeats."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from cyclopts import Parameter

from engine import logs
from engine.cli_flags import AppFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put, say
from engine.events import Position, valid_traceparent
from engine.kafka import KafkaBroker
from engine.repeats import Kind, history_of, repeat
from engine.telemetry import Tracer, child_of, is_sampled
from engine.translator import write_scheduled

RunId = Annotated[str, Parameter(help="The whole id of the run.")]
RequestFlag = Annotated[str | None, Parameter(help="Id of this request: the same one for the same run makes no second repeat.")]


async def retry(
    run_id: RunId, *, request_id: RequestFlag = None, app: AppFlag = None, kafka: KafkaFlag = None, json: JsonFlag = False
) -> None:
    """Run again what ended FAILED, CRASHED or CANCELLED, with the same parameters, as a new run; prints its id."""
    await _repeat(run_id, Kind.RETRY, request_id, app, kafka, json)


async def rerun(
    run_id: RunId, *, request_id: RequestFlag = None, app: AppFlag = None, kafka: KafkaFlag = None, json: JsonFlag = False
) -> None:
    """Run again what has ended, however it did, with the same parameters, as a new run; prints its id."""
    await _repeat(run_id, Kind.RERUN, request_id, app, kafka, json)


async def _repeat(run_id: str, kind: Kind, request_id: str | None, app: str | None, kafka: str | None, json: bool) -> None:
    logs.configure()
    settings = settings_of(app=app, kafka=kafka)
    broker = KafkaBroker(settings)
    tracer = Tracer.from_environment(f"engine-{settings.app}")
    sink = broker.sink()
    try:
        await sink.start()
        history = await history_of(settings, broker, run_id)
        started_at = time.time()
        change = repeat(run_id, history, kind, request_id, started_at)
        old = valid_traceparent(history.scheduled.traceparent if history.scheduled is not None else None)
        # A trace of its own with a link to the old one; sampled where that was, so that the engine's spans are there even
        # where this command has no endpoint to send its own to.
        context = tracer.begin(None, Position(settings.states_topic, 0, 0))
        if is_sampled(old):
            context = f"{context[:-2]}01"
        send = child_of(context, change.run_id, 0, 0, "send")
        await sink.write([write_scheduled(settings, change, send)])
        tracer.send(send, None, change, settings.states_topic, started_at, time.time(), old)
    finally:
        await sink.close()
        await broker.close()
        await asyncio.to_thread(tracer.close)
    if json:
        put(json_text({"run_id": change.run_id, "repeats": run_id}))
    else:
        put(change.run_id)
        say(f"repeats {run_id}; follow it: engine runs watch {change.run_id}")
