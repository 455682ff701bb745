"""Figures of a trial: what was survived and how long it took; a pure function over the histories, like the checker."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from itertools import islice, pairwise

import msgspec

from tests.chaos.decoding import Change, Topics
from tests.chaos.histories import Effect, Histories
from tests.chaos.violations import BAD_ENDS, ENDS, Violation


class Figures(msgspec.Struct):
    """What the report says."""

    #: Between the first change and the last.
    seconds: float
    survived: dict[str, int]
    events: int
    runs: int
    changes: int
    void_changes: int
    repeated_changes: int
    executions: int
    #: What a person has asked for, once each, and was answered; and runs that ended CANCELLED.
    asked: dict[str, int]
    cancelled: int
    lost: int
    doubled: int
    #: Finished tasks that ran again: with no death of a worker or the scheduler to explain it, and with one.
    rerun_by_engine_kills: int
    rerun_by_worker_or_scheduler: int
    #: Letters of runs that ended well after all, under the next owner: legal, and worth knowing how many.
    letters_taken_back: int
    #: Checkpoints, and committed ones that had no effect: whoever went on from them has read the log from its beginning.
    checkpoints: int
    void_checkpoints_committed: int
    #: Seconds from the death of an engine to the next change of a run that was open then and there: all, and those during
    #: which nothing else was broken.
    recoveries: list[float]
    undisturbed: list[float]
    violations: dict[str, int]


def total(several: list[Figures]) -> Figures:
    """The sum of several trials."""
    first, *others = [msgspec.structs.asdict(one) for one in several]
    for other in others:
        for name, value in other.items():
            first[name] = dict(Counter(first[name]) + Counter(value)) if isinstance(value, dict) else first[name] + value
    return Figures(**first)


def figures(histories: Histories, violations: list[Violation]) -> Figures:
    """The report of a trial."""
    topics = Topics(histories)
    kinds = Counter(one.kind for one in violations)
    faults = [fault for fault in histories.faults if fault.what in ("kill", "stop", "leave")]
    names = {"kill": "kills", "stop": "pauses", "leave": "clean stops"}
    waits = _recoveries(histories, topics)
    well = {change.run_id for change in topics.valid if not change.task_run_id and change.state in ENDS - BAD_ENDS}
    void = {place for place, checkpoint in topics.checkpoints.items() if checkpoint.is_void}
    committed = {
        (int(place.rpartition("/")[2]), offset)
        for seen in histories.committed
        for place, offset in seen.offsets.items()
        if place.startswith(f"{histories.states_topic}/")
    }
    answered = [one for one in histories.asked if one.is_acknowledged]
    times = [change.at for change in topics.valid]
    starts = [effect for effect in histories.effects if effect.what == "start"]
    distinct = {(change.run_id, change.epoch, change.seq) for change in topics.valid}
    return Figures(
        seconds=round(max(times) - min(times), 1) if times else 0.0,
        survived=dict(Counter(f"{fault.whom} {names[fault.what]}{' at a point' * bool(fault.point)}" for fault in faults)),
        events=len({(one.source, one.id) for one in histories.sent if one.is_acknowledged}),
        runs=len({change.run_id for change in topics.valid}),
        changes=len(distinct),
        void_changes=len(topics.void),
        repeated_changes=len(topics.valid) - len(distinct),
        executions=len(starts),
        asked=dict(Counter(what for what, _, _ in {(one.what, one.whom, one.request) for one in answered})),
        cancelled=len({one.run_id for one in topics.valid if not one.task_run_id and one.state == "CANCELLED"}),
        lost=kinds["lost"] + kinds["unfinished"],
        doubled=kinds["doubled"],
        rerun_by_engine_kills=kinds["rerun"],
        rerun_by_worker_or_scheduler=max(0, _repeated(histories) - kinds["rerun"]),
        letters_taken_back=len({one.run_id for one in topics.letters if one.run_id} & well),
        checkpoints=len(topics.checkpoints),
        void_checkpoints_committed=len(topics.checkpoints.keys() & committed & void),
        recoveries=[seconds for seconds, _ in waits],
        undisturbed=[seconds for seconds, is_undisturbed in waits if is_undisturbed],
        violations=dict(kinds),
    )


def _repeated(histories: Histories) -> int:
    """Finished executions that were made once more, with or without reason."""
    count = 0
    by_task: dict[str, list[Effect]] = {}
    for effect in histories.effects:
        by_task.setdefault(effect.task_run_id, []).append(effect)
    for effects in by_task.values():
        starts = [effect for effect in effects if effect.what == "start"]
        for first, second in pairwise(starts):
            count += any(one.what == "done" and one.pid == first.pid and first.at <= one.at <= second.at for one in effects)
    return count


def _recoveries(histories: Histories, topics: Topics) -> list[tuple[float, bool]]:
    """For each engine killed: how long the partitions it owned were without news, where a run was open there."""
    found: list[tuple[float, bool]] = []
    # A run that waits for an event has no news to tell.
    waiting = {change.run_id for change in topics.valid if change.task == "engine.wait_for_event"}
    opened = {one.run_id: one.at for one in topics.valid if one.is_scheduled and one.run_id not in waiting}
    changes: dict[int, list[Change]] = {}
    for change in sorted(topics.valid, key=lambda one: one.at):
        if not change.is_scheduled:
            changes.setdefault(change.partition, []).append(change)
    others = sorted(fault.at for fault in histories.faults if fault.what in ("kill", "stop", "leave", "join"))
    for fault in histories.faults:
        if fault.whom != "engine" or fault.what != "kill":
            continue
        for partition, epochs in topics.epochs.items():
            owner = next((owner for _, at, owner in reversed(epochs) if at <= fault.at), "")
            if f"/{fault.pid}/" not in owner:
                continue
            later = changes.get(partition, [])
            first = bisect_right(later, fault.at, key=lambda one: one.at)
            back_at = next((one.at for one in islice(later, first, None) if opened.get(one.run_id, fault.at) < fault.at), None)
            if back_at is not None:
                near = others[bisect_right(others, fault.at - 5.0) : bisect_left(others, back_at)]
                found.append((back_at - fault.at, near == [fault.at]))
    return found


def text(figures: Figures) -> str:
    """The report, for a person."""
    shown = msgspec.structs.asdict(figures)
    for name in ("recoveries", "undisturbed"):
        seconds = sorted(shown.pop(name))
        told = f"{len(seconds)}"
        if seconds:
            told += f", median {seconds[len(seconds) // 2]:.2f} s, slowest {seconds[-1]:.2f} s"
        shown[name if name == "recoveries" else "undisturbed recoveries"] = told
    for name, value in shown.items():
        if isinstance(value, dict):
            shown[name] = ", ".join(f"{key} {count}" for key, count in sorted(value.items())) or "none"
    return "\n".join(f"{name.replace('_', ' '):>30}  {value}" for name, value in shown.items())
