"""What must become of requests: cancels, retries and reruns of runs, and replays of dead letters; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.decoding import Change, Topics
from tests.chaos.histories import Asked, Histories
from tests.chaos.paths import Path, Paths
from tests.chaos.violations import Violation


def cancellations(histories: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """A run that is to end ends CANCELLED, unless it had ended before its owner could know; and nobody else's run does.

    Whoever owns the partition reads it in order. So he knows of a cancellation when he has become the owner behind it, or has
    begun a run with a key that was scheduled behind it. (Others he may begin before he reads them back.)
    """
    asked = {one.whom for one in histories.asked if one.what == "cancel"}
    told: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for record in topics.cancellations:
        told[record.run_id].append((record.partition, record.offset))
    for run_id in told.keys() - asked:
        yield Violation("invented", run_id, f"a cancellation at {told[run_id][0]} that nobody asked for")
    for one in histories.asked:
        if one.what == "cancel" and one.is_acknowledged and one.whom not in told:
            yield Violation("lost", one.whom, "its cancellation is not on the topic")
    begun = _begun_in_order(topics, paths)
    for run_id, path in paths.items():
        first, ended = path.scheduled, path.ended
        mine = [offset for partition, offset in told[run_id] if partition == first.partition and offset > first.offset]
        if ended is None:
            continue
        if ended.state == "CANCELLED":
            if not any(offset < ended.offset for offset in mine):
                yield Violation("unasked", run_id, f"is CANCELLED at {ended.partition}/{ended.offset}, and nobody asked for it")
        elif mine and _is_known(min(mine), ended, begun, is_held=first.flow in histories.lettered):
            place = f"{ended.partition}/{ended.offset}"
            yield Violation(
                "uncancelled", run_id, f"is {ended.state} at {place}; its owner knew of the cancellation at {min(mine)}"
            )


def repeats(histories: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """Each request for a retry or a rerun made one new run that says what it repeats, and no other run says so."""
    requests: dict[tuple[str, str], list[Asked]] = defaultdict(list)
    for one in histories.asked:
        if one.what in ("retry", "rerun"):
            requests[one.whom, one.request].append(one)
    made: dict[str, set[str]] = defaultdict(set)
    unanswered: dict[str, int] = defaultdict(int)
    for (whom, request), tries in requests.items():
        answered = {one.made for one in tries if one.is_acknowledged}
        made[whom] |= answered
        unanswered[whom] += not answered
        runs = [run_id for run_id in answered if run_id in paths]
        if len(runs) > 1:
            yield Violation("doubled", whom, f"{request} made {sorted(runs)}")
        for run_id in answered:
            if run_id not in paths:
                yield Violation("lost", run_id, f"{request} was to make it, a repeat of {whom}")
            elif paths[run_id].scheduled.repeats != whom:
                yield Violation("invented", run_id, f"repeats {paths[run_id].scheduled.repeats}; {request} was for {whom}")
    strangers: dict[str, list[str]] = defaultdict(list)
    for run_id, path in paths.items():
        if path.is_repeat(paths):
            yield from _repeated(run_id, path, paths.get(path.scheduled.repeats))
            if run_id not in made[path.scheduled.repeats]:
                strangers[path.scheduled.repeats].append(run_id)
    for whom, runs in strangers.items():
        # The answer to a request that was never answered is one of them.
        if len(runs) > unanswered[whom]:
            kind = "doubled" if made[whom] else "invented"
            yield Violation(kind, whom, f"{runs} repeat it, and nobody asked for {len(runs) - unanswered[whom]} of them")
    yield from _taken(histories)


def replays(histories: Histories, topics: Topics, _: Paths) -> Iterator[Violation]:
    """A replay that was answered is on its topic, and its letter is marked; what becomes of it is that of any event."""
    marks = {(mark.letter, mark.replay) for mark in topics.marks}
    for one in histories.asked:
        if one.what == "replay" and one.is_acknowledged:
            if one.request not in topics.replays:
                yield Violation("lost", one.request, f"the replay of letter {one.whom} is not on the topic")
            if (one.whom, one.request) not in marks:
                yield Violation("lost", one.request, f"letter {one.whom} is not marked as replayed")


def _begun_in_order(topics: Topics, paths: Paths) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """By partition and epoch: where each run with a key was scheduled, and where it was told that it had begun."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for change in topics.valid:
        if change.state == "RUNNING" and not change.task_run_id:
            path = paths.get(change.run_id)
            if path is not None and path.scheduled.key:
                found[change.partition, change.epoch].append((path.scheduled.offset, change.offset))
    return found


def _is_known(asked: int, ended: Change, begun: dict[tuple[int, int], list[tuple[int, int]]], *, is_held: bool) -> bool:
    """Whether the owner knew of what was asked at that offset before he made this end.

    One that ``is_held`` waits for its letter: it was made before what stands before it.
    """
    if ended.epoch > asked:
        return True
    later = begun[ended.partition, ended.epoch]
    return not is_held and any(scheduled > asked and offset < ended.offset for scheduled, offset in later)


def _repeated(run_id: str, path: Path, first: Path | None) -> Iterator[Violation]:
    """What a run repeats has ended before, is of the same flow and came from the same event."""
    told = path.scheduled
    if first is None or first.ended is None or first.scheduled.flow != told.flow or first.scheduled.event != told.event:
        yield Violation("invented", run_id, f"repeats {told.repeats}, which is not there, not its like, or has not ended")
    elif first.ended.partition == told.partition and first.ended.offset > told.offset:
        yield Violation("invented", run_id, f"at {told.partition}/{told.offset} repeats {told.repeats}, which ended later")


def _taken(histories: Histories) -> Iterator[Violation]:
    """What is taken from the result store does not run."""
    ran = {effect.task_run_id for effect in histories.effects}
    for task_run_id in sorted({f"{one.made}/{call}" for one in histories.asked for call in one.taken} & ran):
        yield Violation("rerun", task_run_id.partition("/")[0], f"{task_run_id} was to take what is stored, and ran")
