"""How rows of the history become what the HTTP API gives; pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.api_items import (
    AttemptItem,
    ChangeItem,
    EventItem,
    EventPlace,
    FailureItem,
    FlowDetails,
    FlowItem,
    LetterItem,
    LogItem,
    RunDetails,
    RunItem,
    TaskItem,
)
from engine.declarations import Declaration
from engine.history import Change, EventRow, FlowRow, LetterLine
from engine.history_schema import LetterRow, RunRow, TaskRow
from engine.letter_lists import Status
from engine.log_rows import LogRow
from engine.states import State
from engine.task_rows import attempts_of


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


def log_item(row: LogRow) -> LogItem:
    """A line of a run's log."""
    return LogItem(row.seq, at(row.at), row.level, row.logger, row.name, row.attempt, row.message, row.trace_id)


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
