"""The flows of handlers.flights, called as the plain functions they are."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from engine import State
from engine.testing import run
from handlers import flights
from handlers.flights import AirportDay, CarrierDay, Departure, Flight
from handlers.nyc import Plane, Weather

NEW_YORK_WINTER = timezone(timedelta(hours=-5))
SNOWY_MORNING = datetime(2013, 3, 8, 10, 0, tzinfo=NEW_YORK_WINTER)
DAY = date(2013, 3, 8)


def flight(delay_minutes: int | None = 0, **changes: Any) -> Flight:
    """A flight from EWR to ORD on a snowy morning; None: cancelled."""
    values: dict[str, Any] = {
        "carrier": "UA",
        "number": 1,
        "origin": "EWR",
        "destination": "ORD",
        "distance_miles": 719,
        "scheduled_at": SNOWY_MORNING,
        "tail_number": "N14228",
    } | changes
    left = None if delay_minutes is None else values["scheduled_at"] + timedelta(minutes=delay_minutes)
    return Flight(**values, departed_at=left)


def departure(delay_minutes: int, **changes: Any) -> Departure:
    return msgspec.convert(msgspec.to_builtins(flight(delay_minutes, **changes)), Departure)


def test_a_late_departure_in_snow_is_reported_with_what_may_have_caused_it() -> None:
    report = flights.delay_report(departure(95))
    assert report == flights.DelayReport(
        flight="UA1",
        airline="United Air Lines Inc.",
        origin="EWR",
        destination="ORD",
        destination_name="Chicago Ohare Intl",
        scheduled_at=SNOWY_MORNING,
        delay_minutes=95,
        category="very late",
        causes=["visibility 0.5 mi", "snow"],
        aircraft="Boeing 737-824 of 1999",
    )


def test_a_departure_on_time_has_no_causes_even_in_snow() -> None:
    report = flights.delay_report(departure(3))
    assert (report.category, report.causes) == ("on time", [])


def test_an_unknown_aircraft_airline_or_airport_is_no_error() -> None:
    report = flights.delay_report(departure(20, tail_number=None, carrier="ZZ", destination="ZZZ"))
    assert (report.aircraft, report.airline, report.destination_name) == (None, "ZZ", "ZZZ")


@pytest.mark.parametrize(
    ("minutes", "word"),
    [(-1, "early"), (0, "on time"), (14, "on time"), (15, "late"), (59, "late"), (60, "very late"), (853, "very late")],
)
def test_category(minutes: int, word: str) -> None:
    assert flights.category(minutes) == word


@pytest.mark.parametrize(
    ("weather", "causes"),
    [
        (None, []),
        (Weather(DAY), []),
        (Weather(DAY, wind_mph=19.9, visibility_miles=3.0, precipitation_inches=0.0), []),
        (Weather(DAY, wind_mph=21.0), ["wind of 21 mph"]),
        (Weather(DAY, wind_mph=21.0, gust_mph=40.2), ["gusts of 40 mph"]),
        (Weather(DAY, precipitation_inches=0.1, temperature_fahrenheit=50.0), ["rain"]),
        (Weather(DAY, precipitation_inches=0.1, temperature_fahrenheit=30.0), ["snow"]),
        (Weather(DAY, visibility_miles=0.25), ["visibility 0.25 mi"]),
    ],
)
def test_weather_causes(weather: Weather | None, causes: list[str]) -> None:
    assert flights.weather_causes(weather) == causes


def test_an_old_aircraft_is_a_cause_and_one_of_unknown_age_is_not() -> None:
    assert flights.age_causes(Plane("Boeing", "727", 100, 1975), 2013) == ["aircraft 38 years old"]
    assert flights.age_causes(Plane("Boeing", "727", 100, 1994), 2013) == []
    assert flights.age_causes(Plane("Boeing", "727", 100), 2013) == []
    assert flights.describe(Plane("Boeing", "727", 100)) == "Boeing 727"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("carrier", "united"),
        ("number", "fifteen"),
        ("number", 0),
        ("origin", "Newark"),
        ("scheduled_at", "2013-03-08T10:00:00"),  # without an offset nobody knows when that was
        ("departed_at", None),
    ],
)
def test_a_departure_with_a_wrong_field_is_refused_and_the_field_named(field: str, value: object) -> None:
    data = msgspec.to_builtins(departure(5)) | {field: value}
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        msgspec.convert(data, Departure)


def test_a_departure_without_a_required_field_is_refused() -> None:
    data = msgspec.to_builtins(departure(5))
    del data["departed_at"]
    with pytest.raises(msgspec.ValidationError, match="departed_at"):
        msgspec.convert(data, Departure)


def test_a_day_is_summed_up_over_its_airlines() -> None:
    summary = flights.daily_summary(
        AirportDay(
            "EWR",
            DAY,
            [
                flight(10),
                flight(20),
                flight(60),
                flight(None),
                flight(0, carrier="B6", destination="BOS"),
            ],
        )
    )
    assert (summary.flights, summary.cancelled, summary.late, summary.median_delay_minutes) == (5, 1, 2, 15.0)
    assert summary.name == "Newark Liberty Intl"
    assert summary.worst_route == flights.WorstRoute("ORD", "Chicago Ohare Intl", 3, 20)
    assert [(line.airline, line.flights, line.late) for line in summary.carriers] == [
        ("United Air Lines Inc.", 4, 2),
        ("JetBlue Airways", 1, 0),
    ]
    assert summary.weather == "wind to 21 mph, 15 h wet, 15 h murky"


def test_a_day_without_flights_or_with_all_of_them_cancelled_is_summed_up_too() -> None:
    empty = flights.daily_summary(AirportDay("EWR", date(2031, 1, 1), []))
    assert (empty.flights, empty.median_delay_minutes, empty.worst_route, empty.weather) == (0, None, None, "no reports")
    closed = flights.daily_summary(AirportDay("EWR", DAY, [flight(None), flight(None)]))
    assert (closed.flights, closed.cancelled, closed.median_delay_minutes) == (2, 2, None)
    assert closed.carriers[0].median_delay_minutes is None


def test_the_worst_route_leaves_out_those_flown_too_seldom() -> None:
    carriers = [
        CarrierDay("UA", "United", 5, 0, {"ORD": [10, 10], "BOS": [500, 500]}),
        CarrierDay("AA", "American", 1, 0, {"ORD": [40]}),
    ]
    worst = flights.worst_route(carriers)
    assert worst is not None
    assert (worst.destination, worst.departures, worst.median_delay_minutes) == ("ORD", 3, 10)


def test_results_travel_as_json() -> None:
    report = flights.delay_report(departure(95))
    assert msgspec.json.decode(msgspec.json.encode(report), type=flights.DelayReport) == report
    summary = flights.daily_summary(AirportDay("EWR", DAY, [flight(10)]))
    assert msgspec.json.decode(msgspec.json.encode(summary), type=flights.DaySummary) == summary


def test_a_day_has_as_many_tasks_as_airlines_which_only_a_task_can_tell() -> None:
    day = AirportDay("EWR", DAY, [flight(10), flight(20, carrier="B6"), flight(30, carrier="AA"), flight(5)])
    made = run(flights.daily_summary, day, type="day.closed")
    elements = [change for change in made.changes if change.task == "summarise_carrier" and change.state is State.SCHEDULED]
    assert [change.map_index for change in elements] == [0, 1, 2]
    names = [change.task for change in made.changes]
    split = next(n for n, change in enumerate(made.changes) if change.task == "by_carrier" and change.state.is_end)
    assert names.index("summarise_carrier") > split
    assert made.result(flights.DaySummary) == flights.daily_summary(day)


def test_a_day_without_flights_has_no_task_for_an_airline() -> None:
    made = run(flights.daily_summary, AirportDay("EWR", date(2031, 1, 1), []), type="day.closed")
    assert made.result(flights.DaySummary).flights == 0
    assert "summarise_carrier" not in {change.task for change in made.changes}
