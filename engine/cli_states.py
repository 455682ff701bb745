"""``engine states tail``: state changes as they happen."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from engine import logs
from engine.cli_changes import as_json, as_line
from engine.cli_console import CommandConsole
from engine.cli_flags import AppFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import put
from engine.kafka import KafkaBroker
from engine.states import State
from engine.subscriber import Subscription


async def tail(
    *,
    flow: Annotated[list[str] | None, Parameter(negative=(), help="Only these flows; may be given again.")] = None,
    run: Annotated[str | None, Parameter(help="Only this run, by its whole id.")] = None,
    state: Annotated[
        list[State] | None, Parameter(negative=(), help="Only these states, e.g. FAILED; may be given again.")
    ] = None,
    from_beginning: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Begin with the oldest change still there.")
    ] = False,
    group: Annotated[str | None, Parameter(help="Consumer group: go on where the group has stopped.")] = None,
    count: Annotated[int | None, Parameter(help="End after so many changes.")] = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show state changes as they happen, until Ctrl-C. With --json: the data of each change, a line each."""
    logs.configure()
    settings = settings_of(app=app, kafka=kafka)
    console = CommandConsole(soft_wrap=True)
    subscription = Subscription(
        KafkaBroker(settings),
        settings.states_topic,
        group=group,
        from_beginning=from_beginning,
        flows=flow or (),
        run_id=run,
        states=state or (),
        owned_broker=True,
    )
    shown = 0
    try:
        if count is not None and count <= 0:
            return
        async for change in subscription:
            if json:
                put(as_json(change))
            else:
                console.print(as_line(change))
            shown += 1
            if shown == count:
                return
    finally:
        await subscription.close()
