"""engine.cli_actions: which runs the flags of a bulk command mean, and that nobody is acted on unasked."""

from __future__ import annotations

import io
import sys

import pytest

from engine.cli_actions import Choice, choice_of, confirm
from engine.command_errors import UsageError
from engine.history import History
from engine.history_places import IN_MEMORY
from engine.history_store import HistoryStore
from engine.projection import read_all
from engine.states import State
from tests.history_records import STATES, Topics, a_run


def history() -> History:
    topics = Topics()
    for number in range(5):
        a_run(topics, f"{number:032x}", fails=number % 2 == 0, flow="ship" if number == 4 else "fulfil")
    store = HistoryStore(IN_MEMORY, "app")
    store.open()
    store.write(read_all(topics.records, STATES), {})
    return History(store.reader())


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((None, None, None, None, None), "neither an id nor a filter"),
        (("ab", ["fulfil"], None, None, None), "give either"),
        ((None, None, None, None, 0), "no number of runs"),
    ],
)
def test_either_an_id_or_filters(flags: tuple[object, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        choice_of(*flags)  # type: ignore[arg-type]


def test_filters_choose_the_newest_first() -> None:
    found = history()
    failed = Choice(limit=10).rows(found, [State.FAILED])
    assert [run.run_id[-1] for run in failed] == ["4", "2", "0"]
    assert [run.run_id[-1] for run in Choice(flows=["fulfil"], limit=1).rows(found, [State.FAILED])] == ["2"]
    assert [run.run_id[-1] for run in Choice(states=[State.COMPLETED]).rows(found, [State.FAILED])] == ["3", "1"]
    assert len(Choice(since="2020-01-01T00:00:00Z").rows(found, [State.FAILED])) == 3


def test_many_are_acted_on_only_after_a_yes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Choice(limit=9).rows(history(), [State.FAILED])
    assert confirm("cancelled", rows, yes=True)
    assert not confirm("cancelled", [], yes=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match="would be cancelled: 3"):
        confirm("cancelled", rows, yes=False)
    for typed, goes_on in (("y\n", True), ("\n", False)):
        terminal = io.StringIO(typed)
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", terminal)
        assert confirm("cancelled", rows, yes=False) is goes_on
    assert "will be cancelled: 3" in capsys.readouterr().err
