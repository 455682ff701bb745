"""``engine runs retry`` and ``rerun``: runs once more, each as a new run that says which it repeats; many, or from a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from engine.actions import Repeated
from engine.cli_actions import Choice, FlowsFlag, LimitFlag, SinceFlag, StatesFlag, YesFlag, acting, choice_of, confirm
from engine.cli_flags import AppFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_histories import history_of
from engine.cli_output import json_text, put, say, short
from engine.command_errors import UsageError
from engine.repeats import Kind
from engine.settings import Settings
from engine.states import State

RunId = Annotated[str | None, Parameter(help="The whole id of a run; without it, all that filters choose.")]
RequestFlag = Annotated[str | None, Parameter(help="Id of this request: the same one for the same run makes no second repeat.")]

#: What is retried where no state is named: what somebody cancelled was meant to end.
_RETRIED = (State.FAILED, State.CRASHED)
_NAMES_WIDTH = 200


async def retry(
    run_id: RunId = None,
    *,
    request_id: RequestFlag = None,
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
    """Run again what ended FAILED, CRASHED or CANCELLED, with the same parameters, as a new run; prints its id."""
    choice = choice_of(run_id, flow, state, since, limit)
    settings = settings_of(app=app, kafka=kafka, history=history)
    if run_id is None:
        if request_id is not None:
            raise UsageError("--request-id", "it is for one run", "Leave it out: repeats that are open are not made twice.")
        await _retry_all(settings, choice, yes=yes, json=json)
        return
    async with acting(settings) as actions:
        done = await actions.rerun(run_id, Kind.RETRY, request_id=request_id)
    _tell(done, None, json=json)


async def rerun(
    run_id: Annotated[str, Parameter(help="The whole id of the run.")],
    *,
    from_task: Annotated[
        str | None,
        Parameter(
            name="--from",
            help="Only this task, and what comes behind it, for certain: a name, or task/index. "
            "Results that others have stored (persist=True) are taken.",
        ),
    ] = None,
    request_id: RequestFlag = None,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Run again what has ended, however it did, with the same parameters, as a new run; prints its id."""
    async with acting(settings_of(app=app, kafka=kafka, history=history)) as actions:
        done = await actions.rerun(run_id, Kind.RERUN, from_task=from_task, request_id=request_id)
    _tell(done, from_task, json=json)


async def _retry_all(settings: Settings, choice: Choice, *, yes: bool, json: bool) -> None:
    async with history_of(settings) as found:
        rows = [row for row in choice.rows(found, _RETRIED) if State(row.state).is_end and row.state != State.COMPLETED]
        repeats = {row.run_id: {one.run_id: State(one.state).is_end for one in found.repeats(row.run_id)} for row in rows}
    if not confirm("retried", rows, yes=yes):
        say("nothing was retried" if rows else "no such runs")
        return
    async with acting(settings) as actions:
        done = await actions.repeat_all([(row, repeats[row.run_id]) for row in rows], Kind.RETRY)
    for one in done:
        put(json_text({"run_id": one.run_id, "repeats": one.repeats}) if json else one.run_id)
    if not json:
        lost = f"; {len(rows) - len(done)} could not be: their records have expired" if len(done) < len(rows) else ""
        say(f"retried: {len(done):,}{lost}; see them end: engine states tail")


def _tell(done: Repeated, from_task: str | None, *, json: bool) -> None:
    if json:
        more = {} if from_task is None else {"taken": done.taken, "again": done.again}
        put(json_text({"run_id": done.run_id, "repeats": done.repeats, **more}))
        return
    put(done.run_id)
    if from_task is not None:
        say(f"taken from the result store: {_names(done.taken)}")
        say(f"run again: {_names(done.again)}")
    say(f"repeats {done.repeats}; follow it: engine runs watch {done.run_id}")


def _names(names: Sequence[str]) -> str:
    return short(", ".join(names), _NAMES_WIDTH) if names else "nothing"
