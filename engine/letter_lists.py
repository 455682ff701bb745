"""Lists of dead letters: which there are, what became of each, and which a filter chooses; pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum

import msgspec

from engine.broker import Record
from engine.dead_letters import Letter, Mark, Marked, read_letter

#: Of a value so much is kept in a list; whoever needs the whole fetches the record again.
_KEPT_BYTES = 256


class Status(StrEnum):
    """What became of a letter."""

    OPEN = "open"
    DROPPED = "dropped"
    REPLAYED = "replayed"
    REPEAT = "repeat"  #: another copy of a letter that is in the list: a crash made the engine write it again


class Entry(msgspec.Struct):
    """A letter in a list. Its value may be cut short."""

    letter: Letter
    #: Bytes of the value; None where it has none.
    size: int | None
    status: Status = Status.OPEN
    #: How often it was replayed.
    replays: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether its value was not cut."""
        return self.size == (None if self.letter.record.value is None else len(self.letter.record.value))


class Filter(msgspec.Struct, frozen=True):
    """Which letters are wanted."""

    reasons: Collection[str] = ()
    flows: Collection[str] = ()
    topics: Collection[str] = ()
    since: datetime | None = None
    until: datetime | None = None

    def admits(self, entry: Entry) -> bool:
        """Whether an entry is wanted."""
        details, at_ms = entry.letter.details, entry.letter.record.timestamp_ms
        return (
            (not self.reasons or details.reason in self.reasons)
            and (not self.flows or details.flow in self.flows)
            and (not self.topics or (details.origin is not None and details.origin.topic in self.topics))
            and (self.since is None or at_ms >= self.since.timestamp() * 1000)
            and (self.until is None or at_ms < self.until.timestamp() * 1000)
        )


class LetterList:
    """Made from the records of the dead-letter topic, in any order among partitions."""

    def __init__(self, identities: Collection[str] | None = None) -> None:
        """With ``identities`` only the letters of these are listed."""
        self._identities = identities
        self._entries: list[Entry] = []
        self._marks: list[Mark] = []
        #: By partition the offset of the record behind the last one that was taken in.
        self.nexts: dict[int, int] = {}

    def add(self, record: Record) -> None:
        """Take in a record of the topic."""
        self.nexts[record.partition] = record.position.next_offset
        found = read_letter(record)
        if found is None:
            return
        identity = found.identity if isinstance(found, Mark) else found.details.identity
        if self._identities is not None and identity not in self._identities:
            return
        if isinstance(found, Mark):
            self._marks.append(found)
        else:
            self._entries.append(entry_of(found))

    def entries(self) -> list[Entry]:
        """All letters, the oldest first, each with what became of it."""
        replays: dict[str, set[str]] = {}
        last: dict[str, Status] = {}
        for mark in sorted(self._marks, key=lambda mark: mark.at):
            if mark.marked is Marked.REPLAYED:
                replays.setdefault(mark.identity, set()).add(mark.replay or "")
            last[mark.identity] = Status(mark.marked.value)
        seen: set[str] = set()
        self._entries.sort(key=lambda entry: _place(entry.letter))
        for entry in self._entries:
            identity = entry.letter.details.identity
            # By identity, not by place: a mark stands for each copy, also for one that is written after it.
            entry.status = Status.REPEAT if identity in seen else last.get(identity, Status.OPEN)
            entry.replays = len(replays.get(identity, ()))
            seen.add(identity)
        return self._entries


def entry_of(letter: Letter) -> Entry:
    """An open letter in a list, its value cut."""
    record = letter.record
    size = None if record.value is None else len(record.value)
    short = msgspec.structs.replace(record, value=None if record.value is None else record.value[:_KEPT_BYTES])
    return Entry(msgspec.structs.replace(letter, record=short), size)


def _place(letter: Letter) -> tuple[int, int, int]:
    record = letter.record
    return record.timestamp_ms, record.partition, record.offset
