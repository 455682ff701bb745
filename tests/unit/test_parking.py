"""engine.parking: sleeps and waits are task runs of their own, told once, whoever owns the run."""

from __future__ import annotations

from typing import Any

import pytest

from engine.events import Event, Position
from engine.parking import Parking
from engine.planning import PlannedSleep, PlannedWait
from engine.runs import FlowRun
from engine.states import Failure, State, StateChange, encode, utc
from tests.unit.driven import rebuilt
from tests.unit.recorded import RUN_ID, run_of

SLEEP = PlannedSleep("3", 60.5)
WAIT = PlannedWait("4", "orders", None, None, None, Any, 5.0, 10.5)
ENDLESS = PlannedWait("4", "orders", None, None, None, Any, None, 10.5)


def parking(run: FlowRun | None = None) -> tuple[Parking, FlowRun]:
    run = run or run_of()
    if run.state is State.SCHEDULED:
        run.advance(State.RUNNING, 10.0, 9)
    return Parking(run, 9), run


def told(changes: list[StateChange]) -> list[tuple[str, str]]:
    return [((change.task_run_id or "").removeprefix(f"{RUN_ID}/"), change.state.value) for change in changes]


def test_a_sleep_is_told_with_the_time_it_wakes_at() -> None:
    parked, _ = parking()
    changes, until = parked.park(SLEEP, 11.0) or ([], None)
    assert told(changes) == [("engine.sleep/3", "SCHEDULED"), ("engine.sleep/3", "RUNNING")]
    assert (changes[0].wakes_at, until, len(parked)) == (utc(60.5), 60.5, 1)


def test_a_wait_ends_at_its_timeout_from_when_it_was_asked_for() -> None:
    parked, _ = parking()
    changes, until = parked.park(WAIT, 11.0) or ([], None)
    assert told(changes) == [("engine.wait_for_event/4", "SCHEDULED"), ("engine.wait_for_event/4", "RUNNING")]
    assert (changes[0].wakes_at, until) == (utc(15.5), 15.5)
    assert (parking()[0].park(ENDLESS, 11.0) or ((), 0.0))[1] is None


def test_another_owner_goes_on_to_the_same_time_and_tells_nothing_twice() -> None:
    first, _ = parking()
    changes, _ = first.park(SLEEP, 11.0) or ([], None)
    run = rebuilt([run_of().advance(State.RUNNING, 10.0, 9), *changes])
    second, _ = parking(run)
    # Gone through again at another time: what was told counts.
    assert second.park(PlannedSleep("3", 99.5), 50.0) == ([], 60.5)


def test_one_whose_running_was_lost_is_begun() -> None:
    first, _ = parking()
    changes, _ = first.park(SLEEP, 11.0) or ([], None)
    second, _ = parking(rebuilt([run_of().advance(State.RUNNING, 10.0, 9), changes[0]]))
    again, until = second.park(SLEEP, 50.0) or ([], None)
    assert (told(again), until) == ([("engine.sleep/3", "RUNNING")], 60.5)


def test_a_sleep_that_is_over_is_told_and_fed() -> None:
    parked, run = parking()
    parked.park(SLEEP, 11.0)
    change, feed = parked.wake("3", 61.5) or (None, None)
    assert change is not None
    assert feed is not None
    assert (change.state, change.at, feed.index, feed.state, feed.at) == (
        State.COMPLETED,
        utc(61.5),
        "3",
        State.COMPLETED,
        61.5,
    )
    assert len(parked) == 0
    assert parked.wake("3", 62.0) is None
    assert Parking(run, 9).park(SLEEP, 63.0) is None, "the flow hears of it from the history"


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"event": b'{"id":"1"}'}, State.COMPLETED),
        ({"error": Failure("E", "where raised")}, State.FAILED),
        ({}, State.CANCELLED),
    ],
)
def test_a_wait_ends_with_its_event_an_error_or_its_timeout(fields: dict[str, Any], state: State) -> None:
    parked, _ = parking()
    parked.park(WAIT, 11.0)
    change, feed = parked.wake("4", 15.5, **fields) or (None, None)
    assert change is not None
    assert feed is not None
    assert (change.state, feed.state, feed.value, feed.failure) == (state, state, fields.get("event"), fields.get("error"))
    assert change.error == fields.get("error")
    assert change.reason == ("timeout" if state is State.CANCELLED else None)


def test_what_nobody_waits_for_any_more_is_cancelled_once() -> None:
    parked, _ = parking()
    parked.park(SLEEP, 11.0)
    [change] = parked.drop("3", 12.0)
    assert (change.state, change.reason, len(parked)) == (State.CANCELLED, "dropped", 0)
    assert parked.drop("3", 12.0) == []
    assert parked.wake("3", 61.0) is None


def test_where_found_events_lay_is_known_to_the_next_owner() -> None:
    parked, run = parking()
    parked.park(WAIT, 11.0)
    assert parked.found() == frozenset()
    event = Event(id="1", source="/s", type="t", data=None, position=Position("orders", 1, 7))
    parked.wake("4", 12.0, event=encode(event))
    assert Parking(run, 9).found() == {Position("orders", 1, 7)}
