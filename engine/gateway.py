"""The gateway: the engine's own HTTP endpoint, which takes events and says whether the engine is well; runs nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.broker import Sink
from engine.doorkeeper import Doorkeeper
from engine.event_taker import EventTaker
from engine.http_answers import answer_http_error, json_answer
from engine.http_server import HttpServer
from engine.settings import Settings
from engine.web_roles import Access

#: Part of the engine → "ok", or why it is not.
Readiness = Callable[[], Mapping[str, str]]
#: The ``Accept`` header of a scrape → the metrics and their content type.
Scrape = Callable[[str], Awaitable[tuple[bytes, str]]]


class Gateway:
    """Serves ``POST /events/{topic}`` and ``GET /healthz``, ``/readyz`` and ``/metrics`` on ``settings.http``.

    Where a token or a proxy is configured, events are taken of those alone who may operate.
    """

    def __init__(self, settings: Settings, sink: Sink, readiness: Readiness, scrape: Scrape | None = None) -> None:
        self._readiness = readiness
        self._scrape = scrape
        app = Starlette(
            routes=[
                EventTaker(settings, sink).route,
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                *([] if scrape is None else [Route("/metrics", self._metrics)]),
            ],
            exception_handlers={HTTPException: answer_http_error},
        )
        app.router.redirect_slashes = False
        # What scrapes it has mostly no token, and learns no more than numbers.
        guarded = Doorkeeper(app, settings, Access(settings), open_paths=("/metrics",))
        self._server = HttpServer(guarded, settings.http, settings.grace_seconds, name="gateway")

    @property
    def address(self) -> str:
        """``host:port`` where it listens, the port being the real one where the settings say 0."""
        return self._server.address

    def check(self) -> None:
        """Raise SettingsError where the address cannot be had now; take nothing."""
        self._server.check()

    async def start(self) -> None:
        """Listen. Raises SettingsError where the address cannot be had."""
        await self._server.start()

    async def close(self) -> None:
        """Take no more requests, answer those under way within ``settings.grace_seconds``, then free the port."""
        await self._server.close()

    async def _healthz(self, request: Request) -> Response:
        return json_answer(200, {"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        parts = dict(self._readiness())
        ready = all(state == "ok" for state in parts.values())
        return json_answer(200 if ready else 503, {"ready": ready, "parts": parts})

    async def _metrics(self, request: Request) -> Response:
        if self._scrape is None:
            raise HTTPException(404)
        content, content_type = await self._scrape(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})
