"""engine.cli_run_lists and cli_flows: lists from a history database, once and again and again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.cli import main
from engine.history_store import HistoryStore
from engine.projection import read_all
from engine.states import State
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


def test_flows_that_do_not_change_are_not_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the error names what to do, which differs."""
    assert run("flows", "ls", "--watch", "--history", str(tmp_path / "none.db")) == 2
    assert "there is no history database. Start `engine dev`" in capsys.readouterr().err
    assert run("flows", "ls", "handlers/clicks.py", "--watch") == 2
    assert "what handlers declare does not change. Name no handlers" in capsys.readouterr().err
