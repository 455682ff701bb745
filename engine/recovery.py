"""Recovery: what the log says of a run that another owner, or an earlier attempt of its flow, has begun; pure."""

from __future__ import annotations

from collections.abc import Iterator

from engine.planning import Feed
from engine.runs import FlowRun, TaskRun, index_of_task_run, logical
from engine.states import Failure, State

#: Ends of tasks that fail their run unless somebody deals with them.
BAD = frozenset({State.FAILED, State.CRASHED})


def heard(run: FlowRun) -> list[Feed]:
    """What an async flow has heard before, in order, so that it is taken up where it was."""
    feeds: list[Feed] = []
    for task_run_id, at in run.ended:
        task = run.tasks[task_run_id]
        if task.spawned_by is None and task.state is not None and _is_current(run, task_run_id, task):
            index = logical(index_of_task_run(task_run_id))
            if task.cause is None:
                feeds.append(Feed(index, at, task.state, task.result, task.error, length=task.length))
                continue
            state = run.state_of(task.cause)
            cause = logical(index_of_task_run(task.cause))
            feeds.append(Feed(index, at, state if state in BAD else State.FAILED, failure=task.error, cause=cause))
    return feeds


def failures(run: FlowRun) -> Iterator[tuple[str, State, Failure]]:
    """The calls that have failed in this attempt of the flow, in order: index, state and why."""
    for task_run_id, _ in run.ended:
        task = run.tasks[task_run_id]
        if task.state in BAD and task.error is not None and _is_current(run, task_run_id, task):
            yield logical(index_of_task_run(task_run_id)), task.state, task.error


def above_open_children(run: FlowRun) -> set[str]:
    """Indices of the tasks above open children: they have to be heard of again to go on with these."""
    above: set[str] = set()
    for task in run.tasks.values():
        if task.spawned_by is None or (task.state is not None and task.state.is_end):
            continue
        parent: str | None = task.spawned_by
        while parent is not None and (index := index_of_task_run(parent)) not in above:
            above.add(index)
            known = run.tasks.get(parent)
            parent = known.spawned_by if known is not None else None
    return above


def _is_current(run: FlowRun, task_run_id: str, task: TaskRun) -> bool:
    """Whether a task run counts in this attempt of the flow: what failed in an earlier one is made anew."""
    is_kept = task.state is State.COMPLETED or task_run_id.split("/")[1].startswith("engine.")
    return is_kept or task.spawned_by is not None or run.generation(task_run_id) == max(1, run.attempt)
