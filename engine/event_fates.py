"""Verdicts: what became of an event, the runs it made or why it made none, by what is known of it; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from engine.declarations import Declaration
from engine.errors import EventError
from engine.events import RawEvent
from engine.history import EventRow
from engine.history_schema import RunRow


class Fate(StrEnum):
    """What became of an event."""

    RAN = "ran"  #: it made runs
    DEAD = "dead-letter"  #: it could not become a run, and lies on the dead-letter topic
    DUPLICATE = "duplicate"  #: an event of the same source and id had made the run already
    NO_TRIGGER = "no-trigger"  #: no flow takes events of its topic, type and source
    WHERE = "where"  #: the ``where`` of each trigger that takes it said no
    WAITING = "waiting"  #: the engine has not taken it in yet
    UNKNOWN = "unknown"  #: what is known does not tell

    @property
    def is_settled(self) -> bool:
        """Whether looking again will tell the same."""
        return self not in (Fate.WAITING, Fate.UNKNOWN)


class EventRun(msgspec.Struct, frozen=True):
    """A run that an event has made, or that an earlier event of the same identity had made."""

    run_id: str
    flow: str
    state: str


class EventLetter(msgspec.Struct, frozen=True):
    """A dead letter that an event has become."""

    id: str
    reason: str
    flow: str | None
    error: str


class Verdict(msgspec.Struct, frozen=True):
    """What became of one event."""

    fate: Fate
    #: The same in words.
    text: str
    runs: tuple[EventRun, ...] = ()
    letters: tuple[EventLetter, ...] = ()


class Knowledge(msgspec.Struct, frozen=True):
    """What a verdict goes by, beside what the history says of the event itself."""

    declarations: Sequence[Declaration]
    #: The offset from which on the intake has not taken in this partition; None where it never has.
    taken_until: int | None
    #: Why nothing follows from what the history does not say; empty where it would say it.
    doubt: str = ""


def judge(
    topic: str, event: RawEvent | EventError, offset: int, row: EventRow | None, same: Sequence[RunRow], known: Knowledge
) -> Verdict:
    """What became of an event of ``topic`` at ``offset``.

    ``row`` is what the history says of it, ``same`` the runs whose ids events of its identity make. An event that could not
    be read comes as its error.
    """
    runs = tuple(map(_run, row.runs)) if row is not None else ()
    letters = (
        ()
        if row is None
        else tuple(EventLetter(f"{one.partition}/{one.place}", one.reason, one.flow, one.error) for one in row.letters)
    )
    if runs:
        shown = ", ".join(f"{run.flow} {run.run_id} {run.state}" for run in runs)
        dead = f"; dead letters: {_reasons(letters)}" if letters else ""
        return Verdict(Fate.RAN, f"made {shown}{dead}", runs, letters)
    if letters:
        return Verdict(Fate.DEAD, f"dead letter {_reasons(letters)}", (), letters)
    if known.taken_until is None or offset >= known.taken_until:
        return Verdict(Fate.WAITING, _waiting(topic, known))
    if same:
        earlier = tuple(map(_run, same))
        shown = ", ".join(f"{run.flow} {run.run_id}" for run in earlier)
        return Verdict(Fate.DUPLICATE, f"duplicate of the event that made {shown}", earlier)
    if known.doubt:
        return Verdict(Fate.UNKNOWN, f"no run and no dead letter is known: {known.doubt}")
    if isinstance(event, EventError):
        return Verdict(Fate.UNKNOWN, f"it cannot be read ({event}), and its dead letter has expired")
    return _why_none(topic, event, known.declarations)


def flows_for(topic: str, event: RawEvent, declarations: Iterable[Declaration]) -> list[Declaration]:
    """The flows with a trigger that an event of this topic concerns; whether they start, their ``where`` says."""
    return [one for one in declarations if any(trigger.concerns(topic, event.type, event.source) for trigger in one.triggers)]


def _why_none(topic: str, event: RawEvent, declarations: Sequence[Declaration]) -> Verdict:
    triggers = [trigger for one in declarations for trigger in one.triggers if trigger.topic == topic]
    if not declarations:
        return Verdict(Fate.UNKNOWN, "no engine has declared a flow")
    if not triggers:
        return Verdict(Fate.NO_TRIGGER, f"no flow listens to the topic {topic}")
    concerned = flows_for(topic, event, declarations)
    if not concerned:
        takes = sorted({trigger.type or "any type" for trigger in triggers})
        sources = sorted({trigger.source for trigger in triggers if trigger.source is not None})
        of = f" of source {event.source}" if sources else ""
        kind = f"type {event.type}" if event.type else "a record without a type"
        listed = f"triggers take {', '.join(takes)}" + (f" of {', '.join(sources)}" if sources else "")
        return Verdict(Fate.NO_TRIGGER, f"no trigger takes {kind}{of}; {listed}")
    if all(_has_where(one, topic, event) for one in concerned):
        names = ", ".join(f"{one.name} ({_wheres(one, topic, event)})" for one in concerned)
        return Verdict(Fate.WHERE, f"the where of {names} said no")
    names = ", ".join(one.name for one in concerned)
    return Verdict(Fate.UNKNOWN, f"{names} should have taken it: its run has expired, or the flow came later")


def _has_where(one: Declaration, topic: str, event: RawEvent) -> bool:
    return all(t.where is not None for t in one.triggers if t.concerns(topic, event.type, event.source))


def _wheres(one: Declaration, topic: str, event: RawEvent) -> str:
    return ", ".join(t.where or "" for t in one.triggers if t.concerns(topic, event.type, event.source))


def _waiting(topic: str, known: Knowledge) -> str:
    if known.taken_until is not None:
        return "not taken in yet"
    if known.declarations and not any(trigger.topic == topic for one in known.declarations for trigger in one.triggers):
        return f"not taken in: no flow listens to the topic {topic}"
    return "not taken in yet: no engine has read this partition"


def _reasons(letters: Iterable[EventLetter]) -> str:
    return ", ".join(f"{one.id} {one.reason}: {one.error}" for one in letters)


def _run(row: RunRow) -> EventRun:
    return EventRun(row.run_id, row.flow, row.state)
