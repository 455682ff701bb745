"""engine.cli_run_lists and cli_flows: lists from a history database, once and again and again."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("flags", [["--json"], []])
def test_a_list_that_is_watched_shows_what_has_changed(
    database: Database, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(database.topics, RUN)
    database.project()
    looks = 0

    async def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            a_run(database.topics, "cd" * 16, fails=True)
            database.project()
        if looks == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("engine.cli_run_lists.asyncio.sleep", sleep)
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
