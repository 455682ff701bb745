"""What must be true of committed offsets, of checkpoints and of what engines know; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.checkpoints import Checkpoint, Held
from tests.chaos.decoding import Change, Letter, Topics
from tests.chaos.histories import Histories, Sent
from tests.chaos.paths import Path, Paths
from tests.chaos.violations import Violation


def offsets(histories: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """A committed offset never passes an event, or a run, that is not safe on the topic by then."""
    scheduled: dict[tuple[str, str, str], list[Change]] = defaultdict(list)
    for path in paths.values():
        if path.scheduled.event is not None:
            scheduled[path.scheduled.event.identity].append(path.scheduled)
    letters: dict[tuple[str, str], list[Letter]] = defaultdict(list)
    for letter in topics.letters:
        if not letter.run_id:
            letters[letter.origin, letter.replay].append(letter)
    sent: dict[str, list[Sent]] = defaultdict(list)
    for one in histories.sent:
        if one.is_acknowledged:
            sent[f"{one.topic}/{one.partition}"].append(one)
    for ones in sent.values():
        ones.sort(key=lambda one: -one.offset)
    for seen in histories.committed:
        for place, offset in seen.offsets.items():
            # What was safe once stays so: each event and run is looked at when the offset first passes it.
            left = sent[place]
            while left and left[-1].offset < offset:
                one = left.pop()
                told = letters[one.origin or one.place, one.replay]
                is_safe = any(letter.offset < seen.letter_ends.get(letter.partition, 0) for letter in told)
                made = scheduled.get((one.source, one.id, one.replay), [])
                flows = {change.flow for change in made if change.offset < seen.state_ends.get(change.partition, 0)}
                if not is_safe and (one.is_poison or not flows >= set(one.flows)):
                    yield Violation("offset", one.id, f"{place} was committed at {offset}, and {one.place} was nothing yet")
            if place.startswith(f"{histories.states_topic}/"):
                yield from _passed_runs(place, offset, seen.state_ends, topics)


def _passed_runs(place: str, offset: int, ends: dict[int, int], topics: Topics) -> Iterator[Violation]:
    """Nothing but a checkpoint is committed: what lies before it, it holds (see the next rule).

    One without effect may be: it was written just before its writer could know of the next owner. Whoever goes on from it
    reads the record of that owner on the way from ``from_offset`` to the checkpoint, and knows; so it must lie there.
    """
    number = int(place.rpartition("/")[2])
    checkpoint = topics.checkpoints.get((number, offset))
    if checkpoint is None or offset >= ends.get(number, 0):
        yield Violation("offset", "", f"{place} was committed at {offset}, where there was no checkpoint")
    elif checkpoint.voided_by is not None and checkpoint.voided_by < checkpoint.from_offset:
        yield Violation("offset", "", f"{place} was committed at {offset}, a checkpoint without effect, and nobody finds out")


def checkpoints(_: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """Who goes on from a checkpoint knows what the log says up to it: no run more, no run less, none ahead or behind."""
    by_partition: dict[int, Paths] = defaultdict(dict)
    for run_id, path in paths.items():
        by_partition[path.scheduled.partition][run_id] = path
    for checkpoint in topics.checkpoints.values():
        if checkpoint.is_void:
            continue  # whoever goes on from it finds out, and reads the log itself
        here = by_partition[checkpoint.partition]
        for run_id, path in here.items():
            first = path.scheduled
            if first.offset >= checkpoint.from_offset:
                pass  # it is read again, and all that comes after it
            elif run_id not in checkpoint.run_ids and checkpoint.leaves(first.flow, first.key, first.offset):
                yield from _left(run_id, path, checkpoint)
            else:
                yield from _known(run_id, path, checkpoint)
            if (held := checkpoint.runs.get(run_id)) is not None:
                yield from _held(run_id, path, checkpoint, held)
        for run_id in checkpoint.runs.keys() - here.keys():
            yield Violation("checkpoint", run_id, f"{checkpoint.partition}/{checkpoint.offset} holds it; it never was")


def _known(run_id: str, path: Path, checkpoint: Checkpoint) -> Iterator[Violation]:
    """What is not read again must be in it."""
    place = f"{checkpoint.partition}/{checkpoint.offset}"
    if run_id not in checkpoint.run_ids:
        yield Violation("checkpoint", run_id, f"{place} does not know the id of {path.scheduled.offset}")
    has_ended = path.ended is not None and path.ended.offset < checkpoint.offset
    if run_id not in checkpoint.runs and not has_ended:
        yield Violation("checkpoint", run_id, f"{place} does not hold it, and it was open")


def _left(run_id: str, path: Path, checkpoint: Checkpoint) -> Iterator[Violation]:
    """What was left on the log is read again; what an earlier owner told of it must be known by then."""
    told = checkpoint.told.get(run_id, frozenset())
    if path.ended is not None and path.ended.offset < checkpoint.from_offset:
        is_known = run_id in checkpoint.told and not told
    else:
        is_known = told >= {one.seq for one in path.said.values() if one.seq > 0 and one.offset < checkpoint.from_offset}
    if not is_known:
        place = f"{checkpoint.partition}/{checkpoint.offset}"
        yield Violation("checkpoint", run_id, f"{place} leaves it on the log and knows of it {sorted(told)}; more was told")


def _held(run_id: str, path: Path, checkpoint: Checkpoint, held: Held) -> Iterator[Violation]:
    """What it says of a run must be what the topic says."""
    place = f"{checkpoint.partition}/{checkpoint.offset}"
    if unread := [one for one in path.said.values() if one.offset < checkpoint.from_offset and one.seq > held.seq]:
        yield Violation(
            "checkpoint", run_id, f"{place} holds it at seq {held.seq}; offset {unread[0].offset} is not read again"
        )
    if ahead := [one for one in path.said.values() if one.offset > checkpoint.offset and one.seq <= held.seq]:
        yield Violation("checkpoint", run_id, f"{place} holds it at seq {held.seq}; offset {ahead[0].offset} comes after it")
    states = path.as_of(held.seq)
    if (told := {"": held.state, **held.tasks}) != states:
        different = {name or "the run": (told.get(name), states.get(name)) for name in told.keys() | states.keys()}
        wrong = {name: pair for name, pair in different.items() if pair[0] != pair[1]}
        yield Violation("checkpoint", run_id, f"{place} holds it at seq {held.seq} and says other than the topic: {wrong}")


def ledgers(histories: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """What an engine knows is what the topic says."""
    for snapshot in histories.snapshots:
        here = [path for path in paths.values() if path.scheduled.partition == snapshot.partition]
        told = {path.scheduled.run_id: at for path in here if (at := path.at(snapshot.next_offset)) is not None}
        for run_id in told.keys() | snapshot.runs.keys():
            mine, theirs = told.get(run_id), snapshot.runs.get(run_id)
            if mine != theirs:
                text = f"partition {snapshot.partition}: the ledger says {theirs}, the topic {mine}"
                yield Violation("ledger", run_id, text)
