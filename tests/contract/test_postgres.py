"""engine.postgres: what the server and those who share it may do to a history, and that nobody gets to see the password."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import psutil
import psycopg
import pytest

from engine.errors import EngineError
from engine.events import Position
from engine.history import History, RunFilter
from engine.history_database import ReadDatabase
from engine.history_errors import HistoryInUse, HistoryUnavailable, HistoryUnreadable
from engine.history_opener import is_in_use
from engine.history_reader import HistoryReader
from engine.history_schema import VERSION
from engine.history_store import HistoryStore
from engine.projector import Projector
from engine.projector_process import ProjectorProcess
from engine.settings import Settings
from engine.states import State
from tests.contract.histories import Places, tables, take
from tests.contract.test_projector import SETTINGS, broker_with, runs, write
from tests.dashboard_under_test import a_log, serving
from tests.history_records import BEGIN, STATES, Topics, a_run, origin
from tests.postgres_under_test import PASSWORD, PostgresUnderTest
from tests.waiting import eventually, eventually_said


@pytest.fixture
def places(postgres: PostgresUnderTest, tmp_path: Path) -> Iterator[Places]:
    places = Places(tmp_path, postgres)
    yield places
    places.close()


def some_topics(*run_ids: str) -> Topics:
    topics = Topics()
    for run_id in run_ids or ("run",):
        a_run(topics, run_id)
    return topics


def test_a_locked_table_is_said_to_be_and_the_batch_is_taken_later(
    places: Places, postgres: PostgresUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.postgres.LOCK_SECONDS", 0.1)
    place = places.new()
    store = places.store([], place)
    with psycopg.connect(place) as other:
        other.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(HistoryUnavailable, match="lock timeout"):
            take(store, some_topics().records)
    assert store.offsets() == {}
    take(store, some_topics().records)
    assert len(tables(store)["runs"]) == 1


def test_a_full_disk_leaves_rows_and_offsets_as_they_were(places: Places, postgres: PostgresUnderTest) -> None:
    place = places.new()
    store = places.store(some_topics("first").records, place)
    before = tables(store)
    # As the server says it; a disk that is really full would take the other tests with it.
    postgres.run(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;"
        " CREATE TRIGGER full_disk BEFORE INSERT ON offsets EXECUTE FUNCTION full_disk()",
        place,
    )
    records = some_topics("first", "second").records
    with pytest.raises(HistoryUnavailable, match="No space left on device"):
        take(store, records)
    assert tables(store) == before
    postgres.run("DROP TRIGGER full_disk ON offsets", place)
    take(store, records)
    assert len(tables(store)["runs"]) == 2


def test_a_writer_whose_session_was_ended_has_lost_its_place_to_the_next(places: Places, postgres: PostgresUnderTest) -> None:
    place = places.new()
    first = places.store(some_topics("first").records, place)
    postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'engine projector'")
    second = places.store(some_topics("first", "second").records, place)
    with pytest.raises(HistoryUnavailable):
        take(first, some_topics("first", "third").records)
    assert {row[1] for row in tables(second)["runs"]} == {"first", "second"}
    second.close()
    assert not first.open()
    take(first, some_topics("first", "second", "third").records)
    assert {row[1] for row in tables(first)["runs"]} == {"first", "second", "third"}


def test_tables_of_others_are_left_alone(places: Places, postgres: PostgresUnderTest) -> None:
    taken, free = places.new(), places.new()
    postgres.run("CREATE TABLE runs (precious text); INSERT INTO runs VALUES ('dear friend')", taken)
    for fresh in (False, True):
        with pytest.raises(HistoryUnreadable, match="not of this engine") as caught:
            HistoryStore(taken, "app").open(fresh=fresh)
    assert "search_path" in caught.value.remedy
    # Not even where ours come first on the way to them.
    both = f"{free},{taken.rpartition('%3D')[2]}"
    store = places.store(some_topics().records, both)
    store.empty()
    with psycopg.connect(taken) as db:
        assert db.execute("SELECT precious FROM runs").fetchall() == [("dear friend",)]


def test_an_older_version_is_made_anew_and_a_newer_one_is_refused(places: Places, postgres: PostgresUnderTest) -> None:
    place = places.new()
    with pytest.raises(HistoryUnavailable, match="engine history run"):
        History.open(place)
    places.store(some_topics().records, place).close()
    postgres.run("UPDATE engine_history SET version = version - 1", place)
    with pytest.raises(HistoryUnreadable, match="engine history rebuild"):
        History.open(place)
    store = HistoryStore(place, "app")
    assert store.open()
    assert tables(store)["runs"] == []
    store.close()
    postgres.run(f"UPDATE engine_history SET version = {VERSION + 1}", place)
    with pytest.raises(HistoryUnreadable, match="newer engine"):
        HistoryStore(place, "app").open()


def test_where_there_is_no_schema_or_database_it_says_so(postgres: PostgresUnderTest) -> None:
    with pytest.raises(HistoryUnavailable, match="CREATE SCHEMA"):
        HistoryStore(postgres.url("nowhere"), "app").open()
    assert not is_in_use(postgres.url("nowhere"))
    nobody = postgres.url().replace("/postgres?", "/nothing?")
    with pytest.raises(HistoryUnavailable, match="nothing"):
        History.open(nobody)


def test_a_wrong_password_is_told_and_none_is_shown(postgres: PostgresUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    secrets = {"s3same", "s3s%40me", "s3s@me", PASSWORD}
    for word in ("s3same", "s3s%40me"):
        place = postgres.url(password=word)
        for attempt in (lambda: HistoryStore(place, "app").open(), lambda: History.open(place)):  # noqa: B023  # called at once
            with pytest.raises(HistoryUnavailable, match="password authentication failed") as caught:
                attempt()
            assert not any(secret in f"{caught.value!s} {caught.value!r} {caught.value.args}" for secret in secrets)
            assert f"postgresql://127.0.0.1:{postgres.port}/postgres" in str(caught.value)
    # What its client would tell of an URL that it cannot read has a part of the password in it.
    with pytest.raises(HistoryUnreadable) as odd:
        History.open("postgresql://ada:s3s%zzme@127.0.0.1/x")
    assert "s3s" not in f"{odd.value!s} {odd.value.args} {odd.value.__cause__}"
    assert odd.value.__suppress_context__
    assert not any(unquote(secret) in caplog.text for secret in secrets)


def test_without_its_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "engine.postgres", raising=False)
    monkeypatch.delattr("engine.postgres", raising=False)
    for attempt in (lambda: HistoryStore("postgresql:///x", "app"), lambda: History.open("postgresql:///x")):
        with pytest.raises(HistoryUnreadable, match=r"pip install 'kafka-dask-engine\[postgres\]'"):
            attempt()
    assert not is_in_use("postgresql:///x")


async def test_while_the_server_restarts_a_projector_waits_and_readers_find_the_next_one(
    places: Places, postgres: PostgresUnderTest
) -> None:
    place = places.new()
    broker = await broker_with("one")
    projector = Projector(SETTINGS, broker, HistoryStore(place, "app"))
    reader = HistoryReader(place)
    running = asyncio.create_task(projector.run())
    try:
        await eventually(lambda: runs(place) == {"one"})
        before = await reader.version()
        assert await reader.ask(lambda history: len(history.runs().items)) == 1
        await asyncio.to_thread(postgres.stop)
        with pytest.raises(HistoryUnavailable):
            await reader.ask(lambda history: history.runs())
        await write(broker, "two")
        postgres.start()  # here: it ends with the thread that has started it
        await eventually(lambda: runs(place) == {"one", "two"})
        assert await reader.ask(lambda history: len(history.runs().items)) == 2
        assert await reader.version() != before
        # Cut while nobody asks: nobody notices.
        postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'engine reader'")
        assert await reader.ask(lambda history: len(history.runs().items)) == 2
    finally:
        projector.stop()
        await running
        reader.close()


async def test_a_second_projector_ends_and_the_first_goes_on(
    places: Places, postgres: PostgresUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.postgres.LOCK_SECONDS", 0.2)
    place = places.new()
    broker = await broker_with("one")
    first = Projector(SETTINGS, broker, HistoryStore(place, "app"))
    running = asyncio.create_task(first.run())
    await eventually(lambda: runs(place) == {"one"})
    with pytest.raises(HistoryInUse):
        await Projector(SETTINGS, broker, HistoryStore(place, "app")).run()
    await write(broker, "two")
    await eventually(lambda: runs(place) == {"one", "two"})
    first.stop()
    await running


def test_a_reader_can_write_nothing_and_is_given_up_when_it_takes_too_long(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.postgres.QUERY_SECONDS", 0.2)
    place = places.new()
    places.store(some_topics().records, place)
    with History.open(place) as history:
        with pytest.raises(EngineError, match="read-only"):
            history._db.all("DELETE FROM runs RETURNING place")
        with pytest.raises(HistoryUnavailable, match="statement timeout"):
            history._db.all("SELECT pg_sleep(30)")
        assert history.offsets() == {(STATES, 0): history.progress()[STATES, 0].next_offset}


async def test_a_dashboard_shows_it_and_says_when_the_server_is_away(
    places: Places, postgres: PostgresUnderTest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await a_log()
    await write(broker, "one")
    async with (
        serving(tmp_path, broker, history=places.new(), history_retention_seconds=1e10) as dashboard,
        httpx.AsyncClient(base_url=f"http://{dashboard.address}", timeout=30) as http,
    ):

        async def page(path: str) -> str:
            answer = await http.get(path)
            assert not any(word in answer.text for word in (PASSWORD, "l0ve", "ada:"))
            return answer.text

        async def history() -> str:
            found: str = (await http.get("/readyz")).json()["parts"]["history"]
            return found

        async def is_shown() -> bool:
            return ">one<" in await page("/runs")

        async def is_ok() -> bool:
            return await history() == "ok"

        await eventually_said(is_shown)
        assert f"postgresql://***@127.0.0.1:{postgres.port}/postgres" in await page("/about")
        await eventually_said(is_ok)
        await asyncio.to_thread(postgres.stop)
        assert f"postgresql://127.0.0.1:{postgres.port}/postgres: " in await history()
        assert "Traceback" not in await page("/runs")
        postgres.start()
        await eventually_said(is_ok)
        await eventually_said(is_shown)
    assert "l0ve" not in caplog.text


async def test_a_projector_that_is_not_let_in_says_why_and_nobody_reads_the_password_in_its_command(
    postgres: PostgresUnderTest, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(app="app", kafka="127.0.0.1:1", history=postgres.url(password="s3same"))  # a wrong one
    process = ProjectorProcess(settings, os.environ)
    running = asyncio.create_task(process.run())
    try:
        await eventually(lambda: "password authentication failed" in process.trouble)
        commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
        assert any("history run" in command for command in commands)
        assert not any("s3same" in command for command in commands)
        assert "s3same" not in process.trouble
    finally:
        process.stop()
        await running
    captured = capfd.readouterr()
    assert "history waits" in captured.err
    assert "s3same" not in captured.out + captured.err


class Counting:
    """Asks what a reader is asked, and how many rows the server went through for it."""

    def __init__(self, reader: ReadDatabase) -> None:
        self.place = reader.place
        self.version, self.is_current, self.close = reader.version, reader.is_current, reader.close
        self._reader = reader
        self.rows = 0

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        [(found,)] = self._reader.all(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", values)
        self.rows += _gone_through(found[0]["Plan"])
        return self._reader.all(query, values)


def _gone_through(plan: Mapping[str, Any]) -> int:
    each = plan["Actual Rows"] + sum(count for name, count in plan.items() if name.startswith("Rows Removed"))
    return int(plan["Actual Loops"] * each) + sum(_gone_through(part) for part in plan.get("Plans", []))


def test_a_page_goes_through_no_more_rows_when_there_are_more_of_them(places: Places, postgres: PostgresUnderTest) -> None:
    place, topics = places.new(), Topics()
    for number in range(3_000):
        topics.letter(Position("orders", 0, number))
    for number in range(500):
        a_run(topics, f"{number:032x}", event=origin(10_000 + number), fails=True)
        topics.letter(Position("orders", 0, 10_000 + number), reason="run-failed")
    store = places.store(topics.records, place)
    postgres.run("ANALYZE", place)
    database = Counting(store.reader())
    history = History(database)
    asked = {
        "events": lambda: history.events(limit=10),
        "events of letters alone": lambda: history.events(cursor=f"{BEGIN + 1_000!r},0", limit=10),
        "letters": lambda: history.letters(all=True, limit=10),
        "runs": lambda: history.runs(limit=10),
        "failed ones": lambda: history.runs(RunFilter(flows=["fulfil"], states=[State.FAILED]), limit=10),
        "of a key": lambda: history.runs(RunFilter(key="nobody"), limit=10),
    }
    rows: dict[str, int] = {}
    for name, ask in asked.items():
        database.rows = 0
        ask()
        rows[name] = database.rows
    assert max(rows.values()) < 1_000, rows


def test_runs_that_have_ended_are_not_in_the_way_of_who_counts_the_open_ones(
    places: Places, postgres: PostgresUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.postgres._SWEEP_ROWS", 100)
    # As a server plans where there are many.
    place = f"{places.new()}%20-cenable_seqscan%3Doff%20-cenable_bitmapscan%3Doff"
    store, topics = places.store([], place), Topics()

    def rows_looked_up() -> int:
        query = "EXPLAIN (ANALYZE, FORMAT JSON) SELECT count(*) FROM runs WHERE state = 'RUNNING'"
        [(found,)] = store.database.all(query)
        [scan] = found[0]["Plan"]["Plans"]
        assert scan["Actual Rows"] == 0
        return int(scan["Heap Fetches"])

    for turn in range(20):
        for step in range(3):
            topics.records.clear()
            for number in range(200):
                state = (State.SCHEDULED, State.RUNNING, State.COMPLETED)[step]
                topics.change(f"{turn:016x}{number:016x}", state, step)
            take(store, topics.records)
        topics.records.clear()
        for number in range(100):
            topics.change(f"{turn:016x}{1_000 + number:016x}", State.SCHEDULED, 0)
        take(store, topics.records)
        # A transaction that is under way elsewhere, as the server itself has some, keeps all in its place for a moment.
        if rows_looked_up() < 20:
            break
    else:
        pytest.fail("they stayed in the index")
