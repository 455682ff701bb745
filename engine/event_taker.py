"""The event taker: answers ``POST /events/{topic}`` once Kafka has the events of the request; reads and runs nothing."""

from __future__ import annotations

import asyncio
import re

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from engine.broker import Sink
from engine.errors import EngineError, RecordTooLarge, TopicError
from engine.http_answers import RequestRefused, json_answer, refusal
from engine.http_events import events_of, outgoing_of
from engine.settings import Settings

#: A sender that is slower than this with its body is turned away.
BODY_SECONDS = 30.0
#: Bodies held at once, as a multiple of the largest one: the bound of what senders can make the engine keep.
BODIES_AT_ONCE = 8

_TOPIC = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z")


class EventTaker:
    """Writes the events of requests to their topics."""

    def __init__(self, settings: Settings, sink: Sink) -> None:
        self._settings = settings
        self._sink = sink
        self._held_bytes = 0

    @property
    def route(self) -> Route:
        """The path it answers."""
        return Route("/events/{topic}", self.take, methods=["POST"])

    async def take(self, request: Request) -> Response:
        """Answers 202 with the positions, or what is wrong."""
        topic = request.path_params["topic"]
        body = bytearray()
        try:
            self._check(request, topic)
            await self._read_body(request, topic, body)
            events = events_of(request.headers.raw, topic, bytes(body))
            positions = await self._sink.write([outgoing_of(topic, event) for event in events])
        except EngineError as error:
            # Nothing was written, except perhaps where Kafka gave up half-way: the sender is told to send again.
            return refusal(error)
        except ClientDisconnect:
            # Nothing was written, and nobody is there to be told.
            return Response(status_code=400)
        finally:
            self._held_bytes -= len(body)
        return json_answer(202, {"accepted": len(positions), "positions": [str(position) for position in positions]})

    async def _read_body(self, request: Request, topic: str, body: bytearray) -> None:
        limit = self._settings.max_record_bytes
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    self._held_bytes += len(chunk)
                    if len(body) > limit:
                        raise RecordTooLarge(topic, len(body), limit)
                    if self._held_bytes > BODIES_AT_ONCE * limit:
                        raise RequestRefused(503, "busy", "too many bodies are being read at once; try again")
        except TimeoutError as error:
            raise RequestRefused(408, "timeout", f"the body did not come within {BODY_SECONDS:g} s") from error

    def _check(self, request: Request, topic: str) -> None:
        if not _TOPIC.match(topic):
            raise TopicError(topic, "is not a valid name of a topic", "Use letters, digits, . _ and -.")
        if topic.startswith((f"{self._settings.app}.", "__")):
            raise RequestRefused(403, "forbidden-topic", f"{topic} is written by the engine or by Kafka alone")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestRefused(415, "unsupported-encoding", "send the body uncompressed")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.max_record_bytes:
            raise RecordTooLarge(topic, int(length), self._settings.max_record_bytes)
