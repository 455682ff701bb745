"""States: the table that flow runs and task runs go through, and the state change as it stands on the state topic.

Everything that affects which state follows which lives in this file. Pure: times and ids come in as arguments.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec

from engine.errors import EventError, IllegalTransition
from engine.events import Headers, Reason

OWNERSHIP = "engine.ownership"
CHECKPOINT = "engine.checkpoint"
FLOW_RUN_PREFIX = "engine.flow_run."
TASK_RUN_PREFIX = "engine.task_run."


class State(StrEnum):
    """Where a run is."""

    SCHEDULED = "SCHEDULED"  #: accepted, not yet started
    RUNNING = "RUNNING"  #: a flow run: its graph is on the cluster; a task run: a worker executes it
    RETRYING = "RETRYING"  #: an attempt failed, the next one starts at ``next_attempt_at``
    COMPLETED = "COMPLETED"  #: it returned
    FAILED = "FAILED"  #: user code raised and no attempt is left
    CRASHED = "CRASHED"  #: the infrastructure failed it
    CANCELLED = "CANCELLED"  #: it will not run; ``reason`` says why

    @property
    def is_end(self) -> bool:
        """Whether nothing follows it."""
        return self in _ENDS


_ENDS = frozenset({State.COMPLETED, State.FAILED, State.CRASHED, State.CANCELLED})

#: The table. A transition is a row; None is the state before the first.
TRANSITIONS: frozenset[tuple[State | None, State]] = frozenset(
    {
        (None, State.SCHEDULED),
        (State.SCHEDULED, State.RUNNING),
        (State.SCHEDULED, State.CANCELLED),
        (State.SCHEDULED, State.CRASHED),  # its worker died before it could say that it had begun
        (State.RUNNING, State.RETRYING),
        (State.RUNNING, State.COMPLETED),
        (State.RUNNING, State.FAILED),
        (State.RUNNING, State.CRASHED),
        (State.RUNNING, State.CANCELLED),
        (State.RETRYING, State.RUNNING),
        (State.RETRYING, State.CANCELLED),
        (State.RETRYING, State.CRASHED),
    }
)


def follow(subject: str, state: State | None, new_state: State) -> State:
    """``new_state``, where the table has the row. Raises IllegalTransition, which names ``subject``."""
    if (state, new_state) not in TRANSITIONS:
        raise IllegalTransition(subject, state or "nothing", new_state)
    return new_state


class Replayed(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """That an event was taken in once more: which replay, of which dead letter, and where its record lies."""

    id: str
    topic: str
    partition: int
    offset: int
    #: ``partition/offset`` of the letter.
    letter: str | None = None


class Origin(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The event that a flow run was scheduled for."""

    source: str
    id: str
    type: str
    topic: str
    partition: int
    offset: int
    #: When Kafka took the record, by its timestamp: what a run waits for may have come right behind it.
    at: datetime | None = None
    #: Of a replay, whose record has the event: it may have been edited since it lay where it came from.
    replay: Replayed | None = None


class Failure(msgspec.Struct, frozen=True, gc=False):
    """What went wrong, as text: nothing from another process is ever rebuilt as an object."""

    type: str
    message: str
    traceback: str = ""


class Reuse(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """That a run may take results of another, earlier run of its flow from the result store rather than make them again."""

    run_id: str
    #: The calls of the flow for which it may, ``task/index``; a map stands as a whole.
    calls: tuple[str, ...]
    #: How many attempts the flow had in that run: its results may be of any of them.
    attempts: int = 1
    #: Whether the calls were chosen for a plain flow; an async one may have called otherwise by what it awaited.
    is_plain: bool = False


#: Stands for encoded JSON that is not there. It is told by identity: no other Raw of no bytes is valid JSON.
ABSENT = msgspec.Raw(b"")


class StateChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a flow run or task run through the table: the data of a record on the state topic."""

    run_id: str
    flow: str
    state: State
    #: Gapless per run over all its changes, those of its tasks included; 0 is the run's SCHEDULED.
    seq: int
    #: Offset of the ownership record of the dispatcher that wrote it; 0 on SCHEDULED, which the intake writes.
    epoch: int
    #: 1 for the first attempt; 0 before it.
    attempt: int
    at: datetime

    task: str | None = None
    task_run_id: str | None = None
    map_index: int | None = None
    #: The task runs whose results this one takes; a map taken as a whole stands as ``run_id/task/index`` of the map.
    parents: tuple[str, ...] = ()
    #: The task run that started this one, where that was not the flow itself.
    spawned_by: str | None = None
    #: Indices of the tasks that this one has started and whose failure it has dealt with: they do not fail the run.
    handled: tuple[str, ...] = ()
    #: Of a CANCELLED that an async flow hears of: the task run whose failure, in ``error``, is behind it.
    cause: str | None = None

    #: A JSON object keyed by the flow's parameter names, still encoded; ``ABSENT`` but on a flow run's SCHEDULED.
    parameters: msgspec.Raw = ABSENT
    event: Origin | None = None
    #: The run's ordering key, where its trigger has one.
    key: str | None = None
    #: The run that this one repeats: a retry or a rerun of it, or the replay of its dead letter.
    repeats: str | None = None
    #: What it may take of another run's results.
    reuse: Reuse | None = None

    #: What the flow returned, still encoded as JSON; ``ABSENT`` where it did not travel.
    result: msgspec.Raw = ABSENT
    #: Where the result is, when it did not travel; ``reason`` says why it did not.
    result_ref: str | None = None
    #: How many elements a result has that a map may walk over.
    length: int | None = None
    #: Of a packed run's end: a JSON array, still encoded, of what became of its tasks (engine.parcels.TaskEntry).
    tasks: msgspec.Raw = ABSENT
    error: Failure | None = None
    reason: str | None = None
    next_attempt_at: datetime | None = None
    #: When a run that sleeps, or that waits for an event, goes on at the latest.
    wakes_at: datetime | None = None
    worker: str | None = None

    #: The span of the ``send`` (a header, not data): the parent of what a subscriber does.
    traceparent: str | None = None

    @property
    def is_flow_run(self) -> bool:
        """Whether it is the run's own change, not that of one of its tasks."""
        return self.task_run_id is None


def utc(seconds: float) -> datetime:
    """A moment as an aware UTC time.

    Never a whole second: encoders leave an all-zero fraction out, and our contract promises microseconds.
    """
    return _not_whole(datetime.fromtimestamp(seconds, UTC))


def later(moment: datetime, seconds: float) -> datetime:
    """``seconds`` after ``moment``, to the microsecond: sums of seconds since the epoch are off by one now and then."""
    return _not_whole(moment + timedelta(seconds=seconds))


def _not_whole(moment: datetime) -> datetime:
    return moment if moment.microsecond else moment.replace(microsecond=1)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StateChange)

_SPECVERSION = ("ce_specversion", b"1.0")
_CONTENT_TYPE = ("content-type", b"application/json")
_FLOW_TYPES = {state: ("ce_type", f"{FLOW_RUN_PREFIX}{state.lower()}".encode()) for state in State}
_TASK_TYPES = {state: ("ce_type", f"{TASK_RUN_PREFIX}{state.lower()}".encode()) for state in State}
_SCHEDULED_TYPE = _FLOW_TYPES[State.SCHEDULED][1]
_OWNERSHIP_TYPE = OWNERSHIP.encode()
_READABLE = {_OWNERSHIP_TYPE, *(value for _, value in (*_FLOW_TYPES.values(), *_TASK_TYPES.values()))}


class Envelope(msgspec.Struct, frozen=True):
    """The headers that all changes of one run share; made once per run and reused."""

    source: tuple[str, bytes]
    subject: tuple[str, bytes]

    @classmethod
    def of(cls, app: str, run_id: str) -> Envelope:
        """The envelope of a run of ``app``."""
        return cls(("ce_source", f"/engine/{app}".encode()), ("ce_subject", run_id.encode()))

    def write(self, change: StateChange, traceparent: str) -> tuple[bytes, Headers]:
        """Value and headers of the record that carries ``change``: a CloudEvent in binary mode."""
        types = _FLOW_TYPES if change.task_run_id is None else _TASK_TYPES
        seq = str(change.seq)
        headers = (
            _SPECVERSION,
            ("ce_id", f"{change.run_id}/{change.epoch}/{seq}".encode()),
            self.source,
            types[change.state],
            self.subject,
            ("ce_time", _iso(change.at)),
            ("ce_sequence", seq.encode()),
            ("traceparent", traceparent.encode()),
            _CONTENT_TYPE,
        )
        return _encoder.encode(change), headers


class Ownership(msgspec.Struct, frozen=True):
    """The data of an ownership record. The record's own offset is the epoch that begins with it."""

    partition: int
    owner: str
    at: datetime


def write_ownership(app: str, ownership: Ownership) -> tuple[bytes, Headers]:
    """Value and headers of an ownership record."""
    headers = (
        _SPECVERSION,
        ("ce_id", f"{ownership.owner}/{ownership.partition}".encode()),
        ("ce_source", f"/engine/{app}".encode()),
        ("ce_type", _OWNERSHIP_TYPE),
        ("ce_subject", str(ownership.partition).encode()),
        ("ce_time", _iso(ownership.at)),
        _CONTENT_TYPE,
    )
    return _encoder.encode(ownership), headers


def write_own(
    app: str, ce_type: str, partition: int, epoch: int, at: datetime, content_type: bytes = _CONTENT_TYPE[1]
) -> Headers:
    """Headers of a record that the owner of a partition writes for the owners to come."""
    return (
        _SPECVERSION,
        ("ce_id", f"{partition}/{epoch}/{ce_type}/{at.timestamp():.6f}".encode()),
        ("ce_source", f"/engine/{app}".encode()),
        ("ce_type", ce_type.encode()),
        ("ce_subject", str(partition).encode()),
        ("ce_time", _iso(at)),
        ("content-type", content_type),
    )


def type_of(headers: Headers) -> bytes:
    """The ``ce_type`` of a record on the state topic; empty where it has none."""
    for name, value in headers:
        if name == "ce_type":
            return value
    return b""


def is_ownership(ce_type: bytes) -> bool:
    """Whether a record of this type begins an epoch."""
    return ce_type == _OWNERSHIP_TYPE


def is_scheduled(ce_type: bytes) -> bool:
    """Whether a record of this type schedules a flow run."""
    return ce_type == _SCHEDULED_TYPE


def read(value: bytes | None, headers: Headers) -> StateChange | Ownership | None:
    """What a record of the state topic says; None for a type this version does not know, which readers skip.

    Raises EventError where the record says it is one of ours and is not.
    """
    ce_type = type_of(headers)
    if ce_type not in _READABLE:
        return None
    try:
        if ce_type == _OWNERSHIP_TYPE:
            return msgspec.json.decode(value or b"", type=Ownership)
        change = _decoder.decode(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventError(Reason.MALFORMED_DATA, f"a record of type {ce_type.decode()} cannot be read: {error}") from error
    for name, content in headers:
        if name == "traceparent":
            return msgspec.structs.replace(change, traceparent=content.decode("ascii", "ignore"))
    return change


class Epochs:
    """Which changes of one partition count: those of the latest ownership record, as its readers see them go by.

    A change of an older epoch that lies after a newer ownership record is void: it comes from an owner that had
    lost the partition without knowing. SCHEDULED belongs to no owner and always counts.
    """

    __slots__ = ("current",)

    def __init__(self) -> None:
        self.current = -1

    def begin(self, offset: int) -> None:
        """An ownership record lies at ``offset``."""
        self.current = max(self.current, offset)

    def admits(self, change: StateChange) -> bool:
        """Whether ``change``, read now, counts."""
        return change.epoch >= self.current or (change.seq == 0 and change.is_flow_run)


def encode(value: Any) -> bytes:
    """``value`` as JSON, the way everything on the state topic is. Raises msgspec's errors and TypeError."""
    return _encoder.encode(value)


def _iso(moment: datetime) -> bytes:
    return _encoder.encode(moment)[1:-1]  # RFC 3339, as in the data, without the quotes
