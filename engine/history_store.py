"""The history, written: opens its database, loads what a batch needs, writes rows and offsets in one transaction, forgets.

All of it blocks; the projector calls it from a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from engine.history_database import Put, ReadDatabase, WriteDatabase, chunks
from engine.history_errors import REBUILD, HistoryUnreadable
from engine.history_opener import writing
from engine.history_places import shown
from engine.history_schema import (
    KEPT_LINES,
    KEPT_LOG_BYTES,
    RUN_KNOWN,
    RUN_MUTABLE,
    RUN_PAYLOADS,
    TASK_KNOWN,
    VERSION,
    LetterRow,
    Offsets,
    Progress,
    RunRow,
    TaskRow,
)
from engine.projection import Book, Readings

#: Runs that are forgotten in one transaction, so that nobody waits long for the lock.
_FORGET = 2_000


def _upsert(table: str, columns: Sequence[str], key: str, replaced: Iterable[str], kept: Iterable[str] = ()) -> Put:
    new = [f"{name} = excluded.{name}" for name in replaced]
    new += [f"{name} = coalesce(excluded.{name}, {table}.{name})" for name in kept]
    return Put(table, tuple(columns), f"ON CONFLICT ({key}) DO UPDATE SET {', '.join(new)}")


_RUN = _upsert("runs", RunRow.__struct_fields__, "place", RUN_MUTABLE, RUN_PAYLOADS)
_TASK = _upsert("task_runs", TaskRow.__struct_fields__, "place, name", TASK_KNOWN[2:], ["traceback"])
_CHANGE = Put("changes", ("place", "seq", "epoch", "at", "state", "attempt", "name", "worker", "text"))
_LETTER = Put("letters", LetterRow.__struct_fields__)
_MARK = Put("marks", ("partition", "place", "letter", "identity", "marked", "at", "replay"))
_FLOW = Put(
    "flows",
    ("name", "at", "declaration"),
    "ON CONFLICT (name) DO UPDATE SET at = excluded.at, declaration = excluded.declaration WHERE excluded.at >= flows.at",
)
_LOGS = Put("logs", ("place", "run_id", "at", "name", "lines", "size", "content"))
_OFFSET = _upsert("offsets", ["topic", "partition", "next_offset", "epoch"], "topic, partition", ["next_offset", "epoch"])
_MINUTE = Put(
    "minutes",
    ("minute", "flow", "state", "count"),
    "ON CONFLICT (minute, flow, state) DO UPDATE SET count = minutes.count + excluded.count",
)
_HOUR = Put(
    "worker_hours",
    ("worker", "hour", "attempts", "first_at", "last_at"),
    "ON CONFLICT (worker, hour) DO UPDATE SET attempts = worker_hours.attempts + excluded.attempts,"
    " first_at = CASE WHEN excluded.first_at < worker_hours.first_at THEN excluded.first_at ELSE worker_hours.first_at END,"
    " last_at = CASE WHEN excluded.last_at > worker_hours.last_at THEN excluded.last_at ELSE worker_hours.last_at END",
)
_FORGOTTEN = _upsert("forgotten", ["run_id", "seq", "ended_at"], "run_id", ["seq", "ended_at"])


class HistoryStore:
    """One writer's connection. Close it; a store that has raised HistoryUnavailable may be used on."""

    def __init__(self, place: str, app: str) -> None:
        """Raises HistoryUnreadable where what is to speak to the database is not installed."""
        #: Where it lies, without secrets.
        self.place = shown(place)
        self.database: WriteDatabase = writing(place)
        self._app = app

    def reader(self) -> ReadDatabase:
        """For queries on a database in memory."""
        return self.database.reader()

    def open(self, *, fresh: bool = False) -> bool:
        """Open, and make the tables where there are none, or those of an older version; True where they are new.

        ``fresh`` drops what is there. Raises HistoryInUse, HistoryUnreadable, HistoryUnavailable.
        """
        try:
            self.database.connect(fresh=fresh)
            is_new = not self._has_tables() or fresh
            if is_new:
                self.empty()
            else:
                self._check_owner()
            return is_new
        except BaseException:  # whatever it was goes on up; nothing half open stays behind
            self.close()
            raise

    def close(self) -> None:
        """Free everything."""
        self.database.close()

    def offsets(self) -> Offsets:
        """How far each partition was read, as of the last batch written."""
        found = self.database.all("SELECT topic, partition, next_offset, epoch FROM offsets")
        return {(topic, partition): Progress(offset, epoch) for topic, partition, offset, epoch in found}

    def is_there(self) -> bool:
        """Whether the database is still that which was opened."""
        return self.database.is_there()

    def write(self, readings: Readings, offsets: Offsets) -> Book:
        """Take in a batch: all of it with its offsets, or nothing. Answers what it has come to."""
        db, astuple = self.database, msgspec.structs.astuple
        with db.transaction():
            book = Book(offsets)
            self._load(readings, book)
            book.take(readings.readings)
            db.put_all(_RUN, map(astuple, book.changed_runs.values()))
            db.put_all(_TASK, map(astuple, book.changed_tasks.values()))
            db.put_all(_CHANGE, book.changes)
            db.put_all(_LETTER, map(astuple, book.letters))
            db.put_all(_MARK, book.marks)
            db.put_all(_FLOW, [(name, *value) for name, value in book.flows.items()])
            db.put_all(_LOGS, book.logs)
            self._trim_logs(sorted({row[1] for row in book.logs}))
            db.put_all(_MINUTE, [(*key, count) for key, count in book.minutes.items()])
            db.put_all(_HOUR, [(*key, *value) for key, value in book.hours.items()])
            db.put_all(_OFFSET, [(*key, known.next_offset, known.epoch) for key, known in book.offsets.items()])
        return book

    def forget(self, now: float, retention_seconds: float, retention_runs: int, window_seconds: float) -> int:
        """Drop ended runs that are too old or too many, the oldest first, and what else is too old; answers how many runs.

        For ``window_seconds`` after its end a run's id is remembered, so that a repeat of its changes makes no new run.
        """
        db, limit, forgotten = self.database, now - retention_seconds, 0
        [(count,)] = db.all("SELECT count(*) FROM runs WHERE ended_at IS NOT NULL")
        # The oldest of those that stay: all before it, by time and place, go.
        excess = max(0, count - retention_runs)
        query = (
            "SELECT place, run_id, seq, ended_at FROM runs WHERE ended_at IS NOT NULL AND (ended_at, place) > (?, ?)"
            " ORDER BY ended_at, place LIMIT ?"
        )
        # Where the last ones lay: PostgreSQL passes over all that was deleted, over and over, until it is vacuumed.
        behind = [float("-inf"), 0]
        while True:
            with db.transaction():
                rows = db.all(query, [*behind, _FORGET])
                gone = [row for number, row in enumerate(rows) if number < excess - forgotten or row[3] < limit]
                for places, marks in chunks([row[0] for row in gone]):
                    for table in ("changes", "task_runs", "runs"):
                        db.run(f"DELETE FROM {table} WHERE place IN ({marks})", places)  # noqa: S608
                for run_ids, marks in chunks([row[1] for row in gone]):
                    db.run(f"DELETE FROM logs WHERE run_id IN ({marks})", run_ids)  # noqa: S608
                db.put_all(_FORGOTTEN, [row[1:] for row in gone])
            forgotten += len(gone)
            if len(gone) < _FORGET:
                break
            behind = [gone[-1][3], gone[-1][0]]
        with db.transaction():
            db.run("DELETE FROM forgotten WHERE ended_at < ?", [now - window_seconds])
            for table, column in (("logs", "at"), ("letters", "at"), ("marks", "at"), ("minutes", "minute")):
                db.run(f"DELETE FROM {table} WHERE {column} < ?", [limit])  # noqa: S608
            db.run("DELETE FROM worker_hours WHERE hour < ?", [limit])
        return forgotten

    def empty(self) -> None:
        """Drop all rows and offsets, so that the topics are read from their beginning."""
        with self.database.transaction():
            self.database.make()
            self.database.put_all(Put("app", ("name",)), [(self._app,)])

    def _has_tables(self) -> bool:
        """Whether there are those of this version."""
        version = self.database.found()
        if version is not None and version > VERSION:
            raise HistoryUnreadable(self.place, f"a newer engine made it (version {version}, not {VERSION})", REBUILD)
        return version == VERSION

    def _check_owner(self) -> None:
        [(owner,)] = self.database.all("SELECT name FROM app") or [(self._app,)]
        if owner != self._app:
            raise HistoryUnreadable(self.place, f"it belongs to app {owner}, not {self._app}", "Name another one (--history).")

    def _load(self, readings: Readings, book: Book) -> None:
        db = self.database
        run_ids = readings.run_ids()
        for ids, marks in chunks(sorted(run_ids)):
            for row in db.all(f"SELECT {', '.join(RUN_KNOWN)} FROM runs WHERE run_id IN ({marks})", ids):  # noqa: S608
                run = RunRow(**dict(zip(RUN_KNOWN, row, strict=True)))
                book.runs[run.run_id] = run
        for ids, marks in chunks(sorted(run_ids | readings.logged_run_ids())):
            book.forgotten.update(db.all(f"SELECT run_id, seq FROM forgotten WHERE run_id IN ({marks})", ids))  # noqa: S608
        run_ids_of: dict[int, str] = {run.place: run_id for run_id, run in book.runs.items()}
        wanted = [(book.runs[run_id].place, name) for run_id, name in readings.task_runs() if run_id in book.runs]
        for some, marks in chunks(wanted, "(?, ?)"):
            # All at once, for a server may be far away; and such a join is looked up pair by pair in the key by both databases.
            query = (
                f"SELECT {', '.join(TASK_KNOWN)} FROM (VALUES {marks}) AS w"  # noqa: S608
                " CROSS JOIN task_runs WHERE place = w.column1 AND name = w.column2"
            )
            for row in db.all(query, [part for pair in some for part in pair]):
                task = TaskRow(**dict(zip(TASK_KNOWN, row, strict=True)))
                book.tasks[run_ids_of[task.place], task.name] = task

    def _trim_logs(self, run_ids: Sequence[str]) -> None:
        """Of runs that have said too much keep the latest, whole records of them."""
        for some, marks in chunks(run_ids):
            said = f"SELECT run_id FROM logs WHERE run_id IN ({marks}) GROUP BY run_id HAVING sum(lines) > ? OR sum(size) > ?"  # noqa: S608
            for (run_id,) in self.database.all(said, [*some, KEPT_LINES, KEPT_LOG_BYTES]):
                self._trim(run_id)

    def _trim(self, run_id: str) -> None:
        lines, size = 0, 0
        query = "SELECT place, lines, size FROM logs WHERE run_id = ? ORDER BY place DESC"
        for place, more, bytes_more in self.database.all(query, [run_id]):
            lines, size = lines + more, size + bytes_more
            if lines > KEPT_LINES or size > KEPT_LOG_BYTES:
                self.database.run("DELETE FROM logs WHERE run_id = ? AND place <= ?", [run_id, place])
                return
