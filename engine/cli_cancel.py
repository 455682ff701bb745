"""``engine runs cancel``: asks the owners of runs to end them, by records on the state topic."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from engine.cancellations import CANCELLED
from engine.cli_actions import FlowsFlag, LimitFlag, SinceFlag, StatesFlag, YesFlag, acting, choice_of, confirm
from engine.cli_flags import AppFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_histories import history_of
from engine.cli_output import json_text, put, say
from engine.states import State


async def cancel(
    run_id: Annotated[
        str | None, Parameter(help="The whole id of a run; without it, all open ones that filters choose.")
    ] = None,
    *,
    reason: Annotated[str, Parameter(help="Stands in the states of the run.")] = CANCELLED,
    flow: FlowsFlag = None,
    state: StatesFlag = None,
    since: SinceFlag = None,
    limit: LimitFlag = None,
    yes: YesFlag = False,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Stop a run: its running tasks are stopped, nothing more of it begins, and all that is open of it ends CANCELLED."""
    choice = choice_of(run_id, flow, state, since, limit)
    settings = settings_of(app=app, kafka=kafka, history=history)
    if run_id is not None:
        async with acting(settings) as actions:
            await actions.cancel(run_id, reason)
        run_ids = [run_id]
    else:
        async with history_of(settings) as found:
            rows = choice.rows(found, [state for state in State if not state.is_end])
        rows = [row for row in rows if not State(row.state).is_end]
        if not confirm("cancelled", rows, yes=yes):
            say("nothing was cancelled" if rows else "no such open runs")
            return
        async with acting(settings) as actions:
            await actions.cancel_all(rows, reason)
        run_ids = [row.run_id for row in rows]
    for one in run_ids:
        put(json_text({"run_id": one, "cancelling": True}) if json else one)
    if not json and len(run_ids) == 1:
        say(f"its engine ends it; see it end: engine runs watch {run_ids[0]}")
    elif not json:
        say(f"{len(run_ids):,} runs; see them end: engine states tail")
