"""Flights out of New York: why a departure was late, and how an airport's day went.

An example to copy: two flows, each a few plain functions. Call them in a test or a notebook and they are just that; let
an event call them and every task runs on the cluster.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import date, datetime
from statistics import median
from typing import Annotated

import msgspec

from engine import Retry, exponential, flow, on, task
from handlers import nyc
from handlers.nyc import Plane, Weather

#: A departure counts as late from here on, as the industry does.
LATE_MINUTES = 15
VERY_LATE_MINUTES = 60
#: Routes with fewer departures a day than this say nothing about the route.
ROUTE_DEPARTURES = 3

Airport = Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]
Carrier = Annotated[str, msgspec.Meta(pattern="^[0-9A-Z]{2}$")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


# --- What the events say -------------------------------------------------------------------------------------------


class Flight(msgspec.Struct, frozen=True, kw_only=True):
    """A flight of the schedule. Times are local to the airport of departure, with their offset from UTC."""

    carrier: Carrier
    number: Annotated[int, msgspec.Meta(ge=1)]
    origin: Airport
    destination: Airport
    distance_miles: Annotated[int, msgspec.Meta(ge=1)]
    scheduled_at: Moment
    tail_number: str | None = None
    #: None: it was cancelled.
    departed_at: Moment | None = None

    @property
    def delay_minutes(self) -> int | None:
        """Minutes after the schedule, negative when early; None when it was cancelled."""
        if self.departed_at is None:
            return None
        return round((self.departed_at - self.scheduled_at).total_seconds() / 60)


class Departure(Flight, frozen=True, kw_only=True):
    """A flight that has left: the data of a flight.departed event."""

    departed_at: Moment


class AirportDay(msgspec.Struct, frozen=True):
    """An airport's day with all its flights: the data of a day.closed event."""

    airport: Airport
    day: date
    flights: list[Flight]


# --- What the flows answer -----------------------------------------------------------------------------------------


class DelayReport(msgspec.Struct, frozen=True):
    """How late a departure was, and what may have caused it."""

    flight: str
    airline: str
    origin: str
    destination: str
    destination_name: str
    scheduled_at: datetime
    delay_minutes: int
    #: early, on time, late or very late.
    category: str
    #: In words; empty where the departure was not late, or where neither weather nor aircraft explains it.
    causes: list[str]
    #: In words, e.g. "Boeing 737-824 of 1999"; None for an aircraft that is not in the register.
    aircraft: str | None


class CarrierDay(msgspec.Struct, frozen=True):
    """One airline's departures from one airport on one day."""

    carrier: str
    airline: str
    flights: int
    cancelled: int
    #: Minutes late of every departure, by destination.
    delays: dict[str, list[int]]


class CarrierLine(msgspec.Struct, frozen=True):
    """A line of the day's table."""

    airline: str
    flights: int
    cancelled: int
    late: int
    #: None when every flight was cancelled.
    median_delay_minutes: float | None


class WorstRoute(msgspec.Struct, frozen=True):
    """The destination with the highest median delay of the day."""

    destination: str
    name: str
    departures: int
    median_delay_minutes: float


class DaySummary(msgspec.Struct, frozen=True):
    """How an airport's day went."""

    airport: str
    name: str
    day: date
    flights: int
    cancelled: int
    late: int
    median_delay_minutes: float | None
    worst_route: WorstRoute | None
    weather: str
    #: The airlines, the largest first.
    carriers: list[CarrierLine]


# --- Why was this departure late? ----------------------------------------------------------------------------------


@task(retry=Retry(attempts=3, wait=exponential(0.1)), timeout_seconds=30)
def look_up_weather(airport: str, at: datetime) -> Weather | None:
    """The weather at the scheduled hour. A look-up elsewhere may fail for a moment, so it is tried three times."""
    return nyc.weather_at(airport, at)


@task
def look_up_plane(tail_number: str | None) -> Plane | None:
    """The aircraft, where the register knows it."""
    return None if tail_number is None else nyc.planes().get(tail_number)


@task
def report_delay(departure: Departure, weather: Weather | None, plane: Plane | None) -> DelayReport:
    """Join what the two look-ups found with the departure itself."""
    # A departure always has a delay: only a cancelled flight has none.
    delay = departure.delay_minutes or 0
    late = delay >= LATE_MINUTES
    return DelayReport(
        flight=f"{departure.carrier}{departure.number}",
        airline=nyc.airlines().get(departure.carrier, departure.carrier),
        origin=departure.origin,
        destination=departure.destination,
        destination_name=nyc.airports().get(departure.destination, departure.destination),
        scheduled_at=departure.scheduled_at,
        delay_minutes=delay,
        category=category(delay),
        causes=weather_causes(weather) + age_causes(plane, departure.scheduled_at.year) if late else [],
        aircraft=describe(plane),
    )


@flow(on("flights", type="flight.departed"))
def delay_report(departure: Departure) -> DelayReport:
    """Two look-ups side by side, then a report that needs both."""
    weather = look_up_weather(departure.origin, departure.scheduled_at)
    plane = look_up_plane(departure.tail_number)
    return report_delay(departure, weather, plane)


def category(delay_minutes: int) -> str:
    """The delay in a word."""
    if delay_minutes >= VERY_LATE_MINUTES:
        return "very late"
    if delay_minutes >= LATE_MINUTES:
        return "late"
    return "on time" if delay_minutes >= 0 else "early"


def weather_causes(weather: Weather | None) -> list[str]:
    """What of the weather slows an airport down, in words."""
    if weather is None:
        return []
    causes = []
    wind, gust = weather.wind_mph or 0.0, weather.gust_mph or 0.0
    if gust >= 35:
        causes.append(f"gusts of {gust:.0f} mph")
    elif wind >= 20:
        causes.append(f"wind of {wind:.0f} mph")
    if weather.visibility_miles is not None and weather.visibility_miles < 3:
        causes.append(f"visibility {weather.visibility_miles:g} mi")
    if weather.precipitation_inches:
        cold = weather.temperature_fahrenheit is not None and weather.temperature_fahrenheit <= 34
        causes.append("snow" if cold else "rain")
    return causes


def age_causes(plane: Plane | None, year: int) -> list[str]:
    """Old aircraft break more often."""
    if plane is None or plane.built is None or year - plane.built < 20:
        return []
    return [f"aircraft {year - plane.built} years old"]


def describe(plane: Plane | None) -> str | None:
    """The aircraft in a few words."""
    if plane is None:
        return None
    built = "" if plane.built is None else f" of {plane.built}"
    return f"{plane.manufacturer} {plane.model}{built}"


# --- How did the airport's day go? ---------------------------------------------------------------------------------


@task
def by_carrier(flights: list[Flight]) -> list[list[Flight]]:
    """The flights of each airline, airlines in the order of their codes. How many there are shows when it has run."""
    groups: dict[str, list[Flight]] = defaultdict(list)
    for flight in flights:
        groups[flight.carrier].append(flight)
    return [groups[carrier] for carrier in sorted(groups)]


@task
def summarise_carrier(flights: list[Flight]) -> CarrierDay:
    """The day of one airline: ``flights`` are all its own, and at least one."""
    delays: dict[str, list[int]] = defaultdict(list)
    for flight in flights:
        if flight.delay_minutes is not None:
            delays[flight.destination].append(flight.delay_minutes)
    carrier = flights[0].carrier
    return CarrierDay(
        carrier=carrier,
        airline=nyc.airlines().get(carrier, carrier),
        flights=len(flights),
        cancelled=sum(flight.departed_at is None for flight in flights),
        delays=dict(delays),
    )


@task
def describe_weather(airport: str, day: date) -> str:
    """The day's weather in a line."""
    reports = nyc.weather_on(airport, day)
    if not reports:
        return "no reports"
    gust = max(max(report.wind_mph or 0.0, report.gust_mph or 0.0) for report in reports)
    wet = sum(bool(report.precipitation_inches) for report in reports)
    dim = sum(report.visibility_miles is not None and report.visibility_miles < 3 for report in reports)
    parts = [f"wind to {gust:.0f} mph"]
    if wet:
        parts.append(f"{wet} h wet")
    if dim:
        parts.append(f"{dim} h murky")
    return ", ".join(parts)


@task
def summarise_day(airport: str, day: date, carriers: list[CarrierDay], weather: str) -> DaySummary:
    """All airlines of the day together."""
    delays = [minutes for carrier in carriers for route in carrier.delays.values() for minutes in route]
    return DaySummary(
        airport=airport,
        name=nyc.airports().get(airport, airport),
        day=day,
        flights=sum(carrier.flights for carrier in carriers),
        cancelled=sum(carrier.cancelled for carrier in carriers),
        late=late_among(delays),
        median_delay_minutes=median(delays) if delays else None,
        worst_route=worst_route(carriers),
        weather=weather,
        carriers=[line(carrier) for carrier in sorted(carriers, key=lambda carrier: -carrier.flights)],
    )


@flow(on("flights", type="day.closed"))
def daily_summary(day: AirportDay) -> DaySummary:
    """A task per airline, however many the day turns out to have, and the weather beside them; then one that needs all."""
    carriers = summarise_carrier.map(by_carrier(day.flights))
    weather = describe_weather(day.airport, day.day)
    return summarise_day(day.airport, day.day, carriers, weather)


def line(carrier: CarrierDay) -> CarrierLine:
    """The airline's line of the table."""
    delays = [minutes for route in carrier.delays.values() for minutes in route]
    return CarrierLine(
        airline=carrier.airline,
        flights=carrier.flights,
        cancelled=carrier.cancelled,
        late=late_among(delays),
        median_delay_minutes=median(delays) if delays else None,
    )


def worst_route(carriers: list[CarrierDay]) -> WorstRoute | None:
    """The route with the highest median delay among those flown often enough; None where there is none."""
    routes: dict[str, list[int]] = defaultdict(list)
    for carrier in carriers:
        for destination, delays in carrier.delays.items():
            routes[destination] += delays
    busy = {destination: delays for destination, delays in routes.items() if len(delays) >= ROUTE_DEPARTURES}
    if not busy:
        return None
    worst = max(busy, key=lambda destination: median(busy[destination]))
    return WorstRoute(worst, nyc.airports().get(worst, worst), len(busy[worst]), median(busy[worst]))


def late_among(delays: list[int]) -> int:
    """How many of these departures count as late."""
    return sum(minutes >= LATE_MINUTES for minutes in delays)
