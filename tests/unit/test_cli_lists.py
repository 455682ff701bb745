"""engine.cli_run_lists and cli_flows: lists from a history database, once and again and again."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from engine.broker import TopicSpec
from engine.cli import READER_GONE, main
from engine.cli_flows import _table
from engine.declarations import Declaration
from engine.history_rows import FlowRow
from engine.history_store import HistoryStore
from engine.memory import MemoryBroker
from engine.projection import read_all
from engine.states import State, utc
from tests.history_records import STATES, Topics, a_run

RUN = "ab" * 16


class Database:
    """A history that grows while a command looks at it."""

    def __init__(self, path: Path) -> None:
        self.path, self.topics = str(path), Topics()
        self._store = HistoryStore(self.path, "app")
        self.open()

    def open(self) -> None:
        self._store.open()

    def project(self) -> None:
        self._store.write(read_all(self.topics.records, STATES), self._store.offsets())

    def close(self) -> None:
        self._store.close()


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "history.db")


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    return exit_info.value.code


def test_flows_are_listed_as_engines_have_declared_them(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    database.topics.declaration("fulfil", signature="fulfil(order: Order)")
    database.project()
    database.close()
    assert run("flows", "ls", "--history", database.path) == 0
    assert "fulfil(order: Order)" in capsys.readouterr().out
    assert run("flows", "show", "fulfil", "--history", database.path, "--json") == 0
    [flow] = map(json.loads, capsys.readouterr().out.splitlines())
    assert (flow["flow"], flow["parameters"]) == ("fulfil", {"type": "object"})
    assert run("flows", "show", "nothing", "--history", database.path) == 3
    assert "Known: fulfil." in capsys.readouterr().err


def watching(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], None]) -> None:
    """Between two looks of --watch one of these is done each time, then somebody presses Ctrl-C."""
    left = list(steps)

    async def sleep(seconds: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr("engine.cli_watch.sleep", sleep)


def nothing() -> None:
    return


def test_how_long_a_flow_takes_is_said_as_everywhere_else() -> None:
    declared = Declaration(name="f", signature="f()", at=utc(0.0), parameters={}, data={})
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(_table({"f": declared}, {"f": FlowRow.of("f", [(State.COMPLETED, 5_025.0)])}))
    assert "1 h 23 min" in console.export_text()


@pytest.mark.parametrize("flags", [["--json"], []])
def test_a_list_that_is_watched_shows_what_has_changed(
    database: Database, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(database.topics, RUN)
    database.project()

    def another() -> None:
        a_run(database.topics, "cd" * 16, fails=True)
        database.project()

    watching(monkeypatch, nothing, another, nothing)
    code = run("runs", "ls", "--watch", "--history", database.path, *flags)
    database.close()
    assert code == 130
    out = capsys.readouterr().out
    if flags:
        seen = [(one["run_id"], one["state"]) for one in map(json.loads, out.splitlines())]
        assert seen == [(RUN, State.COMPLETED), ("cd" * 16, State.FAILED)]
    else:
        assert RUN in out
        assert "cd" * 16 in out


def test_a_database_that_is_made_anew_is_followed(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(database.topics, RUN)
    database.project()

    def replace() -> None:
        database.close()
        for file in Path(database.path).parent.glob("history.db*"):
            file.unlink()
        database.topics = Topics()
        database.open()
        a_run(database.topics, "cd" * 16)
        database.project()

    watching(monkeypatch, replace)
    assert run("runs", "ls", "--watch", "--json", "--history", database.path) == 130
    database.close()
    assert [json.loads(line)["run_id"] for line in capsys.readouterr().out.splitlines()] == [RUN, "cd" * 16]


@pytest.mark.parametrize("flags", [["--json"], []])
def test_one_run_is_watched_until_it_has_ended(
    database: Database, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(database.topics, RUN)
    *database.topics.records, end = database.topics.records
    database.project()

    def ends() -> None:
        database.topics.records.append(end)
        database.project()

    watching(monkeypatch, nothing, ends)
    assert run("runs", "show", RUN, "--watch", "--history", database.path, *flags) == 0
    database.close()
    out = capsys.readouterr().out
    if flags:
        assert [json.loads(line)["run"]["state"] for line in out.splitlines()] == [State.RUNNING, State.COMPLETED]
    else:
        assert "COMPLETED" in out.splitlines()[0]
        assert "1 of 1 have ended" in out


def test_flows_of_the_history_are_watched_with_how_they_do(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database.topics.declaration("fulfil")
    database.project()

    def one_runs() -> None:
        a_run(database.topics, RUN)
        database.project()

    watching(monkeypatch, nothing, one_runs, nothing)
    assert run("flows", "ls", "--watch", "--json", "--history", database.path) == 130
    database.close()
    seen = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one.get("runs"), one.get("success_rate")) for one in seen] == [(None, None), (1, 1.0)]
    assert run("flows", "ls", "--watch", "--handlers", "handlers/flights.py") == 2
    assert "what handlers declare does not change" in capsys.readouterr().err


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """A log in which an engine has declared a flow; commands without a database read it."""
    log, topics = MemoryBroker(), Topics(gaps=False)
    asyncio.run(log.ensure_topics([TopicSpec(topic, 1) for topic in (STATES, "app.dead-letters", "app.logs")]))
    topics.declaration("fulfil", signature="fulfil(order: Order)")
    a_run(topics, RUN)
    log.log((STATES, 0)).extend(topics.records)
    for module in ("cli_flows", "cli_histories", "cli_logs"):
        monkeypatch.setattr(f"engine.{module}.KafkaBroker", lambda settings: log)
    monkeypatch.setenv("ENGINE_APP", "app")
    return log


@pytest.mark.usefixtures("memory")
def test_without_a_database_flows_are_what_the_topic_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flows", "ls", "--json") == 0
    [flow] = map(json.loads, capsys.readouterr().out.splitlines())
    assert flow["signature"] == "fulfil(order: Order)"
    assert run("flows", "show", "fulfil") == 0
    assert "fulfil(order: Order)" in capsys.readouterr().out


@pytest.mark.usefixtures("memory")
def test_flows_of_the_topic_are_watched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    watching(monkeypatch, nothing)
    assert run("flows", "ls", "--watch", "--json") == 130
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.usefixtures("memory")
def test_logs_of_the_topic_need_a_whole_id_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a beginning of one it would say that nothing was logged."""
    assert run("runs", "logs", RUN[:6]) == 3
    assert "its whole id is needed" in capsys.readouterr().err


@pytest.mark.parametrize(("where", "code"), [(["--kafka", "127.0.0.1:1"], 4), ([], 3)], ids=["no Kafka", "no topics"])
def test_a_history_that_cannot_be_made_anew_is_kept(
    database: Database, where: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(database.topics, RUN)
    database.project()
    database.close()
    if not where:
        monkeypatch.setattr("engine.cli_history.KafkaBroker", lambda settings: MemoryBroker())
    assert run("history", "rebuild", "--app", "app", "--history", database.path, *where) == code
    assert run("runs", "ls", "--history", database.path, "--json") == 0
    assert RUN in capsys.readouterr().out


def test_what_is_no_terminal_has_no_edge(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`| grep` finds the whole of every name; on a terminal that is too narrow for all a name goes before its reason."""
    flow, why = "a_flow_of_thirty_characters_in", "a long reason that fills the line to its very end"
    database.topics.change(RUN, State.SCHEDULED, 0, flow=flow)
    database.topics.change(RUN, State.CANCELLED, 1, flow=flow, attempt=0, reason=why)
    database.project()
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run("runs", "ls", "--history", database.path) == 0
    [_, line] = capsys.readouterr().out.splitlines()
    assert f" {flow} " in line
    assert why in line
    monkeypatch.setenv("COLUMNS", "80")
    assert run("runs", "ls", "--history", database.path) == 0
    [_, line] = capsys.readouterr().out.splitlines()
    assert f" {flow[:11]}" in line
    database.close()


def test_tasks_and_their_workers_are_whole_on_a_narrow_terminal(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their names are there to be copied: `runs logs --task one/1c6f820f8c0b5313`."""
    spawned = {"task": "one", "task_run_id": f"{RUN}/one/1c6f820f8c0b5313", "flow": "f"}
    database.topics.change(RUN, State.SCHEDULED, 0, flow="f")
    database.topics.change(RUN, State.RUNNING, 1, flow="f")
    database.topics.change(RUN, State.SCHEDULED, 2, **spawned)
    database.topics.change(RUN, State.RUNNING, 3, **spawned, worker="tcp://127.0.0.1:44591")
    database.project()
    database.close()
    monkeypatch.setenv("COLUMNS", "80")
    assert run("runs", "show", RUN, "--history", database.path) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("one/1c6f820f8c0b5313 ")]
    assert " 127.0.0.1:44591" in line


def test_who_reads_no_further_is_no_run_that_failed(database: Database) -> None:
    """`| head`: the code is that of a reader that has gone, for tables as for lines."""
    for number in range(200):
        database.topics.change(f"{number:032x}", State.SCHEDULED, 0)
    database.project()
    database.close()
    listing = [sys.executable, "-m", "engine", "runs", "ls", "--limit", "200", "--history", database.path]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(listing, stdout=write, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (READER_GONE, b"")
