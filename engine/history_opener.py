"""Opens the database of a history by where it lies: a file, or a server where PostgreSQL's client is installed."""

from __future__ import annotations

from types import ModuleType

from engine import sqlite
from engine.history_database import ReadDatabase, WriteDatabase
from engine.history_errors import HistoryUnavailable, HistoryUnreadable
from engine.history_places import is_server

_INSTALL = "Run: pip install 'kafka-dask-engine[postgres]'"


def reading(place: str) -> ReadDatabase:
    """A connection for queries. Raises HistoryUnavailable, HistoryUnreadable."""
    if not is_server(place):
        return sqlite.SqliteReader.open(place)
    reader: ReadDatabase = _postgres(place).PostgresReader.open(place)
    return reader


def writing(place: str) -> WriteDatabase:
    """The connection of a writer, not connected yet. Raises HistoryUnreadable."""
    if not is_server(place):
        return sqlite.SqliteWriter(place)
    writer: WriteDatabase = _postgres(place).PostgresWriter(place)
    return writer


def is_there(place: str) -> bool:
    """Whether there is a database to be read: a file that is there, or a server, which says itself when it is not."""
    return bool(place) and (is_server(place) or sqlite.is_there(place))


def is_in_use(place: str) -> bool:
    """Whether another process writes to the database now; blocks."""
    if not is_server(place):
        return sqlite.is_in_use(place)
    try:
        return bool(_postgres(place).is_in_use(place))
    except (HistoryUnavailable, HistoryUnreadable):
        return False  # Not to be reached: whoever opens it says so.


def _postgres(place: str) -> ModuleType:
    try:
        from engine import postgres  # its client is part of an extra, and takes a moment to load
    except ImportError as error:
        # Without psycopg, or with one that finds no libpq; either way the extra brings what is missing.
        raise HistoryUnreadable(place, "psycopg, which speaks to PostgreSQL, is not installed", _INSTALL) from error
    return postgres
