"""The web application: the routes of all pages, the static files, and what is answered when something is not there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from engine import web_about, web_acts, web_cluster, web_events, web_flows, web_health, web_letters, web_run, web_runs
from engine.broker import Broker
from engine.errors import EngineError
from engine.history_reader import HistoryReader
from engine.settings import Settings
from engine.web_live import Live
from engine.web_pages import STATIC, Pages
from engine.web_parts import Acting, Looking, Parts

#: Each has ``routes(parts)``.
_PAGES = (web_health, web_acts, web_runs, web_run, web_flows, web_events, web_letters, web_cluster, web_about)


def build(
    settings: Settings,
    *,
    actions: Acting | None = None,
    vitals: Looking | None = None,
    now: Callable[[], float] = time.time,
    broker: Broker | None = None,
    more_routes: Sequence[BaseRoute] = (),
    **more: Any,
) -> Starlette:
    """The application, with ``more_routes`` beside those of the pages.

    ``more`` goes to Starlette (middleware, further exception handlers).

    ``app.state.parts`` has what it is made of. Whoever serves it calls ``app.state.parts.live.close()`` first when it stops:
    a server waits for its connections, and live ones do not end by themselves.
    """
    pages, reader = Pages(settings.app, now), HistoryReader(settings.history_path)
    parts = Parts(settings, pages, reader, Live(pages, reader), now, actions, vitals, broker)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        parts.live.close()
        parts.reader.close()

    async def refused(request: Request, error: Exception) -> Response:
        return await _refuse(pages, request, error)

    routes = [route for module in _PAGES for route in module.routes(parts)]
    app = Starlette(
        routes=[*routes, *more_routes, Mount("/static", StaticFiles(directory=STATIC))],
        exception_handlers={HTTPException: refused, EngineError: refused} | more.pop("exception_handlers", {}),
        lifespan=lifespan,
        **more,
    )
    app.state.parts = parts
    return app


async def _refuse(pages: Pages, request: Request, error: Exception) -> Response:
    """Every error of ours is a page that says what failed and what to do; what is not ours is a bug and goes on up."""
    if isinstance(error, HTTPException):
        status, title = error.status_code, "There is no such page" if error.status_code == 404 else error.detail
        text = f"{request.method} {request.url.path}"
    else:
        # As the exit codes of the commands: 2 usage, 3 not found, 4 cannot connect.
        status = {2: 400, 3: 404, 4: 503}.get(getattr(error, "exit_code", 1), 409)
        title = {400: "That cannot be asked", 404: "Not found", 503: "Not reachable now"}.get(status, "That did not work")
        text = str(error)
    if "hx-request" in request.headers:
        html = await pages.render(request, "_trouble.html", {"trouble": f"{title}: {text}"})
        return HTMLResponse(html, status, {"cache-control": "no-store"})
    made = await pages.page(request, "error.html", {"title": title, "text": text}, status=status)
    if isinstance(error, HTTPException) and error.headers:
        made.headers.update(error.headers)
    return made
