"""Projection: records of the state, dead-letter and log topics in, rows of the history out; pure.

Void changes and repeats are left out by the rules of ``engine.subscriber``; what this version does not know is skipped. The
rows are the same in whatever batches the records come, and in whatever order among partitions.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.broker import Partition, Record
from engine.dead_letters import Letter, Mark, read_letter
from engine.declarations import Declaration, is_declaration, read_declaration
from engine.errors import EventError
from engine.events import Headers, Reason
from engine.history_schema import (
    HOUR,
    KEPT_BYTES,
    KEPT_CHANGES,
    MINUTE,
    ChangeRow,
    LetterRow,
    MarkRow,
    Offsets,
    Progress,
    RunRow,
    TaskRow,
    place_of,
)
from engine.log_rows import LogsRow, row_of
from engine.run_logs import LogBatch, read_batch
from engine.states import ABSENT, Epochs, Failure, Origin, Ownership, State, StateChange, read, type_of
from engine.task_rows import ENDS, TEXTS, apply_entries, apply_task, name_of
from engine.trace_contexts import trace_id_of

_TEXT = 1_000
#: The largest number of a row.
_MOST = (1 << 63) - 1


#: What a record may say; None where that is nothing to us.
Said = StateChange | Ownership | Declaration | Letter | Mark | LogBatch | None


class Reading(msgspec.Struct, frozen=True, gc=False):
    """A record and what it says; None where that is nothing to us."""

    record: Record
    said: Said


class Readings(msgspec.Struct):
    """A batch of records, read."""

    readings: list[Reading] = msgspec.field(default_factory=list)
    #: Where records of our own types lie that cannot be read, and why.
    unreadable: list[tuple[str, str]] = msgspec.field(default_factory=list)

    def run_ids(self) -> set[str]:
        """The runs that it speaks of."""
        return {reading.said.run_id for reading in self.readings if isinstance(reading.said, StateChange)}

    def logged_run_ids(self) -> set[str]:
        """The runs that have said something in it."""
        return {reading.said.run_id for reading in self.readings if isinstance(reading.said, LogBatch)}

    def task_runs(self) -> set[tuple[str, str]]:
        """The task runs that it speaks of: run id and name."""
        said = [reading.said for reading in self.readings if isinstance(reading.said, StateChange)]
        return {(change.run_id, name_of(change.run_id, change.task_run_id)) for change in said if change.task_run_id}


def read_all(records: Iterable[Record], states_topic: str, logs_topic: str = "") -> Readings:
    """What records say. Those of other topics than that of the states and that of logs are dead letters."""
    made = Readings()
    for record in records:
        said: Said = None
        if record.topic not in (states_topic, logs_topic):
            said = read_letter(record)
        else:
            try:
                reads = _read_state if record.topic == states_topic else read_batch
                said = reads(record.value, record.headers)
            except EventError as error:
                # Passed over, and told by whoever called; the dispatcher that owns the partition says so, too.
                made.unreadable.append((str(record.position), str(error)))
        made.readings.append(Reading(record, said))
    return made


def _read_state(value: bytes | None, headers: Headers) -> Said:
    said = read(value, headers)
    if said is None:
        return read_declaration(value) if is_declaration(type_of(headers)) else None
    if isinstance(said, StateChange):
        event = said.event
        _check_numbers(said.seq, said.epoch, said.attempt, said.map_index or 0)
        if event is not None:
            _check_numbers(event.partition, event.offset)
    return said


def _check_numbers(*numbers: int) -> None:
    """Raises EventError for a number that no row can hold: one record that has it is not to end all projection."""
    if max(numbers) > _MOST or min(numbers) < -_MOST:
        raise EventError(Reason.MALFORMED_DATA, "a number in it has more than 63 bits")


class Book:
    """What the tables say of all that a batch speaks of, and then what the batch makes of it."""

    def __init__(self, offsets: Offsets) -> None:
        self.offsets = {place: Progress(known.next_offset, known.epoch) for place, known in offsets.items()}
        #: By run id.
        self.runs: dict[str, RunRow] = {}
        #: By run id and name.
        self.tasks: dict[tuple[str, str], TaskRow] = {}
        #: Runs whose rows retention has taken, with their last seq.
        self.forgotten: dict[str, int] = {}
        #: What has to be written, beside offsets.
        self.changed_runs: dict[str, RunRow] = {}
        self.changed_tasks: dict[tuple[str, str], TaskRow] = {}
        self.changes: list[ChangeRow] = []
        self.letters: list[LetterRow] = []
        self.marks: list[MarkRow] = []
        #: Of each flow the newest declaration, as it was written.
        self.flows: dict[str, tuple[float, bytes]] = {}
        self.logs: list[LogsRow] = []
        #: Counts by minute, flow and state; attempts, first and last time by worker and hour.
        self.minutes: dict[tuple[int, str, str], int] = {}
        self.hours: dict[tuple[str, int], tuple[int, float, float]] = {}
        self._epochs: dict[Partition, Epochs] = {}

    def take(self, readings: Iterable[Reading]) -> None:
        """Take in records, in order within each partition."""
        for reading in readings:
            record = reading.record
            place = (record.topic, record.partition)
            progress = self.offsets.get(place)
            if progress is None:
                progress = self.offsets[place] = Progress()
            if record.offset < progress.next_offset:
                continue  # A repeat of the source's own.
            progress.next_offset = record.offset + 1
            match reading.said:
                case StateChange() as change:
                    if self._epochs_of(place, progress).admits(change):
                        self._apply(change, record)
                case Ownership():
                    epochs = self._epochs_of(place, progress)
                    epochs.begin(record.offset)
                    progress.epoch = epochs.current
                case Declaration() as declared:
                    at = declared.at.timestamp()
                    if at >= self.flows.get(declared.name, (at, b""))[0]:
                        self.flows[declared.name] = (at, record.value or b"")
                case Letter() as letter:
                    self.letters.append(letter_row(letter))
                case Mark() as mark:
                    at = record.timestamp_ms / 1000
                    row = (record.partition, record.offset, mark.letter, mark.identity, mark.marked.value, at, mark.replay)
                    self.marks.append(row)
                case LogBatch() as batch:
                    # Of a run that retention has taken, lines that come late go with it.
                    if batch.run_id not in self.forgotten:
                        where, at = place_of(record.partition, record.offset), record.timestamp_ms / 1000
                        self.logs.append(row_of(where, at, batch, record.value or b""))
                case None:
                    continue

    def _epochs_of(self, place: Partition, progress: Progress) -> Epochs:
        known = self._epochs.get(place)
        if known is None:
            known = self._epochs[place] = Epochs()
            known.begin(progress.epoch)
        return known

    def _apply(self, change: StateChange, record: Record) -> None:
        run_id, at = change.run_id, change.at.timestamp()
        run = self.runs.get(run_id)
        if change.seq <= (self.forgotten.get(run_id, -1) if run is None else run.seq):
            return
        if run is None:
            # Where its SCHEDULED has expired the first change that is left has to do.
            run = self.runs[run_id] = RunRow(
                place=place_of(record.partition, record.offset),
                run_id=run_id,
                flow=change.flow,
                state=(change.state if change.is_flow_run else State.RUNNING).value,
                seq=change.seq,
                epoch=change.epoch,
                attempt=change.attempt if change.is_flow_run else 0,
                scheduled_at=at,
                changed_at=at,
            )
        self.changed_runs[run_id] = run
        run.seq, run.epoch, run.changed_at = change.seq, change.epoch, at
        name = None
        if change.task_run_id is None:
            self._apply_run(run, change, at)
        else:
            name = name_of(run_id, change.task_run_id)
            task = self.changed_tasks[run_id, name] = apply_task(self.tasks.get((run_id, name)), run, name, change, at)
            self.tasks[run_id, name] = task
        if change.worker is not None and change.state is State.RUNNING:
            hour = (change.worker, int(at // HOUR) * HOUR)
            count, first, last = self.hours.get(hour, (0, at, at))
            self.hours[hour] = (count + 1, min(first, at), max(last, at))
        if change.seq < KEPT_CHANGES or name is None:
            text = None if change.error is None and change.reason is None else _text(change)
            state = TEXTS[change.state]
            self.changes.append((run.place, change.seq, change.epoch, at, state, change.attempt, name, change.worker, text))

    def _apply_run(self, run: RunRow, change: StateChange, at: float) -> None:
        state = TEXTS[change.state]
        minute = (int(at // MINUTE) * MINUTE, change.flow, state)
        self.minutes[minute] = self.minutes.get(minute, 0) + 1
        run.state, run.attempt = state, change.attempt
        run.reason = change.reason
        run.next_attempt_at = None if change.next_attempt_at is None else change.next_attempt_at.timestamp()
        run.wakes_at = None if change.wakes_at is None else change.wakes_at.timestamp()
        run.worker = change.worker or run.worker
        if change.error is not None:
            run.error_type, run.error_message, run.traceback = _of_failure(change.error)
        if change.state is State.SCHEDULED:
            _schedule(run, change, at)
        elif change.state is State.RUNNING:
            run.started_at = at if run.started_at is None else run.started_at
            if trace_id_of(change.traceparent) != trace_id_of(run.traceparent):
                run.traceparent = change.traceparent  # a producer's repeat lies on the topic, too, and was begun first
        elif change.state in ENDS:
            run.ended_at = at
            if change.state is State.COMPLETED:
                run.error_type = run.error_message = None
            run.result_ref = change.result_ref
            run.result_size, run.result = _payload(change.result)
            if change.tasks is not ABSENT:
                for task in apply_entries(run, change.tasks):
                    self.tasks[run.run_id, task.name] = self.changed_tasks[run.run_id, task.name] = task


def letter_row(letter: Letter) -> LetterRow:
    """The row of a dead letter."""
    record, details = letter.record, letter.details
    texts = {name: content.decode(errors="replace") for name, content in letter.headers if name.startswith("ce_")}
    origin = details.origin
    headers = [(name, content.decode(errors="replace")) for name, content in letter.headers]
    return LetterRow(
        partition=record.partition,
        place=record.offset,
        identity=details.identity,
        at=record.timestamp_ms / 1000,
        reason=details.reason,
        error=details.error,
        flow=details.flow,
        run_id=details.run_id,
        event_topic=None if origin is None else origin.topic,
        event_partition=None if origin is None else origin.partition,
        event_offset=None if origin is None else origin.offset,
        event_source=texts.get("ce_source"),
        event_id=texts.get("ce_id"),
        event_type=texts.get("ce_type"),
        replay_of=details.replay,
        size=None if record.value is None else len(record.value),
        key=None if record.key is None else record.key[:KEPT_BYTES],
        headers=msgspec.json.encode(headers)[:KEPT_BYTES],
        value=None if record.value is None else record.value[:KEPT_BYTES],
    )


def _schedule(run: RunRow, change: StateChange, at: float) -> None:
    run.run_key, run.repeats, run.traceparent = change.key, change.repeats, change.traceparent
    run.parameters_size, run.parameters = _payload(change.parameters)
    event: Origin | None = change.event
    if event is not None:
        run.event_at = at if event.at is None else event.at.timestamp()
        run.event_topic, run.event_partition, run.event_offset = event.topic, event.partition, event.offset
        run.event_source, run.event_id, run.event_type = event.source, event.id, event.type
        if event.replay is not None:
            run.replay_id, run.letter = event.replay.id, event.replay.letter


def _payload(raw: msgspec.Raw) -> tuple[int | None, bytes | None]:
    if raw is ABSENT:
        return None, None
    content = bytes(raw)
    return len(content), content[:KEPT_BYTES]


def _of_failure(error: Failure) -> tuple[str, str, str]:
    return error.type[:_TEXT], error.message[:KEPT_BYTES], error.traceback[-KEPT_BYTES:]


def _text(change: StateChange) -> str | None:
    if change.error is not None:
        return f"{change.error.type}: {change.error.message}"[:_TEXT]
    return None if change.reason is None else change.reason[:_TEXT]
