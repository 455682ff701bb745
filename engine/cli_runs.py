"""``engine runs watch``: one run from its beginning to its end; exits with its fate."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import Parameter

from engine import logs
from engine.cli_changes import as_json, as_line
from engine.cli_console import CommandConsole
from engine.cli_flags import AppFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import put
from engine.command_errors import NotFound, RunTimeout
from engine.kafka import KafkaBroker
from engine.runs import is_run_id
from engine.states import State, StateChange
from engine.subscriber import Subscription


async def watch(
    run_id: Annotated[str, Parameter(help="The whole id of the run.")],
    *,
    timeout_seconds: Annotated[float | None, Parameter(help="Give up, with exit code 1, after so long.")] = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> int:
    """Print the changes of one run until it has ended. Exits 0 when it COMPLETED, 1 otherwise, 3 when there is no such run."""
    logs.configure()
    settings = settings_of(app=app, kafka=kafka)
    console = CommandConsole(soft_wrap=True)
    seen: list[StateChange] = []

    def expect_seen() -> None:
        if not seen:
            whole = "Its changes may have expired" if is_run_id(run_id) else "Its whole id is needed: `engine runs ls` has it"
            remedy = f"{whole}, or it belongs to another app than {settings.app} (--app)."
            raise NotFound("run", run_id, remedy)

    subscription = Subscription(
        KafkaBroker(settings),
        settings.states_topic,
        from_beginning=True,
        run_id=run_id,
        on_caught_up=expect_seen,
        owned_broker=True,
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            async for change in subscription:
                seen.append(change)
                if json:
                    put(as_json(change))
                else:
                    console.print(as_line(change))
                if change.is_flow_run and change.state.is_end:
                    return 0 if change.state is State.COMPLETED else 1
    except TimeoutError as error:
        raise RunTimeout(run_id, timeout_seconds or 0.0) from error
    finally:
        await subscription.close()
    return 1
