"""What the HTTP API gives; pure. The OpenAPI document is made from these types."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec

from engine.declarations import Binds, Options, Trigger
from engine.letter_lists import Status
from engine.states import State

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
