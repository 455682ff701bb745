"""The Health page: whether all is well, in one sentence with its reasons; rates, lag, workers, the last hour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.charts import last_hour
from engine.history import History, RunFilter
from engine.history_schema import RunRow
from engine.states import State
from engine.verdicts import JUDGED_MINUTES, Facts, ends, failure_share, judge
from engine.vital_signs import Vital
from engine.web_parts import Parts

_LETTERS = 100
_FAILURES = 6
#: What Kafka, Dask and the engines say changes without the history.
REFRESH_SECONDS = 3.0


class Seen(msgspec.Struct, frozen=True):
    """What the history knows."""

    minutes: list[tuple[int, str, int]]
    open_runs: dict[str, int]
    oldest: RunRow | None
    waiting: RunRow | None
    letters: int
    more_letters: bool
    failures: list[RunRow]
    offsets: dict[tuple[str, int], int]
    has_runs: bool


class LagRow(msgspec.Struct, frozen=True):
    """A group's lag in a topic, partition by partition."""

    group: str
    topic: str
    total: int
    #: Partition, lag, and its share of the greatest.
    partitions: list[tuple[int, int, float]]


def routes(parts: Parts) -> list[Route]:
    """Its addresses."""

    async def look() -> Mapping[str, Any]:
        now = parts.now()
        seen = await parts.reader.ask(lambda history: _see(history, now))
        vital: Vital | None = None if parts.vitals is None else await parts.vitals.look()
        return _context(seen, vital, now)

    async def show(request: Request) -> Response:
        return await parts.pages.page(request, "health.html", {**await look(), "live": "/health/live"}, active="health")

    async def live(request: Request) -> Response:
        return parts.live.respond(request, {"health": "_health.html"}, look, refresh_seconds=REFRESH_SECONDS)

    return [Route("/", show), Route("/health/live", live)]


def _see(history: History, now: float) -> Seen:
    open_runs, oldest = history.open_runs()
    letters = history.letters(limit=_LETTERS)
    failures = history.runs(RunFilter(states=[State.FAILED, State.CRASHED], since=now - 86_400), limit=_FAILURES).items
    return Seen(
        minutes=history.minutes(now),
        open_runs=open_runs,
        oldest=oldest,
        waiting=history.oldest(State.SCHEDULED),
        letters=len(letters.items),
        more_letters=letters.cursor is not None,
        failures=failures,
        offsets=history.offsets(),
        has_runs=oldest is not None or bool(history.runs(limit=1).items),
    )


def _context(seen: Seen, vital: Vital | None, now: float) -> dict[str, Any]:
    behind = None if vital is None else vital.behind(seen.offsets)
    facts = Facts(
        now=now,
        minutes=seen.minutes,
        open_runs=seen.open_runs,
        waiting_since=None if seen.waiting is None else seen.waiting.scheduled_at,
        letters=seen.letters,
        more_letters=seen.more_letters,
        vital=vital,
        behind=None if behind is None else sum(behind.values()),
    )
    judged = ends(seen.minutes, now - JUDGED_MINUTES * 60)
    recent = ends(seen.minutes, now - 5 * 60)
    return {
        "seen": seen,
        "vital": vital,
        "verdict": judge(facts),
        "chart": last_hour(seen.minutes, now),
        "behind": facts.behind,
        "failure_share": failure_share(judged),
        "judged_minutes": JUDGED_MINUTES,
        # Whole minutes and the one under way: five at most.
        "started_a_minute": recent.get(State.SCHEDULED, 0) / 5,
        "ended_a_minute": sum(count for state, count in recent.items() if State(state).is_end) / 5,
        "lags": None if vital is None or vital.lags is None else _lags(vital),
        "open_count": sum(seen.open_runs.values()),
    }


def _lags(vital: Vital) -> list[LagRow]:
    groups: dict[tuple[str, str], dict[int, int]] = {}
    for entry in vital.lags or ():
        groups.setdefault((entry.group, entry.topic), {})[entry.partition] = entry.lag
    rows = []
    for (group, topic), lags in sorted(groups.items()):
        top = max([*lags.values(), 1])
        rows.append(LagRow(group, topic, sum(lags.values()), [(n, lag, lag / top) for n, lag in sorted(lags.items())]))
    return rows
