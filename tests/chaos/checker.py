"""The checker: a pure function over the histories of a trial; it answers what went wrong, and never raises.

The rules are DESIGN.md's, written down here once more: nothing of the engine is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.chaos.decoding import Topics
from tests.chaos.histories import Histories
from tests.chaos.paths import Paths, paths_of
from tests.chaos.rules_effects import effects
from tests.chaos.rules_events import acceptance
from tests.chaos.rules_letters import letters
from tests.chaos.rules_offsets import checkpoints, ledgers, offsets
from tests.chaos.rules_requests import cancellations, repeats, replays
from tests.chaos.violations import ENDS, Violation

Rule = Callable[[Histories, Topics, Paths], Iterator[Violation]]


def check(histories: Histories) -> list[Violation]:
    """All that is wrong with a trial whose faults are over and that has come to rest."""
    found: list[Violation] = []
    try:
        topics = Topics(histories)
        paths = paths_of(topics)
    except Exception as error:  # of the checker's own: never silent, never in the way
        return [Violation("checker", "", f"the topics cannot be read: {error!r}")]
    rules: tuple[Rule, ...] = (
        *(records, stories, acceptance, letters, effects, offsets, checkpoints, ledgers, processes),
        *(cancellations, repeats, replays),
    )
    for rule in rules:
        try:
            found += rule(histories, topics, paths)
        except Exception as error:  # as above: the other rules are applied all the same
            found.append(Violation("checker", "", f"{rule.__name__}: {error!r}"))
    return found


def records(_: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """Every record of the state topic can be read, and comes from somebody who may write it."""
    for place, error in topics.unreadable:
        yield Violation("unreadable", "", f"{place}: {error}")
    for change in topics.unfounded:
        why = f"epoch {change.epoch} has not begun" if change.run_id in paths else "there is no SCHEDULED before it"
        yield Violation("unfounded", change.run_id, f"{change.partition}/{change.offset}: {change.state}: {why}")


def stories(_: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """Every run goes a legal, gapless way to exactly one end, in one trace."""
    for run_id, path in paths.items():
        yield from path.wrong
        if path.ended is None:
            left = {name or "the run": state for name, state in path.states.items() if state not in ENDS}
            yield Violation("unfinished", run_id, f"{path.scheduled.flow}, at seq {path.last_seq}: {left}")


def processes(histories: Histories, topics: Topics, _: Paths) -> Iterator[Violation]:
    """Nothing ends that nobody has ended, and who is told to leave goes in order."""
    owners = " ".join(owner for epochs in topics.epochs.values() for _, _, owner in epochs)
    for fault in histories.faults:
        if fault.what == "exit":
            yield Violation("died", "", f"{fault.whom} {fault.name} ({fault.pid}) ended by itself with code {fault.code}")
        elif fault.what == "left" and fault.code != 0 and (fault.code != -15 or f"/{fault.pid}/" in owners):
            # Of SIGTERM itself dies only Python, before the engine in it has begun.
            yield Violation("died", "", f"{fault.whom} {fault.name} ({fault.pid}), told to leave, ended with {fault.code}")
