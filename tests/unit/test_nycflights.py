"""engine.nycflights: the events of the demo."""

from __future__ import annotations

from collections import Counter
from datetime import date

import msgspec
import pytest

from engine import nycflights
from engine.command_errors import NotFound
from engine.errors import EventError
from engine.events import Position, RawEvent, read
from engine.nycflights import DEFAULT_DAY, DemoEvent, Fate, demo_events


@pytest.fixture(scope="module")
def events() -> list[DemoEvent]:
    return list(demo_events())


def event_of(demo_event: DemoEvent) -> RawEvent:
    return read(demo_event.record.value, demo_event.record.headers, Position("flights", 0, 0))


def test_the_default_is_one_day_of_about_a_thousand_flights_closed_at_three_airports(events: list[DemoEvent]) -> None:
    types = Counter(event_of(event).type for event in events if event.fate is not Fate.DEAD_LETTER)
    assert types == {"flight.departed": 799, "flight.cancelled": 180, "day.closed": 3}
    assert {event.at.date() for event in events if event.fate is Fate.NOTHING} == {DEFAULT_DAY}


def test_every_event_in_order_is_a_cloudevent_of_its_own(events: list[DemoEvent]) -> None:
    sound = [event_of(event) for event in events if event.fate is not Fate.DEAD_LETTER]
    assert [event.id for event in sound] == [event.id for event in events if event.fate is not Fate.DEAD_LETTER]
    assert len({(event.source, event.id) for event in sound}) == len(sound)
    assert sound[0].id == "US1843-2013-03-08T05:00"
    assert msgspec.json.decode(sound[0].data or b"")["departed_at"] == "2013-03-08T04:56:00-05:00"


def test_departures_come_in_order_of_time(events: list[DemoEvent]) -> None:
    times = [event.at for event in events if event_of_type(event, "flight.departed")]
    assert times == sorted(times)


def event_of_type(event: DemoEvent, type: str) -> bool:
    return event.fate is not Fate.DEAD_LETTER and event_of(event).type == type


def test_a_closed_day_carries_all_flights_of_its_airport_and_follows_them(events: list[DemoEvent]) -> None:
    closings = [event for event in events if event_of_type(event, "day.closed")]
    assert closings == events[-3:]
    data = [msgspec.json.decode(event.record.value or b"") for event in closings]
    assert [airport["airport"] for airport in data] == ["EWR", "JFK", "LGA"]
    assert sum(len(airport["flights"]) for airport in data) == 979


def test_six_events_are_broken_each_in_its_own_way() -> None:
    broken = [event for event in demo_events(20) if event.fate is Fate.DEAD_LETTER]
    assert [event.id for event in broken] == [
        "truncated-json",
        "wrong-type",
        "missing-field",
        "not-utf-8",
        "no-id",
        "specversion-9",
    ]
    with pytest.raises(EventError, match="attribute id is missing"):
        event_of(broken[4])
    with pytest.raises(EventError, match="specversion"):
        event_of(broken[5])


def test_a_single_flight_still_brings_every_kind_of_event() -> None:
    fates = Counter(event.fate for event in demo_events(1))
    assert fates == {Fate.RUN: 2, Fate.DEAD_LETTER: 6}


def test_more_flights_than_a_day_go_on_with_the_next_and_close_both() -> None:
    events = [event for event in demo_events(1000) if event_of_type(event, "day.closed")]
    assert [event.id for event in events] == [
        "EWR-2013-03-08",
        "JFK-2013-03-08",
        "LGA-2013-03-08",
        "EWR-2013-03-09",
        "JFK-2013-03-09",
        "LGA-2013-03-09",
    ]


def test_months_follow_each_other_as_in_the_calendar() -> None:
    days = dict.fromkeys(event.at.month for event in demo_events(1100, first_day=date(2013, 9, 30)) if event.id[0] == "U")
    assert list(days) == [9, 10]


def test_a_day_in_summer_has_the_offset_of_summer() -> None:
    first = next(demo_events(1, first_day=date(2013, 7, 1)))
    assert first.at.strftime("%z") == "-0400"


def test_without_the_package_the_error_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(name: str) -> None:
        raise nycflights.PackageNotFoundError(name)

    monkeypatch.setattr(nycflights, "distribution", not_there)
    with pytest.raises(NotFound, match=r"pip install 'kafka-dask-engine\[stack\]'"):
        next(demo_events(1))
