"""The tables of the history, in SQLite's words for types, and their version: text, rows and what they mean; does no I/O.

Times are seconds since the epoch. A run has a *place*, made of where its first record lies on the state topic: it is the same
whenever the topic is read, grows with time, and stands for the run in the other tables. Payloads (parameters, results,
tracebacks) are kept up to ``KEPT_BYTES`` of each, with their whole size beside them: they are on the topic.
"""

from __future__ import annotations

import msgspec

from engine.broker import Partition

#: Moves whenever a table or the meaning of a column does: an older database is then made anew from the topics.
VERSION = 2
#: Marks the database as ours ("KDEh").
APPLICATION_ID = 0x4B444568
#: Of one payload.
KEPT_BYTES = 65_536
#: Changes of one run that are kept; the run's own always are.
KEPT_CHANGES = 10_000
#: Attempts of one task run that are kept, the latest.
KEPT_ATTEMPTS = 100
#: Log lines of one run that are kept, the latest, and what they may take.
KEPT_LINES, KEPT_LOG_BYTES = 20_000, 16 * 1_048_576
MINUTE, HOUR = 60, 3_600

_PARTITION_BITS = 12


def place_of(partition: int, offset: int) -> int:
    """The place of a run whose first record lies there."""
    return offset << _PARTITION_BITS | partition


def where_of(place: int) -> tuple[int, int]:
    """Partition and offset of the first record of the run at a place."""
    return place & ((1 << _PARTITION_BITS) - 1), place >> _PARTITION_BITS


class RunRow(msgspec.Struct, gc=False):
    """A row of ``runs``, its fields in the order of the columns. Of the payloads None means: as before."""

    place: int
    run_id: str
    flow: str
    state: str
    seq: int
    epoch: int
    attempt: int
    scheduled_at: float
    changed_at: float
    started_at: float | None = None
    ended_at: float | None = None
    #: The ordering key.
    run_key: str | None = None
    repeats: str | None = None
    event_at: float | None = None
    event_topic: str | None = None
    event_partition: int | None = None
    event_offset: int | None = None
    event_source: str | None = None
    event_id: str | None = None
    event_type: str | None = None
    replay_id: str | None = None
    #: The dead letter that it is a replay of.
    letter: str | None = None
    traceparent: str | None = None
    #: Task runs seen, and those of them that have ended.
    tasks: int = 0
    tasks_ended: int = 0
    packed: int = 0
    worker: str | None = None
    next_attempt_at: float | None = None
    wakes_at: float | None = None
    reason: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    result_ref: str | None = None
    parameters_size: int | None = None
    result_size: int | None = None
    parameters: bytes | None = None
    result: bytes | None = None
    traceback: str | None = None


class Attempt(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """One attempt of a task run; all but the number may be unknown where its changes have expired."""

    attempt: int
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    worker: str | None = None
    #: The state it ended in; RETRYING where another attempt follows.
    outcome: str | None = None
    error: str | None = None


class TaskRow(msgspec.Struct, gc=False):
    """A row of ``task_runs``, its fields in the order of the columns."""

    place: int
    #: The id of the task run without that of the run: ``task/index``.
    name: str
    task: str
    state: str
    attempt: int
    map_index: int | None = None
    scheduled_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    wakes_at: float | None = None
    worker: str | None = None
    #: A JSON array of what it takes the results of, and the task run that started it, named like this one.
    parents: str = "[]"
    spawned_by: str | None = None
    reason: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    #: A JSON array of ``Attempt``.
    attempts: bytes = b"[]"
    traceback: str | None = None


#: (place, seq, epoch, at, state, attempt, name of the task run, worker, text)
ChangeRow = tuple[int, int, int, float, str, int, str | None, str | None, str | None]


class LetterRow(msgspec.Struct, gc=False):
    """A row of ``letters``, its fields in the order of the columns."""

    partition: int
    place: int
    #: The same for each copy of one letter.
    identity: str
    at: float
    reason: str
    error: str
    flow: str | None
    run_id: str | None
    event_topic: str | None
    event_partition: int | None
    event_offset: int | None
    event_source: str | None
    event_id: str | None
    event_type: str | None
    replay_of: str | None
    size: int | None
    key: bytes | None
    headers: bytes
    value: bytes | None


#: (partition, offset, letter, identity, marked, at, replay)
MarkRow = tuple[int, int, str, str, str, float, str | None]

#: Columns of ``runs`` that a later change may change; payloads only from nothing to something.
RUN_MUTABLE = (
    *("state", "seq", "epoch", "attempt", "changed_at", "started_at", "ended_at", "tasks", "tasks_ended", "packed"),
    *("worker", "next_attempt_at", "wakes_at", "reason", "error_type", "error_message", "result_ref", "result_size"),
)
RUN_PAYLOADS = ("parameters", "result", "traceback")
#: What a batch needs to know of a run it goes on with.
RUN_KNOWN = tuple(name for name in RunRow.__struct_fields__ if name not in RUN_PAYLOADS)
TASK_KNOWN = tuple(name for name in TaskRow.__struct_fields__ if name != "traceback")

_TYPES = {"int": "INTEGER", "float": "REAL", "bytes": "BLOB", "str": "TEXT"}


def _columns(row: type[msgspec.Struct]) -> str:
    # Annotations are text here; the first word of each is its type, and one that may be None says so.
    fields = row.__annotations__.items()
    return ", ".join(f"{name} {_TYPES[kind.split()[0]]}{'' if 'None' in kind else ' NOT NULL'}" for name, kind in fields)


#: The columns of each table.
TABLES = {
    "offsets": (
        "topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL, epoch INTEGER NOT NULL, PRIMARY KEY (topic, partition)"
    ),
    "runs": f"{_columns(RunRow)}, PRIMARY KEY (place)",
    "task_runs": f"{_columns(TaskRow)}, PRIMARY KEY (place, name)",
    "changes": (
        "place INTEGER, seq INTEGER, epoch INTEGER NOT NULL, at REAL NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL,"
        " name TEXT, worker TEXT, text TEXT, PRIMARY KEY (place, seq)"
    ),
    "letters": f"{_columns(LetterRow)}, PRIMARY KEY (partition, place)",
    "marks": (
        "partition INTEGER, place INTEGER, letter TEXT NOT NULL, identity TEXT NOT NULL, marked TEXT NOT NULL,"
        " at REAL NOT NULL, replay TEXT, PRIMARY KEY (partition, place)"
    ),
    "logs": (
        "place INTEGER PRIMARY KEY, run_id TEXT NOT NULL, at REAL NOT NULL, name TEXT, lines INTEGER NOT NULL,"
        " size INTEGER NOT NULL, content BLOB NOT NULL"
    ),
    "minutes": "minute INTEGER, flow TEXT, state TEXT, count INTEGER NOT NULL, PRIMARY KEY (minute, flow, state)",
    "worker_hours": (
        "worker TEXT, hour INTEGER, attempts INTEGER NOT NULL, first_at REAL NOT NULL, last_at REAL NOT NULL,"
        " PRIMARY KEY (worker, hour)"
    ),
    # As the engines that run them declare them, see engine.declarations.
    "flows": "name TEXT, at REAL NOT NULL, declaration BLOB NOT NULL, PRIMARY KEY (name)",
    "forgotten": "run_id TEXT, seq INTEGER NOT NULL, ended_at REAL NOT NULL, PRIMARY KEY (run_id)",
    "app": "name TEXT, PRIMARY KEY (name)",
}

#: In SQLite their keys are not row ids, so that what belongs together lies together.
CLUSTERED = frozenset(TABLES) - {"runs", "logs"}

INDICES = (
    "CREATE UNIQUE INDEX runs_run_id ON runs (run_id)",
    # Lists go from the newest to the oldest, and end after a page; so each filter has an index in that order.
    "CREATE INDEX runs_scheduled ON runs (scheduled_at)",
    # With what the last runs of a flow are judged by, so that hundreds of them need not be looked up.
    "CREATE INDEX runs_flow ON runs (flow, scheduled_at, ended_at, started_at, state)",
    "CREATE INDEX runs_state ON runs (state, scheduled_at)",
    "CREATE INDEX runs_flow_state ON runs (flow, state, scheduled_at)",
    "CREATE INDEX runs_key ON runs (run_key, scheduled_at) WHERE run_key IS NOT NULL",
    # For a key that half of all runs have, and a filter that none of them fits.
    "CREATE INDEX runs_key_state ON runs (run_key, state, scheduled_at) WHERE run_key IS NOT NULL",
    "CREATE INDEX runs_key_flow ON runs (run_key, flow, scheduled_at) WHERE run_key IS NOT NULL",
    "CREATE INDEX runs_repeats ON runs (repeats) WHERE repeats IS NOT NULL",
    "CREATE INDEX runs_ended ON runs (ended_at) WHERE ended_at IS NOT NULL",
    "CREATE INDEX runs_event ON runs (event_topic, event_partition, event_offset) WHERE event_topic IS NOT NULL",
    "CREATE INDEX runs_event_at ON runs (scheduled_at) WHERE event_topic IS NOT NULL",
    "CREATE INDEX runs_event_id ON runs (event_id, event_source) WHERE event_id IS NOT NULL",
    "CREATE INDEX letters_at ON letters (at)",
    "CREATE INDEX letters_identity ON letters (identity)",
    "CREATE INDEX letters_event ON letters (event_topic, event_partition, event_offset)",
    "CREATE INDEX marks_identity ON marks (identity)",
    # With all that has to be known of a run's rows, but what they hold.
    "CREATE INDEX logs_run ON logs (run_id, place, lines, size)",
    "CREATE INDEX logs_at ON logs (at)",
    "CREATE INDEX forgotten_ended ON forgotten (ended_at)",
)


class Progress(msgspec.Struct):
    """How far a partition has been read."""

    next_offset: int = 0
    #: The latest ownership record; -1 before the first.
    epoch: int = -1


Offsets = dict[Partition, Progress]
