"""Task rows: what changes of task runs, and the entries at the end of a packed run, make of their rows; pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.history_schema import KEPT_ATTEMPTS, KEPT_BYTES, Attempt, RunRow, TaskRow
from engine.parcels import TaskEntry
from engine.states import State, StateChange

#: The text of each state: found here at a tenth of what the enum takes to tell it.
TEXTS = {state: state.value for state in State}
ENDS = frozenset(state for state in State if state.is_end)
_TEXT = 1_000
#: The largest number of a row.
_MOST = (1 << 63) - 1
_attempts = msgspec.json.Decoder(list[Attempt]).decode
_entries = msgspec.json.Decoder(list[TaskEntry]).decode
_encode = msgspec.json.Encoder().encode


def name_of(run_id: str, task_run_id: str) -> str:
    """A task run's name within its run: its id without that of the run."""
    return task_run_id.removeprefix(f"{run_id}/")


def attempts_of(row: bytes) -> list[Attempt]:
    """The attempts that a row holds, the first of those kept first."""
    return _attempts(row)


def apply_task(task: TaskRow | None, run: RunRow, name: str, change: StateChange, at: float) -> TaskRow:
    """The row after a change of a task run, and the counts of its run."""
    was_ended = task is not None and task.state in ENDS
    if task is None:
        task = TaskRow(run.place, name, change.task or "", TEXTS[change.state], change.attempt, change.map_index)
        run.tasks += 1
    run.tasks_ended += (change.state in ENDS) - was_ended
    task.state, task.attempt, task.reason = TEXTS[change.state], change.attempt, change.reason
    task.wakes_at = None if change.wakes_at is None else change.wakes_at.timestamp()
    task.worker = change.worker or task.worker
    attempts = _attempts(task.attempts)
    if change.state is State.SCHEDULED:
        # A task that is scheduled once more, in another attempt of its flow, is queued once more.
        task.scheduled_at, task.ended_at = at, None
        task.parents = _encode([name_of(run.run_id, parent) for parent in change.parents]).decode()
        task.spawned_by = None if change.spawned_by is None else name_of(run.run_id, change.spawned_by)
        attempts.append(Attempt(1, at))
    elif change.state is State.RUNNING:
        task.started_at = at if task.started_at is None else task.started_at
        current = _current(attempts, change.attempt)
        current.started_at, current.worker = at, change.worker
    else:
        _end(task, attempts, change, at)
    task.attempts = _encode(attempts[-KEPT_ATTEMPTS:])
    return task


def apply_entries(run: RunRow, raw: msgspec.Raw) -> Iterator[TaskRow]:
    """The rows of a packed run's tasks, and the counts of their run; none where they cannot be read."""
    try:
        entries = _entries(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # Of a newer version, say: the run itself is as good without.
    run.packed = 1
    rows: dict[str, TaskRow] = {}
    for entry in entries:
        started = None if entry.started_at is None else entry.started_at.timestamp()
        ended = None if entry.ended_at is None else entry.ended_at.timestamp()
        error = entry.error
        # Within a parcel nothing queues: a task begins where the one before it has ended.
        number = min(entry.attempt, _MOST)
        attempt = Attempt(max(1, number), None, started, ended, None, entry.state)
        name = f"{entry.task}/{entry.index}"
        rows[name] = TaskRow(
            run.place,
            name,
            entry.task,
            TEXTS[entry.state],
            number,
            scheduled_at=started,
            started_at=started,
            ended_at=ended,
            error_type=None if error is None else error.type[:_TEXT],
            error_message=None if error is None else error.message[:_TEXT],
            attempts=_encode([attempt]),
            traceback=None if error is None else error.traceback[-KEPT_BYTES:],
        )
    run.tasks = len(rows)
    run.tasks_ended = sum(row.state in ENDS for row in rows.values())
    yield from rows.values()


def _current(attempts: list[Attempt], number: int) -> Attempt:
    number = max(1, number)
    if not attempts or attempts[-1].attempt != number:
        attempts.append(Attempt(number))
    return attempts[-1]


def _end(task: TaskRow, attempts: list[Attempt], change: StateChange, at: float) -> None:
    current = _current(attempts, change.attempt)
    current.ended_at, current.outcome = at, change.state
    if change.error is not None:
        task.error_type, task.error_message = change.error.type[:_TEXT], change.error.message[:_TEXT]
        task.traceback = change.error.traceback[-KEPT_BYTES:]
        current.error = f"{change.error.type}: {change.error.message}"[:_TEXT]
    elif change.state is State.COMPLETED:
        task.error_type = task.error_message = None
    if change.state is State.RETRYING:
        due = at if change.next_attempt_at is None else change.next_attempt_at.timestamp()
        attempts.append(Attempt(max(1, change.attempt) + 1, due))
    elif change.state.is_end:
        task.ended_at = at
