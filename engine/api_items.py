"""What the HTTP API gives, and how rows of the history become it; pure. The OpenAPI document is made from these types."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from engine.declarations import Binds, Declaration, Options, Trigger
from engine.history import Change, EventRow, FlowRow, LetterLine
from engine.history_schema import LetterRow, RunRow, TaskRow
from engine.letter_lists import Status
from engine.states import State
from engine.task_rows import attempts_of

#: Of one page.
Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000)]
Ids = Annotated[list[str], msgspec.Meta(min_length=1, max_length=1_000)]


class ErrorItem(msgspec.Struct):
    """Why a request was not done: a short code and a sentence."""

    error: str
    reason: str


class FailureItem(msgspec.Struct):
    """What went wrong."""

    type: str
    message: str


class EventPlace(msgspec.Struct):
    """The event of a run or dead letter, and where it lies."""

    topic: str
    partition: int
    offset: int
    source: str | None
    id: str | None
    type: str | None


class RunItem(msgspec.Struct, kw_only=True):
    """A run in a list."""

    run_id: str
    flow: str
    state: State
    attempt: int
    #: Number of its last change, those of its tasks included.
    seq: int
    scheduled_at: datetime
    changed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    #: The ordering key.
    key: str | None
    #: The run that it repeats.
    repeats: str | None
    #: None where it was started by hand.
    event: EventPlace | None
    #: Of a replay: its id, and the dead letter.
    replay_id: str | None
    letter: str | None
    trace_id: str | None
    tasks: int
    tasks_ended: int
    is_packed: bool
    next_attempt_at: datetime | None
    wakes_at: datetime | None
    reason: str | None
    error: FailureItem | None
    result_ref: str | None


class RunDetails(RunItem, kw_only=True):
    """A run with its payloads; one that was too large to be kept whole is a text that is cut short."""

    parameters: Any
    parameters_size: int | None
    result: Any
    result_size: int | None
    traceback: str | None


class AttemptItem(msgspec.Struct):
    """One attempt of a task run."""

    attempt: int
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    worker: str | None
    #: The state it ended in; RETRYING where another one follows.
    outcome: str | None
    error: str | None


class TaskItem(msgspec.Struct, kw_only=True):
    """A task run; ``name`` is ``task/index``."""

    name: str
    task: str
    state: State
    attempt: int
    map_index: int | None
    scheduled_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    wakes_at: datetime | None
    worker: str | None
    parents: list[str]
    spawned_by: str | None
    reason: str | None
    error: FailureItem | None
    traceback: str | None
    attempts: list[AttemptItem]


class ChangeItem(msgspec.Struct):
    """A state change; ``name`` is that of the task run, null where it is the run's own."""

    seq: int
    at: datetime
    state: State
    attempt: int
    name: str | None
    worker: str | None
    text: str | None


class LogItem(msgspec.Struct):
    """A log line of a run."""

    seq: int
    at: datetime
    level: str
    logger: str
    name: str | None
    attempt: int
    message: str
    trace_id: str


class FlowItem(msgspec.Struct, kw_only=True):
    """A flow as running engines declare it, and how its last runs went."""

    name: str
    signature: str
    doc: str | None
    #: When it was declared last.
    at: datetime
    triggers: list[Trigger]
    options: Options
    #: Of the last runs that ended.
    runs: int
    success_rate: float | None
    p50_seconds: float | None
    p95_seconds: float | None


class FlowDetails(FlowItem, kw_only=True):
    """A flow with the JSON schemas of its parameters and of its events' data."""

    binds: Binds
    parameters: dict[str, Any]
    data: dict[str, Any]


class LetterItem(msgspec.Struct, kw_only=True):
    """A dead letter; its id is ``partition/offset``."""

    id: str
    at: datetime
    reason: str
    error: str
    flow: str | None
    run_id: str | None
    event: EventPlace | None
    #: Of a replay that has failed again.
    replay_of: str | None
    size: int | None
    status: Status = Status.OPEN
    replays: int = 0


class EventItem(msgspec.Struct, kw_only=True):
    """An event that was taken in, with the runs it made and its dead letters."""

    at: datetime
    event: EventPlace
    runs: list[RunItem]
    letters: list[LetterItem]


class RunPage(msgspec.Struct):
    """``cursor`` asks for the next page; null where this is the last."""

    items: list[RunItem]
    cursor: str | None


class TaskPage(msgspec.Struct):
    """``after`` asks for the next page; null where this is the last."""

    items: list[TaskItem]
    after: str | None


class ChangePage(msgspec.Struct):
    """``after`` asks for the next page; null where this is the last."""

    items: list[ChangeItem]
    after: int | None


class LogPage(msgspec.Struct):
    """``after`` asks for what comes behind these lines; null where there are none."""

    items: list[LogItem]
    after: int | None


class FlowPage(msgspec.Struct):
    """All flows."""

    items: list[FlowItem]


class EventPage(msgspec.Struct):
    """``cursor`` asks for the next page; null where this is the last."""

    items: list[EventItem]
    cursor: str | None


class LetterPage(msgspec.Struct):
    """``cursor`` asks for the next page; null where this is the last."""

    items: list[LetterItem]
    cursor: str | None


def at(seconds: float | None) -> Any:
    """A time of the history."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def run_item(row: RunRow) -> RunItem:
    """A run of a list."""
    return RunItem(**_run_fields(row))


def run_details(row: RunRow) -> RunDetails:
    """A run that was asked for by its id."""
    return RunDetails(
        **_run_fields(row),
        parameters=_payload(row.parameters, row.parameters_size),
        parameters_size=row.parameters_size,
        result=_payload(row.result, row.result_size),
        result_size=row.result_size,
        traceback=row.traceback,
    )


def task_item(row: TaskRow) -> TaskItem:
    """A task run with its attempts."""
    attempts = [
        AttemptItem(one.attempt, at(one.queued_at), at(one.started_at), at(one.ended_at), one.worker, one.outcome, one.error)
        for one in attempts_of(row.attempts)
    ]
    return TaskItem(
        name=row.name,
        task=row.task,
        state=State(row.state),
        attempt=row.attempt,
        map_index=row.map_index,
        scheduled_at=at(row.scheduled_at),
        started_at=at(row.started_at),
        ended_at=at(row.ended_at),
        wakes_at=at(row.wakes_at),
        worker=row.worker,
        parents=msgspec.json.decode(row.parents, type=list[str]),
        spawned_by=row.spawned_by,
        reason=row.reason,
        error=_failure(row),
        traceback=row.traceback,
        attempts=attempts,
    )


def change_item(change: Change) -> ChangeItem:
    """A state change."""
    state = State(change.state)
    return ChangeItem(change.seq, at(change.at), state, change.attempt, change.name, change.worker, change.text)


def flow_item(declared: Declaration, row: FlowRow | None) -> FlowItem:
    """A flow of a list."""
    return FlowItem(**_flow_fields(declared, row))


def flow_details(declared: Declaration, row: FlowRow | None) -> FlowDetails:
    """A flow that was asked for by its name."""
    more: dict[str, Any] = {"binds": declared.binds, "parameters": declared.parameters, "data": declared.data}
    return FlowDetails(**_flow_fields(declared, row), **more)


def letter_item(row: LetterRow, status: Status = Status.OPEN, replays: int = 0) -> LetterItem:
    """A dead letter."""
    return LetterItem(
        id=f"{row.partition}/{row.place}",
        at=at(row.at),
        reason=row.reason,
        error=row.error,
        flow=row.flow,
        run_id=row.run_id,
        event=_place(row),
        replay_of=row.replay_of,
        size=row.size,
        status=status,
        replays=replays,
    )


def letter_line(line: LetterLine) -> LetterItem:
    """A dead letter of a list."""
    return letter_item(line.row, line.status, line.replays)


def event_item(row: EventRow) -> EventItem:
    """An event with what became of it."""
    return EventItem(
        at=at(row.at),
        event=EventPlace(row.topic, row.partition, row.offset, row.source, row.id, row.type),
        runs=[run_item(run) for run in row.runs],
        letters=[letter_item(letter) for letter in row.letters],
    )


def _run_fields(row: RunRow) -> dict[str, Any]:
    traced = (row.traceparent or "").split("-")
    return {
        **{name: getattr(row, name) for name in ("run_id", "flow", "attempt", "seq", "repeats", "replay_id", "letter")},
        **{name: at(getattr(row, name)) for name in ("scheduled_at", "changed_at", "started_at", "ended_at")},
        **{name: at(getattr(row, name)) for name in ("next_attempt_at", "wakes_at")},
        **{name: getattr(row, name) for name in ("tasks", "tasks_ended", "reason", "result_ref")},
        "state": State(row.state),
        "key": row.run_key,
        "event": _place(row),
        "trace_id": traced[1] if len(traced) == 4 else None,
        "is_packed": bool(row.packed),
        "error": _failure(row),
    }


def _flow_fields(declared: Declaration, row: FlowRow | None) -> dict[str, Any]:
    return {
        "name": declared.name,
        "signature": declared.signature,
        "doc": declared.doc,
        "at": declared.at,
        "triggers": list(declared.triggers),
        "options": declared.options,
        "runs": 0 if row is None else row.runs,
        "success_rate": None if row is None else row.success_rate,
        "p50_seconds": None if row is None else row.p50_seconds,
        "p95_seconds": None if row is None else row.p95_seconds,
    }


def _place(row: RunRow | LetterRow) -> EventPlace | None:
    if row.event_topic is None or row.event_partition is None or row.event_offset is None:
        return None
    lies = (row.event_topic, row.event_partition, row.event_offset)
    return EventPlace(*lies, row.event_source, row.event_id, row.event_type)


def _failure(row: RunRow | TaskRow) -> FailureItem | None:
    return None if row.error_type is None else FailureItem(row.error_type, row.error_message or "")


def _payload(kept: bytes | None, size: int | None) -> Any:
    if kept is None:
        return None
    return msgspec.Raw(kept) if len(kept) == size else kept.decode(errors="replace")
