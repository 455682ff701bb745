"""History rows: what queries on the history are asked with and answer with; values alone.

Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from engine.history_schema import LetterRow, RunRow
from engine.letter_lists import Status
from engine.states import State

Item = TypeVar("Item")


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """A part of a list, and the cursor of the next one; None where this is the last."""

    items: list[Item]
    cursor: str | None


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs are wanted; times are seconds since the epoch, of when runs were scheduled."""

    flows: Sequence[str] = ()
    states: Sequence[State] = ()
    key: str | None = None
    since: float | None = None
    until: float | None = None


class Change(msgspec.Struct, frozen=True):
    """A state change of a run; ``name`` is that of the task run, None where it is the run's own."""

    seq: int
    epoch: int
    at: float
    state: str
    attempt: int
    name: str | None
    worker: str | None
    text: str | None


class EventRow(msgspec.Struct, frozen=True):
    """An event that was taken in: the runs it made, and the dead letters that say why it made none, or which failed."""

    at: float
    topic: str
    partition: int
    offset: int
    source: str | None
    id: str | None
    type: str | None
    runs: list[RunRow]
    letters: list[LetterRow]


class LetterLine(msgspec.Struct, frozen=True):
    """A dead letter and what became of it."""

    row: LetterRow
    status: Status
    replays: int


class FlowRow(msgspec.Struct, frozen=True):
    """How a flow does: of its last runs that ended, their states, and the seconds from RUNNING to the end of the COMPLETED."""

    flow: str
    runs: int
    #: COMPLETED / all that ended, None where none has; CANCELLED counts in neither.
    success_rate: float | None
    p50_seconds: float | None
    p95_seconds: float | None
    #: The newest first: state and seconds.
    last: list[tuple[str, float]]

    @classmethod
    def of(cls, flow: str, last: list[tuple[str, float]]) -> FlowRow:
        """From its last runs that ended."""
        judged = [state for state, _ in last if state != State.CANCELLED]
        rate = judged.count(State.COMPLETED) / len(judged) if judged else None
        seconds = sorted(seconds for state, seconds in last if state == State.COMPLETED)
        return cls(flow, len(last), rate, _share(seconds, 0.5), _share(seconds, 0.95), last)


class WorkerRow(msgspec.Struct, frozen=True):
    """A worker that was seen, and the attempts that began on it."""

    worker: str
    attempts: int
    first_at: float
    last_at: float


def _share(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
