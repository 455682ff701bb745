"""Histories: what was seen of a trial, from four sides, as values that can be kept in a folder and looked at again.

Nothing here knows the engine: the checker must not believe what it is to check.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Sent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event that a producer has tried to send."""

    source: str
    id: str
    topic: str
    #: Where Kafka has acknowledged it; -1 where it has not: it may be there or not.
    partition: int = -1
    offset: int = -1
    #: Flows that it is to start, once each.
    flows: tuple[str, ...] = ()
    #: Whether it can become nothing but a dead letter.
    is_poison: bool = False
    #: The producer's trace, where it has one.
    trace_id: str = ""
    at: float = 0.0
    #: Of a replay: its id, and "topic/partition/offset" of the event that is taken in once more.
    replay: str = ""
    origin: str = ""

    @property
    def is_acknowledged(self) -> bool:
        """Whether Kafka has said that it has it."""
        return self.offset >= 0

    @property
    def place(self) -> str:
        """Where Kafka has it."""
        return f"{self.topic}/{self.partition}/{self.offset}"


class Logged(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record of the state topic, of the dead letters or of the replays, as it lies there."""

    topic: str
    partition: int
    offset: int
    at: float
    headers: dict[str, str] = {}
    #: The value as text; None for a tombstone.
    value: str | None = None


class Effect(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line that a task has appended: it starts, it has returned, it has raised."""

    what: str  # start, done or raised
    run_id: str
    task_run_id: str
    attempt: int
    pid: int
    at: float


class Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request that somebody has made: noted before it is made, and again when it was answered."""

    what: str  # cancel, retry, rerun or replay
    #: The run; of a replay the dead letter, "partition/offset".
    whom: str
    #: Its id: the same request may be made more than once.
    request: str
    at: float
    is_acknowledged: bool = False
    #: The run that was answered, of a retry or a rerun; empty before.
    made: str = ""
    #: Its calls, "task/index", that take what was stored.
    taken: tuple[str, ...] = ()


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that the nemesis has done, or the end of a process."""

    at: float
    #: kill, stop, continue, restart, join, leave; "exit" for an end that nobody has asked for.
    what: str
    #: engine, worker, scheduler or broker.
    whom: str
    name: str = ""
    pid: int = 0
    #: Exit code, where it is an end.
    code: int | None = None
    #: The crash point and the passage at which an engine died by itself, as it was to.
    point: str = ""


class Committed(msgspec.Struct, frozen=True, omit_defaults=True):
    """Offsets of a group, looked at once; and, looked at after that, where the topics ended then."""

    at: float
    #: By "topic/partition".
    offsets: dict[str, int]
    #: By partition of the state topic.
    state_ends: dict[int, int]
    letter_ends: dict[int, int]


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an engine's ledger of one partition says at a time when nothing moves."""

    partition: int
    epoch: int
    next_offset: int
    #: Open runs: state and seq of each.
    runs: dict[str, tuple[str, int]]


class Histories(msgspec.Struct):
    """All that is known of one trial."""

    app: str
    #: Flows whose failed runs become dead letters.
    lettered: list[str] = []
    sent: list[Sent] = []
    asked: list[Asked] = []
    logged: list[Logged] = []
    effects: list[Effect] = []
    faults: list[Fault] = []
    committed: list[Committed] = []
    snapshots: list[Snapshot] = []

    @property
    def states_topic(self) -> str:
        """The log of state changes."""
        return f"{self.app}.states"

    @property
    def letters_topic(self) -> str:
        """Where refused records go."""
        return f"{self.app}.dead-letters"

    @property
    def replays_topic(self) -> str:
        """Where dead letters are taken in once more."""
        return f"{self.app}.replays"

    def save(self, file: Path) -> None:
        """Keep everything in one file."""
        file.write_bytes(msgspec.json.encode(self))

    @classmethod
    def load(cls, file: Path) -> Histories:
        """What ``save`` has kept."""
        return msgspec.json.decode(file.read_bytes(), type=cls)


def read_lines(file: Path, kind: type[T]) -> list[T]:
    """Values of a file that many processes append to; a line torn by a death is left out."""
    found: list[T] = []
    if not file.exists():
        return found
    for line in file.read_bytes().split(b"\n"):
        try:
            found.append(msgspec.json.decode(line, type=kind))
        except msgspec.DecodeError:
            continue  # torn: whoever wrote it was killed before it counted
    return found
