"""The Runs page: a live list with filters in the address, page by page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.history import History, Page
from engine.history_schema import RunRow
from engine.run_queries import RunQuery, query_of
from engine.states import State
from engine.web_parts import Parts

PAGE = 50
#: How long runs have been under way is told anew so often.
REFRESH_SECONDS = 5.0


def routes(parts: Parts) -> list[Route]:
    """Its addresses."""

    async def look(query: RunQuery) -> Mapping[str, Any]:
        now = parts.now()

        def ask(history: History) -> tuple[Page[RunRow], list[str]]:
            return find(history, query, now), history.flow_names()

        page, flows = await parts.reader.ask(ask)
        is_open = any(run.ended_at is None for run in page.items)
        return {
            "refresh_seconds": REFRESH_SECONDS if is_open else None,
            "page": page,
            "flows": flows,
            "query": query,
            "states": list(State),
            "may_act": parts.actions is not None,
        }

    async def show(request: Request) -> Response:
        query = query_of(request.query_params.multi_items())
        # Older pages stay as they are: what is new is on the first one.
        live = None if query.cursor else query.address("/runs/live")
        return await parts.pages.page(request, "runs.html", {**await look(query), "live": live}, active="runs")

    async def live(request: Request) -> Response:
        query = query_of(request.query_params.multi_items())
        return parts.live.respond(request, {"runs": "_runs.html"}, lambda: look(query))

    return [Route("/runs", show), Route("/runs/live", live)]


def find(history: History, query: RunQuery, now: float) -> Page[RunRow]:
    """The runs of a query. A text is looked for among ids of runs and events, and then the other filters are applied."""
    wanted = query.wanted(now)
    if not query.text:
        return history.runs(wanted, cursor=query.cursor or None, limit=PAGE)
    found = {run.run_id: run for run in history.runs_like(query.text, limit=10 * PAGE)}
    for position in history.positions_of(query.text)[:PAGE]:
        event = history.event(position)
        found |= {run.run_id: run for run in (event.runs if event is not None else [])}
    rows = [
        run
        for run in found.values()
        if (not wanted.flows or run.flow in wanted.flows)
        and (not wanted.states or run.state in wanted.states)
        and (wanted.key is None or run.run_key == wanted.key)
        and (wanted.since is None or run.scheduled_at >= wanted.since)
    ]
    rows.sort(key=lambda run: (run.scheduled_at, run.place), reverse=True)
    return Page(rows[: 2 * PAGE], None)
