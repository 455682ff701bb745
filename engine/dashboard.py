"""The dashboard: serves pages, API and events over HTTP from a history that a projector beside it fills; decides nothing."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from engine import api, web_app
from engine.actions import Actions
from engine.broker import Broker, Partition
from engine.doorkeeper import Doorkeeper
from engine.errors import EngineError, SettingsError
from engine.event_taker import EventTaker
from engine.history import History
from engine.http_answers import json_answer
from engine.http_server import HttpServer
from engine.login_limits import LoginLimits
from engine.logs import logger
from engine.patient_sink import PatientSink
from engine.prometheus import DashboardMetrics
from engine.settings import Settings
from engine.telemetry import Tracer
from engine.vitals import Vitals
from engine.web_login import Login
from engine.web_roles import check_access

#: Records behind which the history may be and still counts as caught up: what a projector reads in a second.
CAUGHT_UP_RECORDS = 10_000
#: How often it is looked whether pages have to say that they are old.
_WATCH_SECONDS = 3.0
#: A page that is being made at the end has so long.
_GRACE_SECONDS = 2.0


class Projecting(Protocol):
    """Who fills the history."""

    #: Why it does not now; empty where it does.
    trouble: str
    #: Whether another process does.
    is_elsewhere: bool

    async def run(self) -> None:
        """Fill it until stopped."""

    def stop(self) -> None:
        """Let ``run`` return."""


class Dashboard:
    """``await Dashboard(settings, broker, projecting).run()``; ``stop`` ends it in order."""

    def __init__(self, settings: Settings, broker: Broker, projecting: Projecting) -> None:
        """Raises SettingsError where others could reach it and none is asked who they are."""
        if not settings.http:
            raise SettingsError("http", "", "is off, and pages need an address", "Give --http 127.0.0.1:8282, say.")
        access, limits = check_access(settings), LoginLimits()
        self._settings, self._broker, self._projecting = settings, broker, projecting
        self._sink = PatientSink(broker)
        self._vitals = Vitals(settings, broker)
        self._metrics = DashboardMetrics(self._vitals, self._offsets, settings.engines)
        histories = functools.partial(History.open, settings.history_path)
        self._tracer = Tracer.from_environment(f"engine-{settings.app}")
        self._actions = Actions(settings, broker, self._sink, self._tracer, histories)
        mounted = Mount(api.ROOT, routes=api.routes(self._actions, histories))
        app = web_app.build(
            settings, actions=self._actions, vitals=self._vitals, broker=broker, more_routes=[*self._routes(), mounted]
        )
        self._parts = app.state.parts
        app.router.routes.extend(Login(settings, access, limits, self._parts.pages).routes)
        guarded = Doorkeeper(app, settings, access, limits, has_login=True)
        self._server = HttpServer(guarded, settings.http, _GRACE_SECONDS, name="dashboard")
        self._stopping = asyncio.Event()

    @property
    def address(self) -> str:
        """``host:port`` where it listens."""
        return self._server.address

    def stop(self) -> None:
        """Make ``run`` return, in order."""
        self._stopping.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until stopped, whether Kafka and the history are there or not. Raises SettingsError for a taken port."""
        projecting: asyncio.Task[None] | None = None
        try:
            await self._server.start()
            projecting = asyncio.create_task(self._projecting.run(), name="dashboard-projector")
            settings = self._settings
            logger.info("dashboard started", http=self.address, app=settings.app, history=settings.history_shown)
            on_ready()
            watching = asyncio.create_task(self._watch(), name="dashboard-watch")
            stopping = asyncio.create_task(self._stopping.wait(), name="dashboard-stop")
            try:
                await asyncio.wait({projecting, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()
            finally:
                stopping.cancel()
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        finally:
            await self._close(projecting)

    async def _close(self, projecting: asyncio.Task[None] | None) -> None:
        """Order matters: streams end before the server waits for its connections, and what answers need goes last."""
        self._parts.live.close()
        await self._server.close()
        self._projecting.stop()
        try:
            if projecting is not None:
                await projecting
        finally:
            self._parts.reader.close()
            await self._actions.close()
            await self._vitals.close()
            await self._sink.close()
            await self._broker.close()
            await asyncio.to_thread(self._tracer.close)
            logger.info("dashboard stopped", app=self._settings.app)

    async def _watch(self) -> None:
        """Have every page say so while the history does not follow the topics."""
        while True:
            found = (await self._readiness())["history"]
            self._parts.pages.notice = "" if found == "ok" else f"What you see may be old. The history: {found}"
            await asyncio.sleep(_WATCH_SECONDS)

    def _routes(self) -> list[BaseRoute]:
        return [
            EventTaker(self._settings, self._sink).route,
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._scrape),
        ]

    async def _scrape(self, request: Request) -> Response:
        content, content_type = await self._metrics.scrape()
        return Response(content, headers={"content-type": content_type})

    async def _offsets(self) -> Mapping[Partition, int]:
        found: Mapping[Partition, int] = await self._parts.reader.ask(lambda history: history.offsets())
        return found

    async def _healthz(self, request: Request) -> Response:
        return json_answer(200, {"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        parts = await self._readiness()
        ready = all(state == "ok" for state in parts.values())
        # Anybody may ask whether it is ready; why it is not is for those who may look.
        told = {"ready": ready} if request.state.visitor is None else {"ready": ready, "parts": parts}
        return json_answer(200 if ready else 503, told)

    async def _readiness(self) -> Mapping[str, str]:
        seen = await self._vitals.look()
        parts = {"kafka": seen.kafka_trouble or "ok", "history": self._projecting.trouble or "ok"}
        if parts["history"] == "ok" and parts["kafka"] == "ok":
            parts["history"] = await self._behind(seen.ends or {})
        for engine in seen.engines:
            if engine.is_ready is None:
                parts[f"engine {engine.address}"] = engine.trouble
            parts |= {
                part if len(seen.engines) == 1 else f"engine {engine.address} {part}": state
                for part, state in engine.parts.items()
            }
        return parts

    async def _behind(self, ends: Mapping[tuple[str, int], int]) -> str:
        settings = self._settings
        try:
            offsets = await self._offsets()
        except EngineError as error:
            return str(error)
        topics = (settings.states_topic, settings.dead_letters_topic)
        # A partition in which nothing was read yet has no offset; its beginning may be far from 0, but never behind its end.
        behind = sum(max(0, end - offsets.get(place, 0)) for place, end in ends.items() if place[0] in topics)
        return "ok" if behind <= CAUGHT_UP_RECORDS else f"{behind:,} records behind the topics; it is catching up"
