"""``engine runs cancel``: asks the owner of a run to end it, by a record on the state topic."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter

from engine import logs
from engine.broker import Outgoing
from engine.cancellations import CANCELLED, MAX_REASON, Cancellation, write_cancellation
from engine.cli_flags import AppFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put, say
from engine.command_errors import AlreadyEnded, NotFound
from engine.kafka import KafkaBroker
from engine.repeats import history_of
from engine.states import utc


async def cancel(
    run_id: Annotated[str, Parameter(help="The whole id of the run.")],
    *,
    reason: Annotated[str, Parameter(help="Stands in the states of the run.")] = CANCELLED,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Stop a run: its running tasks are stopped, nothing more of it begins, and all that is open of it ends CANCELLED."""
    logs.configure()
    settings = settings_of(app=app, kafka=kafka)
    broker = KafkaBroker(settings)
    sink = broker.sink()
    try:
        await sink.start()
        history = await history_of(settings, broker, run_id)
        if history.scheduled is None:
            raise NotFound(
                "run", run_id, f"Its changes may have expired, or it belongs to another app than {settings.app} (--app)."
            )
        if history.end is not None:
            raise AlreadyEnded(run_id, history.end)
        value, headers = write_cancellation(
            settings.app, Cancellation(run_id, utc(time.time()), reason[:MAX_REASON] or CANCELLED)
        )
        scheduled = history.scheduled
        key = (scheduled.key if scheduled.key is not None else run_id).encode()
        await sink.write([Outgoing(settings.states_topic, key, value, headers, history.partition)])
    finally:
        await sink.close()
        await broker.close()
    if json:
        put(json_text({"run_id": run_id, "cancelling": True}))
    else:
        put(run_id)
        say(f"its engine ends it; see it end: engine runs watch {run_id}")
