"""The history database, written: opens it, loads what a batch needs, writes rows and offsets in one transaction, forgets.

Only this module and ``history`` know SQLite. All of it blocks; the projector calls it from a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from engine.history_errors import HistoryInUse, HistoryUnavailable, HistoryUnreadable
from engine.history_schema import (
    APPLICATION_ID,
    KEPT_LINES,
    KEPT_LOG_BYTES,
    RUN_KNOWN,
    RUN_MUTABLE,
    RUN_PAYLOADS,
    TABLES,
    TASK_KNOWN,
    VERSION,
    LetterRow,
    Offsets,
    Progress,
    RunRow,
    TaskRow,
    statements,
)
from engine.projection import Book, Readings

#: A database that lives as long as its connection.
IN_MEMORY = ":memory:"
#: How long a write waits for a reader or writer that holds a lock.
LOCK_SECONDS = 5.0
#: Values of one statement, far below SQLite's own limit.
_CHUNK = 500
#: Runs that are forgotten in one transaction, so that nobody waits long for the lock.
_FORGET = 2_000
#: What cannot be mended by waiting.
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_REBUILD = "Run: engine history rebuild"


def _insert(table: str, columns: Sequence[str], conflict: str = "") -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) {conflict}"  # noqa: S608


def _upsert(table: str, columns: Sequence[str], key: str, replaced: Iterable[str], kept: Iterable[str]) -> str:
    new = [f"{name} = excluded.{name}" for name in replaced]
    new += [f"{name} = coalesce(excluded.{name}, {table}.{name})" for name in kept]
    return _insert(table, columns, f"ON CONFLICT ({key}) DO UPDATE SET {', '.join(new)}")


_RUN = _upsert("runs", RunRow.__struct_fields__, "place", RUN_MUTABLE, RUN_PAYLOADS)
_TASK = _upsert("task_runs", TaskRow.__struct_fields__, "place, name", TASK_KNOWN[2:], ["traceback"])
_CHANGE = _insert("changes", ["place", "seq", "epoch", "at", "state", "attempt", "name", "worker", "text"])
_LETTER = _insert("letters", LetterRow.__struct_fields__)
_MARK = _insert("marks", ["partition", "place", "letter", "identity", "marked", "at", "replay"])
_FLOW = _insert(
    "flows",
    ["name", "at", "declaration"],
    "ON CONFLICT DO UPDATE SET at = excluded.at, declaration = excluded.declaration WHERE excluded.at >= flows.at",
)
_LOGS = _insert("logs", ["place", "run_id", "at", "name", "lines", "size", "content"])
_OFFSET = _upsert("offsets", ["topic", "partition", "next_offset", "epoch"], "topic, partition", ["next_offset", "epoch"], ())
_MINUTE = _insert("minutes", ["minute", "flow", "state", "count"], "ON CONFLICT DO UPDATE SET count = count + excluded.count")
_HOUR = _insert(
    "worker_hours",
    ["worker", "hour", "attempts", "first_at", "last_at"],
    "ON CONFLICT DO UPDATE SET attempts = attempts + excluded.attempts,"
    " first_at = min(first_at, excluded.first_at), last_at = max(last_at, excluded.last_at)",
)


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """SQLite's errors as ours. Raises HistoryUnreadable or HistoryUnavailable."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError) as error:
        # Trying again would end the same way.
        raise HistoryUnreadable(path, f"its rows do not fit together ({error})", _REBUILD) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            raise HistoryUnreadable(path, f"it is damaged, or no SQLite database ({error})", _REBUILD) from error
        raise HistoryUnavailable(path, str(error)) from error
    except OSError as error:
        raise HistoryUnavailable(path, error.strerror or str(error)) from error


def is_in_use(path: str) -> bool:
    """Whether another process writes to the database now."""
    try:
        with Path(f"{path}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # No folder, or none that may be written to: whoever opens it says so.
    return False


class HistoryStore:
    """One writer's connection. Close it; a store that has raised HistoryUnavailable may be used on."""

    def __init__(self, path: str, app: str) -> None:
        self.path = path
        self._app = app
        self._lock: IO[str] | None = None
        self._file: int | None = None
        self._db: sqlite3.Connection | None = None

    @property
    def connection(self) -> sqlite3.Connection:
        """For queries on a database in memory."""
        if self._db is None:
            raise HistoryUnavailable(self.path, "it is not open")
        return self._db

    def open(self, *, fresh: bool = False) -> bool:
        """Open, and make the tables where there are none, or those of an older version; True where they are new.

        ``fresh`` drops what is there. Raises HistoryInUse, HistoryUnreadable, HistoryUnavailable.
        """
        if self.path == IN_MEMORY and self._db is not None and not fresh:
            return False  # there is no other place where its tables are
        with told(self.path):
            if self.path != IN_MEMORY:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
                self._take_lock()
            try:
                return self._open(fresh)
            except BaseException:  # whatever it was goes on up; nothing half open stays behind
                self.close()
                raise

    def close(self) -> None:
        """Free everything."""
        db, self._db = self._db, None
        if db is not None:
            db.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def offsets(self) -> Offsets:
        """How far each partition was read, as of the last batch written."""
        with told(self.path):
            found = self.connection.execute("SELECT topic, partition, next_offset, epoch FROM offsets")
            return {(topic, partition): Progress(offset, epoch) for topic, partition, offset, epoch in found}

    def is_there(self) -> bool:
        """Whether the file is still that which was opened: one that was deleted takes writes as if nothing had happened."""
        if self._file is None:
            return True
        try:
            return Path(self.path).stat().st_ino == self._file
        except OSError:
            return False  # deleted, or its folder is

    def write(self, readings: Readings, offsets: Offsets) -> Book:
        """Take in a batch: all of it with its offsets, or nothing. Answers what it has come to."""
        with told(self.path), self._transaction() as db:
            book = Book(offsets)
            self._load(db, readings, book)
            book.take(readings.readings)
            astuple = msgspec.structs.astuple
            db.executemany(_RUN, map(astuple, book.changed_runs.values()))
            db.executemany(_TASK, map(astuple, book.changed_tasks.values()))
            db.executemany(_CHANGE, book.changes)
            db.executemany(_LETTER, map(astuple, book.letters))
            db.executemany(_MARK, book.marks)
            db.executemany(_FLOW, [(name, *value) for name, value in book.flows.items()])
            db.executemany(_LOGS, book.logs)
            self._trim_logs(db, {row[1] for row in book.logs})
            db.executemany(_MINUTE, [(*key, count) for key, count in book.minutes.items()])
            db.executemany(_HOUR, [(*key, *value) for key, value in book.hours.items()])
            db.executemany(_OFFSET, [(*key, known.next_offset, known.epoch) for key, known in book.offsets.items()])
        return book

    def forget(self, now: float, retention_seconds: float, retention_runs: int, window_seconds: float) -> int:
        """Drop ended runs that are too old or too many, the oldest first, and what else is too old; answers how many runs.

        For ``window_seconds`` after its end a run's id is remembered, so that a repeat of its changes makes no new run.
        """
        limit, forgotten = now - retention_seconds, 0
        with told(self.path):
            db = self.connection
            [count] = db.execute("SELECT count(*) FROM runs WHERE ended_at IS NOT NULL").fetchone()
            # The oldest of those that stay: all before it, by time and place, go.
            excess = max(0, count - retention_runs)
            while True:
                with self._transaction():
                    rows = db.execute(
                        "SELECT place, run_id, seq, ended_at FROM runs WHERE ended_at IS NOT NULL"
                        " ORDER BY ended_at, place LIMIT ?",
                        [_FORGET],
                    ).fetchall()
                    gone = [row for number, row in enumerate(rows) if number < excess - forgotten or row[3] < limit]
                    places = [row[:1] for row in gone]
                    for table in ("changes", "task_runs", "runs"):
                        db.executemany(f"DELETE FROM {table} WHERE place = ?", places)  # noqa: S608
                    db.executemany("DELETE FROM logs WHERE run_id = ?", [row[1:2] for row in gone])
                    db.executemany("INSERT OR REPLACE INTO forgotten VALUES (?, ?, ?)", [row[1:] for row in gone])
                forgotten += len(gone)
                if len(gone) < _FORGET:
                    break
            with self._transaction():
                db.execute("DELETE FROM forgotten WHERE ended_at < ?", [now - window_seconds])
                db.execute("DELETE FROM logs WHERE at < ?", [limit])
                db.execute("DELETE FROM letters WHERE at < ?", [limit])
                db.execute("DELETE FROM marks WHERE at < ?", [limit])
                db.execute("DELETE FROM minutes WHERE minute < ?", [limit])
                db.execute("DELETE FROM worker_hours WHERE hour < ?", [limit])
        return forgotten

    def empty(self) -> None:
        """Drop all rows and offsets, so that the topics are read from their beginning."""
        with told(self.path), self._transaction() as db:
            self._drop(db)
            self._make(db)

    def _load(self, db: sqlite3.Connection, readings: Readings, book: Book) -> None:
        names: dict[str, list[str]] = {}
        for ids in _chunks(sorted(readings.run_ids())):
            marks = ", ".join("?" * len(ids))
            for row in db.execute(f"SELECT {', '.join(RUN_KNOWN)} FROM runs WHERE run_id IN ({marks})", ids):  # noqa: S608
                run = RunRow(**dict(zip(RUN_KNOWN, row, strict=True)))
                book.runs[run.run_id] = run
            book.forgotten.update(db.execute(f"SELECT run_id, seq FROM forgotten WHERE run_id IN ({marks})", ids))  # noqa: S608
        for ids in _chunks(sorted(readings.logged_run_ids())):
            marks = ", ".join("?" * len(ids))
            book.forgotten.update(db.execute(f"SELECT run_id, seq FROM forgotten WHERE run_id IN ({marks})", ids))  # noqa: S608
        for run_id, name in readings.task_runs():
            if run_id in book.runs:
                names.setdefault(run_id, []).append(name)
        for run_id, wanted in names.items():
            for some in _chunks(wanted):
                marks = ", ".join("?" * len(some))
                query = f"SELECT {', '.join(TASK_KNOWN)} FROM task_runs WHERE place = ? AND name IN ({marks})"  # noqa: S608
                for row in db.execute(query, [book.runs[run_id].place, *some]):
                    task = TaskRow(**dict(zip(TASK_KNOWN, row, strict=True)))
                    book.tasks[run_id, task.name] = task

    def _trim_logs(self, db: sqlite3.Connection, run_ids: Iterable[str]) -> None:
        """Of runs that have said too much keep the latest, whole records of them."""
        for run_id in run_ids:
            lines, size, first = 0, 0, None
            for place, more, bytes_more in db.execute(
                "SELECT place, lines, size FROM logs WHERE run_id = ? ORDER BY place DESC", [run_id]
            ):
                lines, size = lines + more, size + bytes_more
                if lines > KEPT_LINES or size > KEPT_LOG_BYTES:
                    first = place
                    break
            if first is not None:
                db.execute("DELETE FROM logs WHERE run_id = ? AND place <= ?", [run_id, first])

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = Path(f"{self.path}.lock").open("a")  # noqa: SIM115  # held until it is closed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise HistoryInUse(self.path) from error
        self._lock = lock

    def _open(self, fresh: bool) -> bool:
        db = self._db = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        if fresh and self._is_damaged(db):
            db.close()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            db = self._db = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        # A crash of the machine may take the last batches, with their offsets: then they are read again.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA cache_size = -65536")
        # 64 MiB of log before it is worked in: the pages of indices that many batches touch are then written once.
        db.execute("PRAGMA wal_autocheckpoint = 16384")
        [application] = db.execute("PRAGMA application_id").fetchone()
        [version] = db.execute("PRAGMA user_version").fetchone()
        [tables] = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION_ID:
            raise HistoryUnreadable(self.path, "it is not a history of this engine", "Name another path (--history).")
        if tables and version > VERSION:
            raise HistoryUnreadable(self.path, f"a newer engine made it (version {version}, not {VERSION})", _REBUILD)
        if not fresh and version == VERSION:
            [(owner,)] = db.execute("SELECT name FROM app").fetchall() or [(self._app,)]
            if owner != self._app:
                raise HistoryUnreadable(
                    self.path, f"it belongs to app {owner}, not {self._app}", "Name another path (--history)."
                )
        is_new = fresh or version != VERSION
        if is_new:
            with self._transaction():
                self._drop(db)
                self._make(db)
        self._file = None if self.path == IN_MEMORY else Path(self.path).stat().st_ino
        return is_new

    def _is_damaged(self, db: sqlite3.Connection) -> bool:
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            # What is no database at all may be somebody's only copy of something else: it stays.
            return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT
        [found] = db.execute("PRAGMA application_id").fetchone()
        return bool(found == APPLICATION_ID) and db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)

    def _drop(self, db: sqlite3.Connection) -> None:
        for name in TABLES:
            db.execute(f"DROP TABLE IF EXISTS {name}")

    def _make(self, db: sqlite3.Connection) -> None:
        for statement in statements():
            db.execute(statement)
        db.execute("INSERT INTO app VALUES (?)", [self._app])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self.connection
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:  # whatever it was goes on up; the database stays as it was
            if db.in_transaction:  # a full disk ends the transaction by itself
                db.execute("ROLLBACK")
            raise


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
