"""engine.history_store: rows and offsets stand or fall together, in whatever batches and with whatever crashes they came."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.broker import Record
from engine.dead_letters import Marked
from engine.events import Position
from engine.history_errors import HistoryInUse, HistoryUnavailable, HistoryUnreadable
from engine.history_schema import TABLES
from engine.history_store import IN_MEMORY, HistoryStore
from engine.projection import read_all
from engine.states import State
from tests.history_records import BEGIN, LOGS, STATES, Topics, a_busy_day, a_run

#: Nothing is too old, nothing too much.
KEEP = (BEGIN, 1e9, 1_000_000, 1e9)


def take(store: HistoryStore, records: list[Record]) -> None:
    store.write(read_all(records, STATES, LOGS), store.offsets())


def tables(store: HistoryStore) -> dict[str, list[tuple[object, ...]]]:
    return {name: sorted(store.connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in TABLES}


def filled(records: list[Record], path: str = IN_MEMORY) -> HistoryStore:
    store = HistoryStore(path, "app")
    store.open()
    take(store, records)
    return store


class Crash(Exception):
    pass


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_tables_filled_in_any_batches_with_crashes_between_equal_those_made_anew(seed: int, data: st.DataObject) -> None:
    records = a_busy_day(seed).records
    whole = filled(records)
    store = HistoryStore(IN_MEMORY, "app")
    store.open()
    place = 0
    while place < len(records):
        size = data.draw(st.integers(1, 30))
        if data.draw(st.booleans()):
            crash(store, records[place : place + size])
        # Whoever comes back reads from the offsets on; a few that were taken in already do no harm.
        again = data.draw(st.integers(0, 5))
        take(store, records[max(0, place - again) : place + size])
        place += size
    assert tables(store) == tables(whole)
    assert len(tables(store)["runs"]) == 10
    assert tables(store)["logs"]


def crash(store: HistoryStore, records: list[Record]) -> None:
    """End a batch just before its commit, as kill -9 would."""

    class Crashing(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:  # type: ignore[override]
            if sql == "COMMIT":
                raise Crash
            return db.execute(sql, *values)

        def executemany(self, sql: str, values: object) -> sqlite3.Cursor:  # type: ignore[override]
            return db.executemany(sql, values)  # type: ignore[arg-type]

        @property
        def in_transaction(self) -> bool:  # type: ignore[override]
            return db.in_transaction

    db = store.connection
    broken = Crashing(IN_MEMORY)
    store._db = broken
    try:
        with pytest.raises(Crash):
            take(store, records)
    finally:
        store._db = db
        broken.close()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), pace=st.integers(5, 60))
def test_partitions_may_be_read_in_any_order_among_each_other(seed: int, pace: int) -> None:
    records = a_busy_day(seed).records
    by_partition: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        by_partition.setdefault((record.topic, record.partition), []).append(record)
    store = HistoryStore(IN_MEMORY, "app")
    store.open()
    for own in by_partition.values():
        for start in range(0, len(own), pace):
            take(store, own[start : start + pace])
    assert tables(store) == tables(filled(records))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), kept=st.integers(0, 6), age=st.floats(0, 40), pace=st.integers(10, 80))
def test_forgetting_now_and_then_comes_to_the_same_as_once_in_the_end(seed: int, kept: int, age: float, pace: int) -> None:
    topics = a_busy_day(seed)
    now = topics.now().timestamp()
    store = HistoryStore(IN_MEMORY, "app")
    store.open()
    for start in range(0, len(topics.records), pace):
        take(store, topics.records[start : start + pace])
        store.forget(now, age, kept, 1e9)
    whole = filled(topics.records)
    whole.forget(now, age, kept, 1e9)
    assert tables(store) == tables(whole)
    assert len(tables(store)["runs"]) <= kept


def test_the_oldest_ended_runs_are_forgotten_and_open_ones_stay() -> None:
    topics = Topics()
    topics.change("open", State.SCHEDULED, 0)
    for number in range(5):
        a_run(topics, f"run-{number}")
    store = filled(topics.records)
    assert store.forget(BEGIN, 1e9, 2, 1e9) == 3
    assert {row[1] for row in tables(store)["runs"]} == {"open", "run-3", "run-4"}
    assert len({row[0] for row in tables(store)["changes"]}) == 3


def test_letters_marks_and_counts_are_forgotten_by_age_alone() -> None:
    topics = Topics()
    letter, details = topics.letter(Position("orders", 0, 1))
    topics.mark(f"0/{letter}", details, Marked.DROPPED)
    a_run(topics, "run")
    store = filled(topics.records)
    counted = ("letters", "marks", "minutes", "worker_hours")
    store.forget(BEGIN + 60, 3_600, 0, 1e9)
    assert all(tables(store)[table] for table in counted)
    store.forget(BEGIN + 2 * 86_400, 86_400, 1_000, 1e9)
    assert not any(tables(store)[table] for table in (*counted, "runs"))


def test_a_repeat_of_a_forgotten_run_makes_no_new_one() -> None:
    topics = Topics()
    scheduled = a_run(topics, "run")[0]
    store = filled(topics.records)
    store.forget(BEGIN, 1e9, 0, 1e9)
    topics.put(scheduled)
    take(store, topics.records)
    assert tables(store)["runs"] == []


def test_lines_that_come_after_their_run_was_forgotten_go_with_it() -> None:
    topics = Topics()
    a_run(topics, "run")
    topics.log("run", "early")
    store = filled(topics.records)
    assert len(tables(store)["logs"]) == 1
    store.forget(BEGIN, 1e9, 0, 1e9)
    assert tables(store)["logs"] == []
    topics.log("run", "late")
    topics.log("another", "of a run that is not read yet")
    take(store, topics.records)
    assert [row[1] for row in tables(store)["logs"]] == ["another"]


def test_old_lines_go_whatever_became_of_their_run() -> None:
    topics = Topics()
    topics.log("run", "old")
    store = filled(topics.records)
    store.forget(topics.now().timestamp() + 100, 50, 1_000_000, 1e9)
    assert tables(store)["logs"] == []


@pytest.mark.parametrize(("lines", "size"), [(7, 1_000_000), (1_000, 2_500)])
def test_of_a_run_that_says_too_much_the_latest_is_kept_however_it_is_read(
    monkeypatch: pytest.MonkeyPatch, lines: int, size: int
) -> None:
    monkeypatch.setattr("engine.history_store.KEPT_LINES", lines)
    monkeypatch.setattr("engine.history_store.KEPT_LOG_BYTES", size)
    topics = Topics()
    for number in range(30):
        topics.log("loud", f"{number} a", f"{number} b")
        if number % 10 == 0:
            topics.log("quiet", str(number), partition=1)
    whole = filled(topics.records)
    for pace in (1, 4):
        store = filled([])
        for start in range(0, len(topics.records), pace):
            take(store, topics.records[start : start + pace])
        assert tables(store) == tables(whole)
    rows = whole.connection.execute("SELECT run_id, lines, content FROM logs ORDER BY place").fetchall()
    kept = [row for row in rows if row[0] == "loud"]
    assert sum(row[1] for row in kept) <= lines
    assert 2 <= len(kept) < 30
    assert b"29 b" in kept[-1][2]
    assert len([row for row in rows if row[0] == "quiet"]) == 3


def test_a_second_writer_is_refused_and_a_database_goes_on_where_it_was(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "history.db")
    topics = Topics()
    a_run(topics, "run")
    first = filled(topics.records, path)
    with pytest.raises(HistoryInUse, match="another process"):
        HistoryStore(path, "app").open()
    before = tables(first)
    first.close()
    again = HistoryStore(path, "app")
    assert not again.open()
    assert again.offsets()[STATES, 0].next_offset > 0
    assert tables(again) == before
    again.close()


def test_a_deleted_database_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    store = filled([], str(path))
    assert store.is_there()
    path.unlink()
    assert not store.is_there()
    store.close()


def test_a_locked_database_is_said_to_be_and_takes_the_batch_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.history_store.LOCK_SECONDS", 0.0)
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
    [pages] = store.connection.execute("PRAGMA page_count").fetchone()
    store.connection.execute(f"PRAGMA max_page_count = {pages}")  # a disk of that size, as SQLite sees it
    for number in range(500):
        a_run(topics, f"run-{number}")
    with pytest.raises(HistoryUnavailable, match="full"):
        take(store, topics.records)
    assert tables(store) == before
    store.connection.execute("PRAGMA max_page_count = 1000000")
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


def test_another_apps_history_is_refused_and_an_older_version_is_made_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "history.db")
    topics = Topics()
    a_run(topics, "run")
    filled(topics.records, path).close()
    with pytest.raises(HistoryUnreadable, match="belongs to app app, not shop"):
        HistoryStore(path, "shop").open()
    with sqlite3.connect(path) as older:
        older.execute("PRAGMA user_version = 0")
    older.close()
    store = HistoryStore(path, "app")
    assert store.open()
    assert tables(store)["runs"] == []
    store.close()
