"""Verdicts: from what is known of the system to one sentence and its reasons; pure.

What cannot be found out is said to be unknown; it is never taken for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum

import msgspec

from engine.measures import duration, number, plural, share, size
from engine.states import State
from engine.vital_signs import DaskVital, Vital

#: What has ended in so many minutes is judged.
JUDGED_MINUTES = 15
#: From this share of failures on it is a warning, and from this one on something is broken.
SOME, MANY = 0.05, 0.5
#: Fewer ends say nothing of a share.
FEW = 5
#: An event that nobody has taken in, a run that nobody has begun: so long is a moment.
PATIENCE_SECONDS = 60.0
#: Records that wait.
MUCH_LAG = 1_000
#: Of a worker's memory.
MUCH_MEMORY = 0.85


class Level(IntEnum):
    """How bad it is; the worst decides."""

    OK = 0
    UNKNOWN = 1
    WARN = 2
    BAD = 3


class Reason(msgspec.Struct, frozen=True):
    """One thing that is known, and the page that tells more."""

    level: Level
    text: str
    href: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """The sentence, and all reasons, the worst first."""

    level: Level
    sentence: str
    reasons: tuple[Reason, ...]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a system."""

    now: float
    #: Minute (seconds since the epoch), state, how many flow runs entered it.
    minutes: Sequence[tuple[int, str, int]] = ()
    #: By state, of what has not ended.
    open_runs: Mapping[str, int] = {}
    #: When the oldest run that nobody has begun was scheduled.
    waiting_since: float | None = None
    #: Open dead letters; with ``more_letters`` there are more than these.
    letters: int = 0
    more_letters: bool = False
    #: None where nobody looks at Kafka and Dask.
    vital: Vital | None = None
    #: How many records the history is behind; None where that is unknown.
    behind: int | None = None


def judge(facts: Facts) -> Verdict:
    """How the system does."""
    reasons = sorted(_reasons(facts), key=lambda reason: -reason.level)
    level = reasons[0].level if reasons else Level.OK
    known = [reason for reason in reasons if reason.level is level]
    more = f", and {len(known) - 1} more" if len(known) > 1 else ""
    match level:
        case Level.BAD:
            sentence = f"Something is broken: {known[0].text}{more}."
        case Level.WARN:
            sentence = f"It works, but needs a look: {known[0].text}{more}."
        case Level.UNKNOWN:
            sentence = f"The runs look well, but not everything can be seen: {known[0].text}{more}."
        case _:
            sentence = _quiet(facts)
    return Verdict(level, sentence, tuple(reasons))


def ends(minutes: Iterable[tuple[int, str, int]], since: float) -> dict[str, int]:
    """How many runs entered each state since then."""
    counts: dict[str, int] = {}
    for minute, state, count in minutes:
        if minute >= since:
            counts[state] = counts.get(state, 0) + count
    return counts


def failure_share(counts: Mapping[str, int]) -> float | None:
    """FAILED and CRASHED of all that ended on their own account; None where none has."""
    failed = counts.get(State.FAILED, 0) + counts.get(State.CRASHED, 0)
    judged = failed + counts.get(State.COMPLETED, 0)
    return failed / judged if judged else None


def _quiet(facts: Facts) -> str:
    counts = ends(facts.minutes, facts.now - JUDGED_MINUTES * 60)
    completed = counts.get(State.COMPLETED, 0)
    is_open = sum(facts.open_runs.values())
    if completed:
        rest = f"{plural(is_open, 'run')} {'is' if is_open == 1 else 'are'} under way" if is_open else "nothing waits"
        return f"All is well: {plural(completed, 'run')} completed in the last {JUDGED_MINUTES} minutes, and {rest}."
    if is_open:
        return f"All is well: {plural(is_open, 'run')} {'is' if is_open == 1 else 'are'} under way."
    return "All is well, and nothing is going on."


def _reasons(facts: Facts) -> Iterator[Reason]:
    yield from _of_runs(facts)
    yield from _of_letters(facts)
    if facts.behind is not None and facts.behind > 10 * MUCH_LAG:
        yield Reason(Level.WARN, f"the history is {number(facts.behind)} records behind the topics", "/cluster")
    if facts.vital is None:
        yield Reason(Level.UNKNOWN, "nobody here looks at Kafka and Dask", "/cluster")
        return
    yield from _of_kafka(facts.vital)
    yield from _of_dask(facts.vital)
    yield from _of_engines(facts.vital)


def _of_runs(facts: Facts) -> Iterator[Reason]:
    counts = ends(facts.minutes, facts.now - JUDGED_MINUTES * 60)
    failed, crashed = counts.get(State.FAILED, 0), counts.get(State.CRASHED, 0)
    judged = failed + crashed + counts.get(State.COMPLETED, 0)
    part, lately = failure_share(counts), f"that ended in the last {JUDGED_MINUTES} minutes"
    if part is not None and failed + crashed:
        states = [name for name, count in (("FAILED", failed), ("CRASHED", crashed)) if count]
        text = f"{number(failed + crashed)} of {plural(judged, 'run')} {lately} did not complete"
        level = Level.OK
        if judged >= FEW:
            level = Level.BAD if part >= MANY else Level.WARN if part >= SOME or crashed else Level.OK
        elif part >= MANY:
            level = Level.WARN
        yield Reason(level, f"{text} ({share(part)})", "/runs?" + "&".join(f"state={state}" for state in states))
    elif judged:
        yield Reason(Level.OK, f"all {plural(judged, 'run')} {lately} completed", "/runs")
    if facts.waiting_since is not None:
        waits = facts.now - facts.waiting_since
        if waits > PATIENCE_SECONDS:
            text = f"a run has waited for {duration(waits)} without being begun"
            yield Reason(Level.WARN, text, "/runs?state=SCHEDULED")


def _of_letters(facts: Facts) -> Iterator[Reason]:
    if facts.letters:
        many = f"more than {number(facts.letters)} dead letters" if facts.more_letters else plural(facts.letters, "dead letter")
        yield Reason(Level.WARN, f"{many} {'waits' if facts.letters == 1 else 'wait'} for somebody", "/dead-letters")
    else:
        yield Reason(Level.OK, "no dead letter waits for anybody", "/dead-letters")


def _of_kafka(vital: Vital) -> Iterator[Reason]:
    if vital.lags is None:
        yield Reason(Level.BAD, f"Kafka does not answer ({vital.kafka_trouble})", "/cluster")
        return
    # What the dispatch group has committed is where the next owner begins to read: it is behind by nature.
    lag = sum(entry.lag for entry in vital.lags if entry.group.endswith(".intake"))
    if lag > MUCH_LAG:
        yield Reason(Level.WARN, f"{number(lag)} events wait to be taken in", "/cluster")
    else:
        waits = f"{plural(lag, 'event')} {'waits' if lag == 1 else 'wait'}" if lag else "no event waits"
        yield Reason(Level.OK, f"Kafka answers, and {waits} to be taken in", "/cluster")


def _of_dask(vital: Vital) -> Iterator[Reason]:
    if vital.dask is None:
        yield Reason(Level.BAD, f"the Dask scheduler does not answer ({vital.dask_trouble})", "/cluster")
        return
    workers = vital.dask.workers
    if not workers:
        yield Reason(Level.BAD, "Dask has no workers", "/cluster")
        return
    paused = [worker for worker in workers if worker.status != "running"]
    if paused:
        level = Level.BAD if len(paused) == len(workers) else Level.WARN
        text = f"{len(paused)} of {plural(len(workers), 'worker')} {'is' if len(paused) == 1 else 'are'} {paused[0].status}"
        yield Reason(level, text, "/cluster")
    full = fullest(vital.dask)
    if full is not None and full >= MUCH_MEMORY:
        yield Reason(Level.WARN, f"a worker uses {share(full)} of its memory", "/cluster")
    if not paused and (full is None or full < MUCH_MEMORY):
        used = sum(worker.memory_bytes for worker in workers)
        yield Reason(
            Level.OK,
            f"{plural(len(workers), 'Dask worker runs', 'Dask workers run')} with {size(used)} of memory in use",
            "/cluster",
        )


def _of_engines(vital: Vital) -> Iterator[Reason]:
    ready = [engine for engine in vital.engines if engine.is_ready]
    for engine in vital.engines:
        if engine.is_ready:
            continue
        parts = ", ".join(f"{part}: {text}" for part, text in engine.parts.items() if text != "ok")
        what = "does not answer" if engine.is_ready is None else "is not ready"
        why = engine.trouble or parts
        level = Level.WARN if ready else Level.BAD
        yield Reason(level, f"the engine at {engine.address} {what}{f' ({why})' if why else ''}", "/cluster")
    if ready and len(ready) == len(vital.engines):
        yield Reason(Level.OK, f"{plural(len(ready), 'engine')} {'is' if len(ready) == 1 else 'are'} ready", "/cluster")


def fullest(dask: DaskVital) -> float | None:
    """The share of its memory that the fullest worker uses; None where no worker has a limit."""
    shares = [worker.memory_bytes / worker.memory_limit_bytes for worker in dask.workers if worker.memory_limit_bytes]
    return max(shares, default=None)
