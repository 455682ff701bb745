"""The contract between the history and the database that holds it: queries, rows put, transactions; says nothing of which.

SQL is that which SQLite and PostgreSQL both understand, with ``?`` for values, over the tables of ``engine.history_schema``.
All of it blocks, and raises HistoryUnavailable or HistoryUnreadable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

#: How long a write waits for a reader or writer that holds a lock.
LOCK_SECONDS = 5.0
#: Values of one statement, far below the limits of either.
_CHUNK = 500

#: What is new whenever the tables are.
Version = tuple[int, int]


class Put(msgspec.Struct, frozen=True):
    """Rows of a table that are written; ``conflict`` says what becomes of one that is there already."""

    table: str
    columns: tuple[str, ...]
    conflict: str = ""


class ReadDatabase(Protocol):
    """A connection for queries."""

    #: Where it lies; may hold a password.
    place: str

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows that a query finds."""
        ...

    def version(self) -> Version:
        """Another one each time somebody else has written."""
        ...

    def is_current(self) -> bool:
        """Whether this is still a connection to what lies at the place."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class WriteDatabase(Protocol):
    """The connection of the one writer, used over and over: may be closed, and connected again."""

    def connect(self, *, fresh: bool) -> None:
        """Become the only writer. ``fresh`` may take away what is damaged. Raises HistoryInUse, too."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...

    def is_there(self) -> bool:
        """Whether what was opened still lies at the place; where that is known only by writing, True."""
        ...

    def found(self) -> int | None:
        """The version of the tables that are there, None where there are none. Raises HistoryUnreadable for others' tables."""
        ...

    def make(self) -> None:
        """Drop all tables and make them anew, within a transaction."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """What is done in it stands or falls together."""
        ...

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows that a query finds."""
        ...

    def run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Run a statement."""
        ...

    def put_all(self, put: Put, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows, once a table in a transaction; no two of them may have the same key."""
        ...

    def reader(self) -> ReadDatabase:
        """Queries on the same connection."""
        ...


def chunks(values: Sequence[Any], mark: str = "?") -> Iterator[tuple[Sequence[Any], str]]:
    """Values in parts, each with its marks for a list."""
    for start in range(0, len(values), _CHUNK):
        some = values[start : start + _CHUNK]
        yield some, ", ".join([mark] * len(some))
