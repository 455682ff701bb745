"""What must be true of the executions of tasks, as the tasks themselves have noted them; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.decoding import Topics
from tests.chaos.histories import Effect, Fault, Histories
from tests.chaos.paths import Paths
from tests.chaos.violations import Violation

DEATHS = frozenset({"kill", "exit", "restart"})


def effects(histories: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """What has run stays run: no attempt is made twice but where a worker or the scheduler died, and no end is made up."""
    by_task: dict[str, list[Effect]] = defaultdict(list)
    for effect in histories.effects:
        by_task[effect.task_run_id].append(effect)
    workers: dict[str, set[int]] = defaultdict(set)
    for effect in histories.effects:
        workers[effect.run_id].add(effect.pid)
    deaths = [fault for fault in histories.faults if fault.what in DEATHS and fault.whom in ("worker", "scheduler")]
    for task_run_id, its in by_task.items():
        run_id = its[0].run_id
        if run_id not in paths:
            yield Violation("phantom", run_id, f"{task_run_id} ran, and its run is not on the topic")
        yield from _again(task_run_id, its, deaths, workers[run_id])
    done = {effect.task_run_id for effect in histories.effects if effect.what == "done"}
    taken = {f"{one.made}/{call}" for one in histories.asked for call in one.taken}
    for change in topics.valid:
        is_users = change.task_run_id and not change.task.startswith("engine.")
        if is_users and change.state == "COMPLETED" and change.task_run_id not in done | taken:
            yield Violation("phantom", change.run_id, f"{change.task_run_id} is COMPLETED, and never returned")


def _again(task_run_id: str, its: list[Effect], deaths: list[Fault], workers: set[int]) -> Iterator[Violation]:
    starts = [effect for effect in its if effect.what == "start"]
    for number, second in enumerate(starts[1:], 1):
        for first in starts[:number]:
            ends = [one for one in its if one.what != "start" and (one.pid, one.attempt) == (first.pid, first.attempt)]
            end = next((one.what for one in ends if first.at <= one.at <= second.at), "")
            if end == "done" or second.attempt <= first.attempt:
                if is_excused(first, second, deaths, workers):
                    continue
                what = {"done": "had returned", "raised": "had failed"}.get(end, "was running")
                text = f"{task_run_id} attempt {second.attempt} began at {second.at:.3f} on {second.pid}; "
                text += f"attempt {first.attempt}, begun at {first.at:.3f} on {first.pid}, {what}"
                yield Violation("rerun" if end else "parallel", first.run_id, text)


def is_excused(first: Effect, second: Effect, deaths: list[Fault], workers: set[int]) -> bool:
    """Whether the scheduler died between the two, or one of the ``workers`` that have had tasks of the run.

    Not only the one that had this execution: a result that another task has taken may be let go, and is made once more
    where that other task's result is lost.
    """
    return any(first.at <= death.at <= second.at and (death.whom == "scheduler" or death.pid in workers) for death in deaths)
