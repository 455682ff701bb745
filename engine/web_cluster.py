"""The Cluster page: engines and their parts, workers with memory and threads, and how far groups are behind; now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.errors import EngineError
from engine.history import History
from engine.vital_signs import Lag, Vital
from engine.web_parts import Parts

_REFRESH_SECONDS = 2.0
#: Workers that were seen within this time and are gone now.
_SEEN_SECONDS = 3_600.0


def routes(parts: Parts) -> list[Route]:
    """Its addresses."""

    async def look() -> Mapping[str, Any]:
        seen: Vital | None = await parts.vitals.look() if parts.vitals is not None else None
        now, trouble = parts.now(), ""
        behind: dict[tuple[str, int], int] | None = None
        gone: list[tuple[str, int, float]] = []
        try:
            offsets, workers = await parts.reader.ask(lambda history: _ask(history, now))
        except EngineError as error:
            # What lives is shown all the same; of the history the page says what is wrong.
            trouble = str(error)
        else:
            behind = None if seen is None else seen.behind(offsets)
            alive = set() if seen is None or seen.dask is None else {worker.address for worker in seen.dask.workers}
            gone = [one for one in workers if one[0] not in alive]
        groups = _groups(seen)
        return {
            "seen": seen,
            "groups": groups,
            "most": max((lag.lag for lags in groups.values() for lag in lags), default=0),
            "behind": None if behind is None else sum(behind.values()),
            "gone": gone if seen is not None and seen.dask is not None else [],
            "history_trouble": trouble,
        }

    async def show(request: Request) -> Response:
        return await parts.pages.page(request, "cluster.html", {**await look(), "live": "/cluster/live"}, active="cluster")

    async def live(request: Request) -> Response:
        return parts.live.respond(request, {"cluster": "_cluster.html"}, look, refresh_seconds=_REFRESH_SECONDS)

    return [Route("/cluster", show), Route("/cluster/live", live)]


def _ask(history: History, now: float) -> tuple[dict[tuple[str, int], int], list[tuple[str, int, float]]]:
    return history.offsets(), [(row.worker, row.attempts, row.last_at) for row in history.workers(now - _SEEN_SECONDS)]


def _groups(seen: Vital | None) -> dict[tuple[str, str], list[Lag]]:
    """Partitions by group and topic."""
    found: dict[tuple[str, str], list[Lag]] = {}
    for lag in (seen.lags if seen is not None else None) or ():
        found.setdefault((lag.group, lag.topic), []).append(lag)
    return found
