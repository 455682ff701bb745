"""What must become of events: one run of each flow that an event is for, or a dead letter; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.decoding import Topics
from tests.chaos.histories import Histories, Sent
from tests.chaos.paths import Path, Paths
from tests.chaos.violations import Violation


def acceptance(histories: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """Every acknowledged event became one run of each flow that it is for, or a dead letter, and nothing else did."""
    runs: dict[tuple[tuple[str, str, str], str], list[Path]] = defaultdict(list)
    for path in paths.values():
        event = path.scheduled.event
        if path.is_repeat(paths):
            continue  # somebody has asked for it: see rules_requests
        runs[event.identity if event else ("", "", ""), path.scheduled.flow].append(path)
    sent: dict[tuple[str, str, str], list[Sent]] = defaultdict(list)
    for one in histories.sent:
        sent[one.source, one.id, one.replay].append(one)
    letters: dict[tuple[str, str], list[str]] = defaultdict(list)
    for letter in topics.letters:
        if not letter.run_id:
            letters[letter.origin, letter.replay].append(letter.flow)
    for identity, sendings in sent.items():
        acknowledged = [one for one in sendings if one.is_acknowledged]
        for flow in {flow for one in sendings for flow in one.flows}:
            made = runs.pop((identity, flow), [])
            if len(made) > 1:
                yield Violation("doubled", identity[1], f"{len(made)} runs of {flow}: {[one.scheduled.run_id for one in made]}")
            elif acknowledged and not made and not any(letters.get(_refusal(one)) for one in acknowledged):
                yield Violation("lost", identity[1], f"no run of {flow} for {acknowledged[0].place}")
            yield from _strangers(made, sendings)
        for one in acknowledged:
            told = letters.get(_refusal(one), [])
            if one.is_poison and not told:
                yield Violation("lost", one.id, f"no dead letter for {one.place}")
            elif told and not one.is_poison:
                yield Violation("refused", one.id, f"{one.place} is a dead letter")
    for refusal in {_refusal(one) for one in histories.sent if one.is_acknowledged}:
        letters.pop(refusal, None)
    for (identity, flow), made in runs.items():
        yield Violation("invented", made[0].scheduled.run_id, f"nobody has sent {identity} for {flow}")
    unknown = {one.topic for one in histories.sent if one.is_poison and not one.is_acknowledged}
    for origin, _ in letters:
        if origin.partition("/")[0] not in unknown:
            yield Violation("invented", "", f"a dead letter for {origin}, which nobody has sent")


def _refusal(sent: Sent) -> tuple[str, str]:
    return sent.origin or sent.place, sent.replay


def _strangers(made: list[Path], sendings: list[Sent]) -> Iterator[Violation]:
    """Runs that say they come from somewhere else, or that are in another trace."""
    if not all(one.is_acknowledged for one in sendings):
        return
    places = {one.place for one in sendings}
    traces = {one.trace_id for one in sendings}
    for path in made:
        if path.place not in places:
            text = f"says it comes from {path.place}; sent were {sorted(places)}"
            yield Violation("invented", path.scheduled.run_id, text)
        elif "" not in traces and not path.traces <= traces:
            yield Violation("trace", path.scheduled.run_id, f"is in {path.traces}, its event in {traces}")
