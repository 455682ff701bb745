"""engine.history_store: rows and offsets stand or fall together, in whatever batches and with whatever crashes they came."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.broker import Record
from engine.dead_letters import Marked
from engine.events import Position
from engine.history import History, RunFilter
from engine.history_errors import HistoryInUse, HistoryUnreadable
from engine.history_opener import is_in_use
from engine.history_store import HistoryStore
from engine.states import State
from tests.contract.histories import Places, tables, take
from tests.history_records import BEGIN, STATES, Topics, a_busy_day, a_run, origin
from tests.postgres_under_test import PostgresUnderTest


class Crash(Exception):
    pass


def test_tables_filled_in_any_batches_with_crashes_between_equal_those_made_anew(places: Places) -> None:
    @settings(max_examples=places.examples(25))
    @given(seed=st.integers(0, 10_000), data=st.data())
    def holds(seed: int, data: st.DataObject) -> None:
        records = a_busy_day(seed).records
        whole, store = places.store(records), places.store()
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

    holds()


def crash(store: HistoryStore, records: list[Record]) -> None:
    """End a batch just before its commit, as kill -9 would."""

    @contextlib.contextmanager
    def crashing() -> Iterator[None]:
        with whole():
            yield
            raise Crash

    whole = store.database.transaction
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.database, "transaction", crashing)
        with pytest.raises(Crash):
            take(store, records)


def test_partitions_may_be_read_in_any_order_among_each_other(places: Places) -> None:
    @settings(max_examples=places.examples(20))
    @given(seed=st.integers(0, 10_000), pace=st.integers(5, 60))
    def holds(seed: int, pace: int) -> None:
        records = a_busy_day(seed).records
        by_partition: dict[tuple[str, int], list[Record]] = {}
        for record in records:
            by_partition.setdefault((record.topic, record.partition), []).append(record)
        store = places.store()
        for own in by_partition.values():
            for start in range(0, len(own), pace):
                take(store, own[start : start + pace])
        assert tables(store) == tables(places.store(records))

    holds()


def test_forgetting_now_and_then_comes_to_the_same_as_once_in_the_end(places: Places) -> None:
    @settings(max_examples=places.examples(20))
    @given(seed=st.integers(0, 10_000), kept=st.integers(0, 6), age=st.floats(0, 40), pace=st.integers(10, 80))
    def holds(seed: int, kept: int, age: float, pace: int) -> None:
        topics = a_busy_day(seed)
        now = topics.now().timestamp()
        store = places.store()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("engine.history_store._FORGET", 2)
            for start in range(0, len(topics.records), pace):
                take(store, topics.records[start : start + pace])
                store.forget(now, age, kept, 1e9)
        whole = places.store(topics.records)
        whole.forget(now, age, kept, 1e9)
        assert tables(store) == tables(whole)
        assert len(tables(store)["runs"]) <= kept

    holds()


def test_the_oldest_ended_runs_are_forgotten_and_open_ones_stay(places: Places) -> None:
    topics = Topics()
    topics.change("open", State.SCHEDULED, 0)
    for number in range(5):
        a_run(topics, f"run-{number}")
    store = places.store(topics.records)
    assert store.forget(BEGIN, 1e9, 2, 1e9) == 3
    assert {row[1] for row in tables(store)["runs"]} == {"open", "run-3", "run-4"}
    assert len({row[0] for row in tables(store)["changes"]}) == 3


def test_letters_marks_and_counts_are_forgotten_by_age_alone(places: Places) -> None:
    topics = Topics()
    letter, details = topics.letter(Position("orders", 0, 1))
    topics.mark(f"0/{letter}", details, Marked.DROPPED)
    a_run(topics, "run")
    store = places.store(topics.records)
    counted = ("letters", "marks", "minutes", "worker_hours")
    store.forget(BEGIN + 60, 3_600, 0, 1e9)
    assert all(tables(store)[table] for table in counted)
    store.forget(BEGIN + 2 * 86_400, 86_400, 1_000, 1e9)
    assert not any(tables(store)[table] for table in (*counted, "runs"))


def test_a_repeat_of_a_forgotten_run_makes_no_new_one(places: Places) -> None:
    topics = Topics()
    scheduled = a_run(topics, "run")[0]
    store = places.store(topics.records)
    store.forget(BEGIN, 1e9, 0, 1e9)
    topics.put(scheduled)
    take(store, topics.records)
    assert tables(store)["runs"] == []


def test_lines_that_come_after_their_run_was_forgotten_go_with_it(places: Places) -> None:
    topics = Topics()
    a_run(topics, "run")
    topics.log("run", "early")
    store = places.store(topics.records)
    assert len(tables(store)["logs"]) == 1
    store.forget(BEGIN, 1e9, 0, 1e9)
    assert tables(store)["logs"] == []
    topics.log("run", "late")
    topics.log("another", "of a run that is not read yet")
    take(store, topics.records)
    assert [row[1] for row in tables(store)["logs"]] == ["another"]


def test_old_lines_go_whatever_became_of_their_run(places: Places) -> None:
    topics = Topics()
    topics.log("run", "old")
    store = places.store(topics.records)
    store.forget(topics.now().timestamp() + 100, 50, 1_000_000, 1e9)
    assert tables(store)["logs"] == []


@pytest.mark.parametrize(("lines", "size"), [(7, 1_000_000), (1_000, 2_500)])
def test_of_a_run_that_says_too_much_the_latest_is_kept_however_it_is_read(
    places: Places, monkeypatch: pytest.MonkeyPatch, lines: int, size: int
) -> None:
    monkeypatch.setattr("engine.history_store.KEPT_LINES", lines)
    monkeypatch.setattr("engine.history_store.KEPT_LOG_BYTES", size)
    topics = Topics()
    for number in range(30):
        topics.log("loud", f"{number} a", f"{number} b")
        if number % 10 == 0:
            topics.log("quiet", str(number), partition=1)
    whole = places.store(topics.records)
    for pace in (1, 4):
        store = places.store([])
        for start in range(0, len(topics.records), pace):
            take(store, topics.records[start : start + pace])
        assert tables(store) == tables(whole)
    rows = whole.database.all("SELECT run_id, lines, content FROM logs ORDER BY place")
    kept = [row for row in rows if row[0] == "loud"]
    assert sum(row[1] for row in kept) <= lines
    assert 2 <= len(kept) < 30
    assert b"29 b" in kept[-1][2]
    assert len([row for row in rows if row[0] == "quiet"]) == 3


def test_a_second_writer_is_refused_and_a_database_goes_on_where_it_was(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.postgres.LOCK_SECONDS", 0.2)
    place = places.new()
    topics = Topics()
    a_run(topics, "run")
    assert not is_in_use(place)
    first = places.store(topics.records, place)
    assert is_in_use(place)
    with pytest.raises(HistoryInUse, match="another process"):
        HistoryStore(place, "app").open()
    before = tables(first)
    first.close()
    again = HistoryStore(place, "app")
    assert not again.open()
    assert again.offsets()[STATES, 0].next_offset > 0
    assert tables(again) == before
    again.close()
    assert not is_in_use(place)


def test_another_apps_history_is_refused_and_a_fresh_one_is_empty(places: Places) -> None:
    place = places.new()
    topics = Topics()
    a_run(topics, "run")
    places.store(topics.records, place).close()
    with pytest.raises(HistoryUnreadable, match="belongs to app app, not shop"):
        HistoryStore(place, "shop").open()
    store = HistoryStore(place, "shop")
    assert store.open(fresh=True)
    assert tables(store)["runs"] == []
    assert tables(store)["app"] == [("shop",)]
    store.close()


def test_what_no_encoding_likes_comes_back_as_it_was_and_in_its_order(places: Places) -> None:
    topics = Topics()
    odd = [
        "a",
        "a\x00",
        "a\x00b",
        "a\x01",
        "a\x01\x01",
        "a\x01\x02",
        "a\x02",
        "aa",
        "B",
        "é",
        "\ue000",
        "🛩",
        "\\",
        "\t\n",
        "%s ?",
    ]
    for number, text in enumerate(odd):
        a_run(topics, f"run {text}", key=text, flow=f"flow {text}", event=origin(number, topic=text))
    history = History(places.store(topics.records).reader())
    runs = {run.run_id: run for run in history.runs_like("run ", limit=100)}
    assert list(runs) == [f"run {text}" for text in sorted(odd)]
    assert [runs[f"run {text}"].run_key for text in odd] == odd
    assert history.flow_names() == sorted(f"flow {text}" for text in odd)
    for number, text in enumerate(odd):
        [run] = history.runs(RunFilter(key=text)).items
        assert run.run_id == f"run {text}"
        event = history.event(Position(text, 0, number))
        assert event is not None
        assert [made.run_id for made in event.runs] == [run.run_id]
    assert len(history.runs_like("run a\x00")) == 2


def test_both_databases_hold_the_same_rows(postgres: PostgresUnderTest, tmp_path: Path) -> None:
    for seed in range(3):
        records = a_busy_day(seed, runs=20).records
        made = []
        for places in (Places(tmp_path), Places(tmp_path, postgres)):
            made.append(tables(places.store(records)))
            places.close()
        assert made[0] == made[1]
        assert len(made[0]["runs"]) == 20
