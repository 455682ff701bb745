"""engine.sqlite: files that were deleted, are locked, on a full disk, somebody else's, or of another version."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.broker import Record
from engine.events import Position
from engine.history import History, RunFilter
from engine.history_errors import HistoryUnavailable, HistoryUnreadable
from engine.history_places import IN_MEMORY
from engine.history_store import HistoryStore
from engine.sqlite import SqliteWriter
from engine.states import State
from tests.contract.histories import tables, take
from tests.history_records import Topics, a_run, origin


def filled(records: list[Record], path: str) -> HistoryStore:
    store = HistoryStore(path, "app")
    store.open()
    take(store, records)
    return store


def connection(store: HistoryStore) -> sqlite3.Connection:
    assert isinstance(store.database, SqliteWriter)
    return store.database.connection


def test_a_deleted_database_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    store = filled([], str(path))
    assert store.is_there()
    path.unlink()
    assert not store.is_there()
    store.close()


def test_a_locked_database_is_said_to_be_and_takes_the_batch_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.sqlite.LOCK_SECONDS", 0.0)
    path = str(tmp_path / "history.db")
    store = filled([], path)
    topics = Topics()
    a_run(topics, "run")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HistoryUnavailable, match="locked"):
        take(store, topics.records)
    assert store.offsets() == {}
    other.execute("ROLLBACK")
    other.close()
    take(store, topics.records)
    assert len(tables(store)["runs"]) == 1
    store.close()


def test_a_full_disk_leaves_rows_and_offsets_as_they_were(tmp_path: Path) -> None:
    topics = Topics()
    a_run(topics, "first")
    store = filled(topics.records, str(tmp_path / "history.db"))
    before = tables(store)
    [pages] = connection(store).execute("PRAGMA page_count").fetchone()
    connection(store).execute(f"PRAGMA max_page_count = {pages}")  # a disk of that size, as SQLite sees it
    for number in range(500):
        a_run(topics, f"run-{number}")
    with pytest.raises(HistoryUnavailable, match="full"):
        take(store, topics.records)
    assert tables(store) == before
    connection(store).execute("PRAGMA max_page_count = 1000000")
    take(store, topics.records)
    assert len(tables(store)["runs"]) == 501
    store.close()


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE precious (x)")
    other.close()
    with pytest.raises(HistoryUnreadable, match="not a history"):
        HistoryStore(str(path), "app").open(fresh=True)
    text = tmp_path / "letter.txt"
    text.write_text("dear friend, " * 100)
    with pytest.raises(HistoryUnreadable):
        HistoryStore(str(text), "app").open(fresh=True)
    assert text.read_text().startswith("dear friend")


def test_an_older_version_is_made_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "history.db")
    topics = Topics()
    a_run(topics, "run")
    filled(topics.records, path).close()
    with sqlite3.connect(path) as older:
        older.execute("PRAGMA user_version = 0")
    older.close()
    store = HistoryStore(path, "app")
    assert store.open()
    assert tables(store)["runs"] == []
    store.close()


def test_a_list_costs_no_more_when_there_is_more_that_it_leaves_out() -> None:
    topics = Topics()
    for number in range(1_000):
        of_key = {"key": "customer"} if number % 2 else {}
        topics.change(f"{number:032x}", State.SCHEDULED, 0, event=origin(number), **of_key)
        if not of_key:
            topics.change(f"{number:032x}", State.FAILED, 1)
            topics.letter(Position("orders", 0, number), reason="run-failed")
    store = filled(topics.records, IN_MEMORY)
    history = History(store.reader())
    asked: dict[str, Callable[[], object]] = {
        "of a key, failed": lambda: history.runs(RunFilter(key="customer", states=[State.FAILED])),
        "of a key and a flow": lambda: history.runs(RunFilter(key="customer", flows=["ship"])),
        "of a flow, running": lambda: history.runs(RunFilter(flows=["fulfil"], states=[State.RUNNING])),
        "of nobody": lambda: history.runs(RunFilter(key="nobody", states=[State.FAILED])),
        "events": lambda: history.events(limit=5),
        "all letters": lambda: history.letters(all=True, limit=5),
    }
    steps: dict[str, int] = {}
    for name, ask in asked.items():
        counted: list[int] = []
        # Of the machine that SQLite makes of a query, about ten for each row.
        connection(store).set_progress_handler(lambda counted=counted: counted.append(1), 10)  # type: ignore[misc]
        ask()
        steps[name] = len(counted)
    connection(store).set_progress_handler(None, 0)
    store.close()
    assert steps.pop("events") < 1_200
    assert max(steps.values()) < 200, steps
