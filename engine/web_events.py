"""The Events page: what came in and what became of it, live; of one topic also what made nothing, and why; and a test event."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.broker import Broker
from engine.command_errors import UsageError
from engine.declarations import Declaration
from engine.errors import EngineError
from engine.event_lister import EventLister, Listed
from engine.history import History
from engine.history_rows import EventRow, Page
from engine.web_acts import said
from engine.web_forms import read_form
from engine.web_parts import Parts

PAGE = 50
#: Reading a topic's end takes some requests to Kafka: so often at most while somebody looks.
_REFRESH_SECONDS = 3.0
_KAFKA_SECONDS = 10.0
_FORM_BYTES = 8 * 1024 * 1024


def routes(parts: Parts) -> list[Route]:
    """Its addresses."""

    async def look(topic: str, cursor: str) -> Mapping[str, Any]:
        def ask(history: History) -> tuple[list[Declaration], Page[EventRow] | None]:
            return history.declarations(), None if topic else history.events(cursor=cursor or None, limit=PAGE)

        declared, page = await parts.reader.ask(ask)
        topics = sorted({trigger.topic for one in declared for trigger in one.triggers})
        context: dict[str, Any] = {
            "topic": topic,
            "cursor": cursor,
            "topics": topics,
            "declared": declared,
            "page": page,
            "listed": None,
        }
        if topic and parts.broker is not None:
            context["listed"] = await _listed(parts, parts.broker, topic, {one.name: one for one in declared})
        return context

    def asked(request: Request) -> tuple[str, str]:
        return request.query_params.get("topic", "")[:249], request.query_params.get("cursor", "")[:100]

    async def show(request: Request) -> Response:
        topic, cursor = asked(request)
        live = None if cursor else f"/events/live?topic={quote(topic)}" if topic else "/events/live"
        trouble = ""
        try:
            context = await look(topic, cursor)
        except EngineError as error:
            if not topic:
                raise
            # Kafka or the topic is not there: the page stays, to choose another.
            context, trouble, live = await look("", ""), str(error), None
        may_act = parts.actions is not None
        context = {**context, "topic": topic, "trouble": trouble, "live": live, "may_act": may_act}
        return await parts.pages.page(request, "events.html", context, active="events")

    async def live(request: Request) -> Response:
        topic, cursor = asked(request)
        refresh_seconds = _REFRESH_SECONDS if topic else None
        return parts.live.respond(
            request, {"events": "_events.html"}, lambda: look(topic, cursor), refresh_seconds=refresh_seconds
        )

    async def send(request: Request) -> Response:
        if parts.actions is None:
            raise HTTPException(404, "This dashboard only shows")
        form = {name: values[0] for name, values in (await read_form(request, _FORM_BYTES)).items()}
        topic = form.get("topic", "").strip()
        if not topic:
            raise UsageError("topic", "none is named", "Name the topic that the event goes to.")
        if topic.startswith((f"{parts.settings.app}.", "__")):
            raise UsageError("topic", f"{topic} is written by the engine or by Kafka alone", "Name a topic of events.")
        position = await parts.actions.send_event(
            topic,
            form.get("data", "").replace("\r\n", "\n").encode(errors="replace"),
            type=form.get("type", "").strip(),
            source=form.get("source", "").strip(),
            id=form.get("id", "").strip() or None,
            key=form.get("key", "").strip() or None,
        )
        return said(f"Sent: {position}")

    return [
        Route("/events", show),
        Route("/events/live", live),
        # Not below /events/, where programs send theirs.
        Route("/send-event", send, methods=["POST"]),
    ]


async def _listed(parts: Parts, broker: Broker, topic: str, declared: Mapping[str, Declaration]) -> list[Listed]:
    """The last events of a topic, the newest first."""
    lister = EventLister(parts.settings, broker, topic)
    try:
        async with asyncio.timeout(_KAFKA_SECONDS):
            standing = await lister.standing()
            records = await lister.latest(standing, PAGE)
        found = await parts.reader.ask(lambda history: lister.listed(records, history, declared, standing))
    except TimeoutError as error:
        raise UsageError(
            topic, f"was not read within {_KAFKA_SECONDS:g} s", "Try again; `engine doctor` looks closer."
        ) from error
    finally:
        await lister.close()
    return found[::-1]
