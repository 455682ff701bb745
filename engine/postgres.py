"""The history in a PostgreSQL database, the only importer of psycopg: its types, its lock, its errors as ours.

The tables lie in the schema that the connection's search path names first. The one writer holds an advisory lock of the session
through which it writes: whoever loses the session loses the lock and what was not committed with it.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import errors
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format

from engine.history_database import LOCK_SECONDS, Put, Version
from engine.history_errors import REBUILD, HistoryInUse, HistoryUnavailable, HistoryUnreadable
from engine.history_schema import APPLICATION_ID, INDICES, TABLES, VERSION
from engine.states import State

#: A query of a page that takes longer is given up.
QUERY_SECONDS = 30.0
#: What the URL does not say: both ends notice within half a minute that the other has gone, and its lock is free.
_CONNECTION: dict[str, Any] = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_CONNECTION |= {"tcp_user_timeout": 30_000}
_SESSION = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
_SESSION |= {"client_min_messages": "warning", "bytea_output": "hex"}
#: To compile a query takes longer than any of ours.
_SESSION |= {"jit": "off"}
#: Says whose tables these are, of which version, and how often they were written to.
_MARK = "engine_history"
_TYPES = {"INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION", "BLOB": "BYTEA", "TEXT": 'TEXT COLLATE "C"'}
_COPIED = {"INTEGER": "int8", "REAL": "float8", "BLOB": "bytea", "TEXT": "text"}
#: Held by the writer; a number of ours, and one of the schema.
_LOCK = f"{APPLICATION_ID}, hashtext(current_schema())"
_ELSEWHERE = "Name another database, or another schema of it: ?options=-csearch_path%3Dengine"
#: When so many rows of runs have been written, runs that are open are gone through, and so many of each state at most.
_SWEEP_ROWS, _SWEPT_ROWS = 20_000, 20_000
#: Errors that waiting, or somebody with the rights to, may mend, though the class they are in is one of mistakes.
_MENDED = (errors.InsufficientPrivilege, errors.UndefinedTable, errors.InvalidSchemaName, errors.InvalidCatalogName)


class _TextDumper(Dumper):
    """Text, in which PostgreSQL takes all but NUL: that becomes two of the next character, and the order stays what it was."""

    format, oid = Format.BINARY, 25

    def dump(self, text: str) -> Buffer:
        if "\x00" in text or "\x01" in text:
            text = text.replace("\x01", "\x01\x02").replace("\x00", "\x01\x01")
        return text.encode()


class _TextLoader(Loader):
    """Text as it was before _TextDumper."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        text = str(data, "utf-8")  # no copy in between: a page has thousands of them
        return text.replace("\x01\x01", "\x00").replace("\x01\x02", "\x01") if "\x01" in text else text


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    """PostgreSQL's errors as ours. Raises HistoryUnreadable or HistoryUnavailable."""
    try:
        yield
    except _MENDED as error:
        raise HistoryUnavailable(place, _text(error)) from error
    except (errors.IntegrityError, errors.ProgrammingError, errors.DataError) as error:
        # Trying again would end the same way.
        raise HistoryUnreadable(place, f"its rows do not fit together ({_text(error)})", REBUILD) from error
    except psycopg.Error as error:
        raise HistoryUnavailable(place, _text(error)) from error


def _text(error: psycopg.Error) -> str:
    """What it says, without the rows that it may quote."""
    said = error.diag.message_primary or " ".join(str(error).split())
    return said[:500] or type(error).__name__


def _connect(place: str, name: str, *, statement_seconds: float) -> psycopg.Connection:
    try:
        given: dict[str, Any] = conninfo_to_dict(place)
    except psycopg.Error:
        # Its text could have a part of the password in it.
        remedy = "Write postgresql://user:password@host:5432/database, and options that PostgreSQL's client knows."
        raise HistoryUnreadable(place, "PostgreSQL's client cannot read its URL", remedy) from None
    given = _CONNECTION | given | {"application_name": f"engine {name}", "client_encoding": "UTF8"}
    db = psycopg.connect(**given, autocommit=True)
    try:
        db.adapters.register_dumper(str, _TextDumper)
        db.adapters.register_loader("text", _TextLoader)
        times = {"lock_timeout": LOCK_SECONDS, "statement_timeout": statement_seconds}
        _begin(db, place, _SESSION | {name: f"{int(seconds * 1000)}ms" for name, seconds in times.items()})
    except BaseException:  # whatever it was goes on up; nothing half open stays behind
        db.close()
        raise
    return db


def _begin(db: psycopg.Connection, place: str, session: Mapping[str, str]) -> None:
    query = ", ".join("set_config(?, ?, false)" for _ in session)
    # Else DROP would go on to tables of the same name in a schema further along the path.
    query = f"SELECT current_schema(), set_config('search_path', quote_ident(current_schema()), false), {query}"
    [(schema, *_)] = _all(db, query, [part for pair in session.items() for part in pair])
    if schema is None:
        remedy = "Let somebody who may run CREATE SCHEMA, or name another one (?options=-csearch_path%3D…)"
        raise HistoryUnavailable(place, f"no schema of its search path is there. {remedy}")


@functools.lru_cache(maxsize=512)
def _ours(query: str) -> str:
    """A query with psycopg's marks."""
    return query.replace("%", "%%").replace("?", "%s")


def _all(db: psycopg.Connection, query: str, values: Sequence[Any]) -> list[Any]:
    return db.execute(_ours(query), values, binary=True).fetchall()


def _found(db: psycopg.Connection, place: str) -> int | None:
    """The version of the tables; None where there are none. Raises HistoryUnreadable for tables that are not ours."""
    [(encoding,)] = _all(db, "SELECT current_setting('server_encoding')", [])
    if encoding != "UTF8":
        raise HistoryUnreadable(place, f"its encoding is {encoding}", "Make it anew: CREATE DATABASE … ENCODING 'UTF8'.")
    names = "SELECT relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = current_schema()"
    there = {name for (name,) in _all(db, names, [])} & {_MARK, *TABLES}
    marked = _all(db, f"SELECT application_id, version FROM {_MARK}", []) if _MARK in there else []  # noqa: S608
    if there and [application for application, _ in marked] != [APPLICATION_ID]:
        raise HistoryUnreadable(place, "it has tables of such names that are not of this engine", _ELSEWHERE)
    return marked[0][1] if marked else None


def is_in_use(place: str) -> bool:
    """Whether another process writes to the database now. Raises HistoryUnavailable, HistoryUnreadable."""
    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND classid = ?::bigint::oid AND objid = hashtext(current_schema())::oid"
    )
    with _told(place), contextlib.closing(_connect(place, "look", statement_seconds=QUERY_SECONDS)) as db:
        return bool(_all(db, query, [APPLICATION_ID])[0][0])


def _check_version(db: psycopg.Connection, place: str) -> None:
    found = _found(db, place)
    if found is None:
        raise HistoryUnavailable(place, "there is no history in it yet; `engine history run` makes it")
    if found != VERSION:
        raise HistoryUnreadable(place, "it is no history of this version", REBUILD)


class PostgresReader:
    """Queries on a database; see ReadDatabase. Where the server has gone and come back, they go to it again."""

    def __init__(self, connection: psycopg.Connection, place: str, *, is_own: bool = True) -> None:
        """``is_own`` says that it is nobody else's connection."""
        self.place = place
        self._db, self._is_own = connection, is_own

    @classmethod
    def open(cls, place: str) -> PostgresReader:
        """Open a database that a projector has made. Raises HistoryUnavailable, HistoryUnreadable."""
        with _told(place):
            return cls(cls._open(place), place)

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """See ReadDatabase."""
        with _told(self.place):
            try:
                return _all(self._db, query, values)
            except psycopg.OperationalError:
                if not (self._db.closed and self._is_own):
                    raise
            # Cut while nobody asked anything, most likely: once more, to the server that is there now.
            self._db = self._open(self.place)
            return _all(self._db, query, values)

    def version(self) -> Version:
        """See ReadDatabase."""
        return 0, self.all(f"SELECT writes FROM {_MARK}")[0][0]  # noqa: S608

    def is_current(self) -> bool:
        """See ReadDatabase."""
        return not self._db.closed

    def close(self) -> None:
        """See ReadDatabase."""
        if self._is_own:
            self._db.close()

    @staticmethod
    def _open(place: str) -> psycopg.Connection:
        db = _connect(place, "reader", statement_seconds=QUERY_SECONDS)
        try:
            _check_version(db, place)
            db.execute("SET default_transaction_read_only = on")
        except BaseException:  # whatever it was goes on up; nothing half open stays behind
            db.close()
            raise
        return db


class PostgresWriter:
    """The one writer of a database; see WriteDatabase."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._db: psycopg.Connection | None = None
        self._rows_unswept = 0

    @property
    def connection(self) -> psycopg.Connection:
        """The connection that is open."""
        if self._db is None:
            raise HistoryUnavailable(self._place, "it is not open")
        return self._db

    def connect(self, *, fresh: bool) -> None:
        """See WriteDatabase; of what is damaged the server knows."""
        with _told(self._place):
            self.close()
            db = self._db = _connect(self._place, "projector", statement_seconds=0.0)
            try:
                # Waits a little: the server may take a moment to notice that the one before was killed.
                db.execute(f"SELECT pg_advisory_lock({_LOCK})")
            except errors.LockNotAvailable as error:
                raise HistoryInUse(self._place) from error

    def close(self) -> None:
        """See WriteDatabase."""
        db, self._db = self._db, None
        if db is None:
            return
        # By name, for the server may take a moment to notice that we have gone; what cannot be said is as good as said.
        with contextlib.suppress(psycopg.Error):
            db.execute("SELECT pg_advisory_unlock_all()")
        db.close()

    def is_there(self) -> bool:
        """See WriteDatabase."""
        return True

    def found(self) -> int | None:
        """See WriteDatabase."""
        with _told(self._place):
            return _found(self.connection, self._place)

    def make(self) -> None:
        """See WriteDatabase."""
        for name, columns in TABLES.items():
            self.run(f"DROP TABLE IF EXISTS {name}")
            self.run(f"CREATE TABLE {name} ({_typed(columns)})")
        for statement in INDICES:
            # In SQLite the key of a row ends each of its indices by itself.
            self.run(re.sub(r"^(CREATE INDEX \w+ ON runs \([^)]*)", r"\1, place", statement))
        self.run(f"CREATE TABLE IF NOT EXISTS {_MARK} (application_id BIGINT PRIMARY KEY, version BIGINT, writes BIGINT)")
        # Of a number that none before had, should somebody have dropped the table.
        new = f"SELECT {APPLICATION_ID}, {VERSION}, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"  # noqa: S608
        again = "ON CONFLICT (application_id) DO UPDATE SET version = excluded.version"
        self.run(f"INSERT INTO {_MARK} (application_id, version, writes) {new} {again}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See WriteDatabase."""
        with _told(self._place), self.connection.transaction():
            yield
            self.run(f"UPDATE {_MARK} SET writes = writes + 1")  # noqa: S608
            if self._rows_unswept >= _SWEEP_ROWS:
                self._sweep()

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """See WriteDatabase."""
        with _told(self._place):
            return _all(self.connection, query, values)

    def run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """See WriteDatabase."""
        with _told(self._place):
            self.connection.execute(_ours(statement), values)

    def put_all(self, put: Put, rows: Iterable[Sequence[Any]]) -> None:
        """See WriteDatabase. To copy is far cheaper than to insert; what may be there already comes by way of a table aside."""
        rows = list(rows)
        if not rows:
            return
        columns, aside = ", ".join(put.columns), f"{_MARK}_{put.table}"
        self._rows_unswept += len(rows) if put.table == "runs" else 0
        with _told(self._place):
            if put.conflict:
                self.run(f"CREATE TEMPORARY TABLE IF NOT EXISTS {aside} (LIKE {put.table}) ON COMMIT DELETE ROWS")
            copied = f"COPY {aside if put.conflict else put.table} ({columns}) FROM STDIN (FORMAT BINARY)"
            with self.connection.cursor() as cursor, cursor.copy(copied) as copy:
                copy.set_types(_copied(put.table, put.columns))
                for row in rows:
                    copy.write_row(row)
            if put.conflict:
                self.run(f"INSERT INTO {put.table} ({columns}) SELECT {columns} FROM {aside} {put.conflict}")  # noqa: S608

    def _sweep(self) -> None:
        """Look at the runs that are open. A state that a run has left stays in the index until the server's next vacuum, or
        until somebody comes by: else whoever counts the open ones first, a page that is, goes through all that have ended.
        """
        self._rows_unswept = 0
        for state in (state for state in State if not state.is_end):
            some = f"SELECT FROM runs WHERE state = ? ORDER BY scheduled_at DESC LIMIT {_SWEPT_ROWS}"
            self.run(f"SELECT count(*) FROM ({some}) AS open", [state.value])  # noqa: S608

    def reader(self) -> PostgresReader:
        """See WriteDatabase."""
        return PostgresReader(self.connection, self._place, is_own=False)


def _typed(columns: str) -> str:
    return re.sub(r"\b(INTEGER|REAL|BLOB|TEXT)\b", lambda found: _TYPES[found[1]], columns)


@functools.cache
def _copied(table: str, columns: tuple[str, ...]) -> list[str]:
    types = dict(re.findall(r"(\w+) (INTEGER|REAL|BLOB|TEXT)\b", TABLES[table]))
    return [_COPIED[types[name]] for name in columns]
