"""engine.turns: flows share the workers evenly."""

from __future__ import annotations

from engine.turns import Turns, priority


def first(turns: dict[str, float]) -> list[str]:
    return sorted(turns, key=turns.__getitem__)


def test_a_quick_flow_goes_before_nearly_all_that_a_slow_one_has_begun() -> None:
    turns = Turns()
    slow = {f"slow-{n}": turns.turn(f"slow-{n}", "slow", 0.5) for n in range(1_000)}
    for n in range(10):
        turns.end(f"slow-{n}")
        del slow[f"slow-{n}"]
    order = first(slow | {"quick": turns.turn("quick", "quick", 0.01)})
    assert order.index("quick") == 0


def test_a_flow_that_was_away_does_not_get_what_it_did_not_ask_for() -> None:
    turns = Turns()
    for n in range(100):
        turns.turn(f"busy-{n}", "busy", 1.0)
        turns.end(f"busy-{n}")
    back = {f"back-{n}": turns.turn(f"back-{n}", "back", 1.0) for n in range(3)}
    busy = {f"busy-{n}": turns.turn(f"busy-{n}", "busy", 1.0) for n in range(100, 103)}
    assert first(back | busy)[:3] != list(back), "they take turns from now on"


def test_a_flow_of_short_tasks_gets_as_much_time_as_one_of_long_tasks() -> None:
    turns = Turns()
    long = {f"long-{n}": turns.turn(f"long-{n}", "long", 1.0) for n in range(4)}
    short = {f"short-{n}": turns.turn(f"short-{n}", "short", 0.1) for n in range(40)}
    order = first(long | short)
    assert sum(name.startswith("short") for name in order[: order.index("long-2")]) >= 19


def test_a_run_keeps_its_turn_whatever_it_submits_later() -> None:
    turns = Turns()
    mine = turns.turn("mine", "flow", 1.0)
    turns.turn("other", "flow", 1.0)
    assert turns.turn("mine", "flow", 1.0) == mine


def test_nothing_is_kept_of_runs_that_have_ended() -> None:
    turns = Turns()
    turns.turn("mine", "flow", 1.0)
    turns.end("mine")
    turns.end("mine")
    turns.end("never seen")
    assert len(turns) == 0


def test_the_deeper_goes_first_within_a_run_and_never_before_an_earlier_run() -> None:
    assert priority(1.0, 1) > priority(1.0, 0)
    assert priority(1.0, 0) > priority(1.001, 5_000)
