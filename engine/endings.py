"""Endings: how a run ends whose flow is through and whose tasks have ended: its result, a failure, another attempt; pure."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.cancellations import CANCELLED
from engine.executor import Report, RunEnd
from engine.planning import Outcome
from engine.retries import Retry, judge_named, next_wait_seconds
from engine.runs import FlowRun
from engine.states import Failure, State, StateChange, later, utc


class Ending(msgspec.Struct, frozen=True):
    """The run's next change."""

    state: State
    details: dict[str, Any]
    #: Of RETRYING: after how long the flow is gone through again.
    again_in_seconds: float | None = None


def ending(
    run: FlowRun, outcome: Outcome, failed: tuple[State, Failure] | None, result: Report | None, retry: Retry | None, now: float
) -> Ending:
    """How the run ends: ``outcome`` is the flow's, ``failed`` what of its tasks fails it, ``result`` the last call's."""
    if outcome.failure is not None:
        failed = outcome.state, outcome.failure
    if failed is None:
        return Ending(State.COMPLETED, _result(run, outcome, result))
    state, error = failed
    verdict = outcome.verdict or judge_named(retry, error.type)
    wait_seconds = next_wait_seconds(
        retry, run.attempt, is_final=verdict.is_final, retry_after_seconds=verdict.retry_after_seconds
    )
    if wait_seconds is None:
        return Ending(state, {"error": error})
    return Ending(State.RETRYING, {"error": error, "next_attempt_at": later(utc(now), wait_seconds)}, wait_seconds)


def end_of(change: StateChange, outcome: Outcome | None) -> RunEnd | None:
    """What the run's last change says to those who have its final future; None where its final call has said all."""
    if change.error is not None:
        return RunEnd(change.error, change.state is State.CRASHED)
    return None if outcome is None or outcome.call is None else RunEnd(result=outcome.call)


def cancelled(run: FlowRun, at: float, epoch: int) -> list[StateChange]:
    """The last changes of a run that somebody has cancelled: of all that is open, its own last."""
    changes = [
        run.advance_task(task_run_id.split("/")[1], task_run_id, State.CANCELLED, task.attempt, at, epoch, reason=CANCELLED)
        for task_run_id, task in run.tasks.items()
        if task.state is not None and not task.state.is_end
    ]
    changes.append(run.advance(State.CANCELLED, at, epoch, reason=run.cancelled))
    return changes


def _result(run: FlowRun, outcome: Outcome, report: Report | None) -> dict[str, Any]:
    encoded = outcome.result if outcome.result is not None or report is None else report.result
    if encoded is not None:
        return {"result": msgspec.Raw(encoded)}
    if report is None:
        return {}
    return {"result_ref": report.stored or f"dask:variable/run-{run.run_id}", "reason": report.kept}
