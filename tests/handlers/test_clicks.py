"""The packed flow of handlers.clicks: the same as a plain one, with fewer states."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine import State, flow, on
from engine.testing import bench, run
from handlers import clicks
from handlers.clicks import Score, View

VIEW = View("v-1", "/tea", seconds=150, depth=0.5, referrer="https://www.google.com/search?q=tea")


@flow(on("clicks", type="page.viewed"))
def score_unpacked(view: View) -> Any:
    return clicks.score.function(view)


def test_who_searched_for_a_page_scores_higher_than_who_happened_on_it() -> None:
    assert clicks.score(VIEW) == Score("v-1", "/tea", 50, "search")
    assert clicks.score(View("v-2", "/tea", seconds=150, depth=0.5)) == Score("v-2", "/tea", 40, "direct")


@pytest.mark.parametrize(
    ("referrer", "word"),
    [(None, "direct"), ("", "direct"), ("https://www.bing.com/?q=x", "search"), ("https://example.org/a", "link")],
)
def test_how_a_visitor_came(referrer: str | None, word: str) -> None:
    assert clicks.came_by(referrer) == word


def test_attention_is_between_0_and_1_however_long_the_page_was_open() -> None:
    assert (clicks.attention(0, 0), clicks.attention(10**6, 1)) == (0, 1)


def test_a_run_has_three_changes_of_its_own_and_its_tasks_are_in_the_last() -> None:
    made = run(clicks.score, VIEW)
    assert [change.state for change in made.changes] == [State.SCHEDULED, State.RUNNING, State.COMPLETED]
    assert all(change.is_flow_run for change in made.changes)
    tasks = msgspec.json.decode(made.end.tasks)
    assert [(task["task"], task["state"]) for task in tasks] == [
        (name, "COMPLETED") for name in ("attention", "came_by", "rate")
    ]


def test_without_pack_the_result_is_the_same() -> None:
    assert run(score_unpacked, VIEW).result(Score) == run(clicks.score, VIEW).result(Score)


async def test_a_view_that_cannot_be_is_a_dead_letter_and_the_others_are_scored() -> None:
    async with bench(clicks.score) as engine:
        bad = await engine.send("clicks", {"visitor": "v", "page": "tea", "seconds": 1}, type="page.viewed")
        good = await engine.send("clicks", VIEW, type="page.viewed")
    assert (len(bad.runs), len(bad.dead_letters)) == (0, 1)
    assert good.run.result(Score).score == 50
