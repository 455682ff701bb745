"""The history in a SQLite file, the only importer of sqlite3: its lock, its pragmas, its errors as ours."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from engine.history_database import LOCK_SECONDS, Put, Version
from engine.history_errors import REBUILD, HistoryInUse, HistoryUnavailable, HistoryUnreadable
from engine.history_places import IN_MEMORY
from engine.history_schema import APPLICATION_ID, CLUSTERED, INDICES, TABLES, VERSION

#: What cannot be mended by waiting.
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_ELSEWHERE = "Name another path (--history)."


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """SQLite's errors as ours. Raises HistoryUnreadable or HistoryUnavailable."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError) as error:
        # Trying again would end the same way.
        raise HistoryUnreadable(path, f"its rows do not fit together ({error})", REBUILD) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            raise HistoryUnreadable(path, f"it is damaged, or no SQLite database ({error})", REBUILD) from error
        raise HistoryUnavailable(path, str(error)) from error
    except OSError as error:
        raise HistoryUnavailable(path, error.strerror or str(error)) from error


def is_there(path: str) -> bool:
    """Whether there is a file that may be opened."""
    return Path(path).is_file()


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


def _check_version(db: sqlite3.Connection, path: str) -> None:
    found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if found != [APPLICATION_ID, VERSION]:
        raise HistoryUnreadable(path, "it is no history of this version", REBUILD)


class SqliteReader:
    """Queries on a file; see ReadDatabase."""

    def __init__(self, connection: sqlite3.Connection, path: str, file: int | None) -> None:
        self.place = path
        self._db, self._file = connection, file

    @classmethod
    def open(cls, path: str) -> SqliteReader:
        """Open a database that a projector has made. Raises HistoryUnavailable, HistoryUnreadable."""
        try:
            # Looked at first: a file put in its place meanwhile is then taken for another one, and opened next time.
            file = os.stat(path).st_ino  # noqa: PTH116  # as in is_current
        except OSError as error:
            raise HistoryUnavailable(path, f"{error.strerror or error}; `engine history run` makes it") from error
        with _told(path):
            uri = f"file:{quote(str(Path(path).resolve()))}?mode=ro"
            db = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                _check_version(db, path)
                db.execute("PRAGMA cache_size = -65536")
            except BaseException:  # whatever it was goes on up; nothing half open stays behind
                db.close()
                raise
            return cls(db, path, file)

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """See ReadDatabase."""
        with _told(self.place):
            return self._db.execute(query, values).fetchall()

    def version(self) -> Version:
        """See ReadDatabase."""
        return self._file or 0, self.all("PRAGMA data_version")[0][0]

    def is_current(self) -> bool:
        """See ReadDatabase."""
        if self._file is None:
            return True
        try:
            return os.stat(self.place).st_ino == self._file  # noqa: PTH116  # no Path made for each question
        except OSError:
            return False  # deleted, or its folder is: opening it says so

    def close(self) -> None:
        """See ReadDatabase."""
        self._db.close()


class SqliteWriter:
    """The one writer of a file; see WriteDatabase. A lock file beside it says that there is one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock: IO[str] | None = None
        self._file: int | None = None
        self._db: sqlite3.Connection | None = None

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection that is open."""
        if self._db is None:
            raise HistoryUnavailable(self._path, "it is not open")
        return self._db

    def connect(self, *, fresh: bool) -> None:
        """See WriteDatabase."""
        if self._path == IN_MEMORY:
            if self._db is None:  # else there is no other place where its tables are
                self._db = self._connect()
            return
        with _told(self._path):
            self._disconnect()
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            db = self._db = self._connect()
            if fresh and self._is_damaged(db):
                db.close()
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
                db = self._db = self._connect()
            db.execute("PRAGMA journal_mode = WAL")
            # A crash of the machine may take the last batches, with their offsets: then they are read again.
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA cache_size = -65536")
            # 64 MiB of log before it is worked in: the pages of indices that many batches touch are then written once.
            db.execute("PRAGMA wal_autocheckpoint = 16384")
            self._file = Path(self._path).stat().st_ino

    def close(self) -> None:
        """See WriteDatabase."""
        self._disconnect()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def is_there(self) -> bool:
        """See WriteDatabase: a file that was deleted takes writes as if nothing had happened."""
        if self._file is None:
            return True
        try:
            return Path(self._path).stat().st_ino == self._file
        except OSError:
            return False  # deleted, or its folder is

    def found(self) -> int | None:
        """See WriteDatabase."""
        [(application,)] = self.all("PRAGMA application_id")
        [(version,)] = self.all("PRAGMA user_version")
        [(tables,)] = self.all("SELECT count(*) FROM sqlite_master")
        if tables and application != APPLICATION_ID:
            raise HistoryUnreadable(self._path, "it is not a history of this engine", _ELSEWHERE)
        return int(version) if tables else None

    def make(self) -> None:
        """See WriteDatabase."""
        for name, columns in TABLES.items():
            self.run(f"DROP TABLE IF EXISTS {name}")
            self.run(f"CREATE TABLE {name} ({columns}){' WITHOUT ROWID' if name in CLUSTERED else ''}")
        for statement in (*INDICES, f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}"):
            self.run(statement)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See WriteDatabase."""
        db = self.connection
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:  # whatever it was goes on up; the database stays as it was
            if db.in_transaction:  # a full disk ends the transaction by itself
                self.run("ROLLBACK")
            raise

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """See WriteDatabase."""
        with _told(self._path):
            return self.connection.execute(query, values).fetchall()

    def run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """See WriteDatabase."""
        with _told(self._path):
            self.connection.execute(statement, values)

    def put_all(self, put: Put, rows: Iterable[Sequence[Any]]) -> None:
        """See WriteDatabase."""
        marks = ", ".join("?" * len(put.columns))
        with _told(self._path):
            self.connection.executemany(
                f"INSERT INTO {put.table} ({', '.join(put.columns)}) VALUES ({marks}) {put.conflict}",  # noqa: S608
                rows,
            )

    def reader(self) -> SqliteReader:
        """See WriteDatabase."""
        return SqliteReader(self.connection, self._path, self._file)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = Path(f"{self._path}.lock").open("a")  # noqa: SIM115  # held until it is closed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise HistoryInUse(self._path) from error
        self._lock = lock

    def _is_damaged(self, db: sqlite3.Connection) -> bool:
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            # What is no database at all may be somebody's only copy of something else: it stays.
            return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT
        [found] = db.execute("PRAGMA application_id").fetchone()
        return bool(found == APPLICATION_ID) and db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
