"""engine.hangs: whom a worker's process was ended for, and that nobody else is blamed for it."""

from __future__ import annotations

import pytest

from engine.deadlines import ENDED_AFTER_SECONDS
from engine.hangs import Suspect, hung

TIMEOUT_SECONDS = 10.0
DUE_SECONDS = TIMEOUT_SECONDS + ENDED_AFTER_SECONDS


def suspect(key: str, given: float, begun: float | None = None) -> Suspect:
    """``given`` and ``begun`` are how long after the process was to be ended for it, by either reckoning, the worker died."""
    return Suspect(key, TIMEOUT_SECONDS, DUE_SECONDS + given, None if begun is None else DUE_SECONDS + begun)


@pytest.mark.parametrize("late", [0.0, 0.3, 4.0])
def test_it_is_the_one_that_was_due_just_then(late: float) -> None:
    assert hung([suspect("a", late)]) == ["a"]
    assert hung([suspect("a", 60.0, late)]) == ["a"], "it waited on its worker before it began"
    assert hung([suspect("a", late), suspect("later", -2.0)]) == ["a"]


def test_a_worker_that_dies_at_any_other_time_was_not_ended_for_anybody() -> None:
    assert hung([]) == []
    for seconds in (-DUE_SECONDS, -ENDED_AFTER_SECONDS, -1.0, 60.0):
        assert hung([suspect("a", seconds), suspect("b", 100.0, seconds)]) == []


def test_clocks_of_two_machines_may_differ_a_little() -> None:
    assert hung([suspect("a", 0.2, -0.3)]) == ["a"]


def test_of_several_that_may_not_have_begun_none_is_blamed() -> None:
    assert hung([suspect("a", 0.1), suspect("b", 0.2)]) == []


def test_where_every_place_on_the_worker_was_taken_by_others_it_had_not_begun() -> None:
    """As where a worker dies for want of memory, with a task behind those that it ran."""
    assert hung([suspect("a", 0.1)], is_full=True) == []
    assert hung([suspect("a", 0.1), suspect("b", 0.2, 0.1)], is_full=True) == ["b"]


def test_one_that_has_begun_goes_before_those_that_may_not_have() -> None:
    assert hung([suspect("a", 0.1), suspect("b", 0.2, 0.1)]) == ["b"]
