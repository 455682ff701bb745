"""Histories under test: places for databases that are new, and stores on them that are closed in the end."""

from __future__ import annotations

import itertools
from pathlib import Path

from engine.broker import Record
from engine.history import History
from engine.history_places import IN_MEMORY
from engine.history_schema import TABLES
from engine.history_store import HistoryStore
from engine.projection import read_all
from tests.history_records import LOGS, STATES, Topics
from tests.postgres_under_test import PostgresUnderTest

APP = "app"


class Places:
    """Files of SQLite's in a folder, or schemas of a server, where one is given."""

    def __init__(self, folder: Path, server: PostgresUnderTest | None = None) -> None:
        self._folder, self._server = folder, server
        self._stores: list[HistoryStore] = []
        self._numbers = itertools.count(1)

    def new(self) -> str:
        """A place where nothing is yet."""
        if self._server is not None:
            return self._server.schema()
        return str(self._folder / f"his tory {next(self._numbers)}?" / "history.db")

    def store(self, records: list[Record] | None = None, place: str = "") -> HistoryStore:
        """A store that is open, and has taken in these records; where speed matters, in memory if that can be."""
        store = HistoryStore(place or (IN_MEMORY if self._server is None else self._server.schema()), APP)
        self._stores.append(store)
        store.open()
        take(store, records or [])
        return store

    def history(self, topics: Topics) -> History:
        """What a reader sees of a store that has taken in these topics."""
        return History(self.store(topics.records).reader())

    def examples(self, count: int) -> int:
        """How many examples are enough; to make tables on a server takes a moment."""
        return count if self._server is None else max(1, count // 5)

    def drop(self, place: str) -> None:
        """Take away the database under whoever has it open."""
        if self._server is not None:
            schema = place.rpartition("%3D")[2]
            self._server.run(f"DROP SCHEMA {schema} CASCADE; CREATE SCHEMA {schema}")
            return
        for suffix in ("", "-wal", "-shm"):
            Path(f"{place}{suffix}").unlink(missing_ok=True)

    def close(self) -> None:
        for store in self._stores:
            store.close()


def take(store: HistoryStore, records: list[Record]) -> None:
    """Take in records, as a projector would that goes on from the offsets."""
    store.write(read_all(records, STATES, LOGS), store.offsets())


def tables(store: HistoryStore) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, in an order of their own."""
    return {name: sorted(store.database.all(f"SELECT * FROM {name}"), key=repr) for name in TABLES}
