"""The HTTP endpoint: takes CloudEvents, answers once Kafka has them; reads and runs nothing.

Source: CloudEvents 1.0.2, its HTTP protocol binding (binary, structured, batched) and JSON format.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from engine.broker import Outgoing, Sink
from engine.errors import EngineError, EventError, KafkaUnavailable, RecordTooLarge, SettingsError, TopicError
from engine.events import Headers, Position, RawEvent, Reason, read, to_headers
from engine.settings import Settings, is_loopback

#: Part of the engine → "ok", or why it is not.
Readiness = Callable[[], Mapping[str, str]]

#: The ``Accept`` header of a scrape → the metrics and their content type.
Scrape = Callable[[str], Awaitable[tuple[bytes, str]]]

#: A sender that is slower than this with its body is turned away.
BODY_SECONDS = 30.0
#: Bodies held at once, as a multiple of the largest one: the bound of what senders can make the engine keep.
BODIES_AT_ONCE = 8
#: Connections at once; more are answered 503.
CONNECTIONS = 512
#: When a sender should try again after a 503.
RETRY_AFTER_SECONDS = 5

_TOPIC = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z")
_QUOTED_PAIR = re.compile(r"\\(.)")
_STRUCTURED = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"


class _Required(msgspec.Struct):
    """What each event of a batch must have: looked at first, so that a long list of nothing is refused unread."""

    specversion: str
    id: str
    source: str
    type: str


class _RefusedError(EngineError):
    """Raised when a request is not taken, for another reason than its event or Kafka. The sender gets ``status``."""

    def __init__(self, status: int, error: str, reason: str) -> None:
        super().__init__(status, error, reason)
        self.status, self.error, self.reason = status, error, reason


class Gateway:
    """Serves ``POST /events/{topic}`` and ``GET /healthz``, ``/readyz`` and ``/metrics`` on ``settings.http``."""

    def __init__(self, settings: Settings, sink: Sink, readiness: Readiness, scrape: Scrape | None = None) -> None:
        self._settings = settings
        self._sink = sink
        self._readiness = readiness
        self._scrape = scrape
        self._held_bytes = 0
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """``host:port`` where it listens, the port being the real one where the settings say 0."""
        if self._socket is None:
            raise RuntimeError("the gateway has not been started")
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Listen. Raises SettingsError where the address cannot be had."""
        self._socket = _listen(self._settings.http)
        app = Starlette(
            routes=[
                Route("/events/{topic}", self._take, methods=["POST"]),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                *([] if self._scrape is None else [Route("/metrics", self._metrics)]),
            ],
            exception_handlers={HTTPException: _answer_http_error},
        )
        app.router.redirect_slashes = False
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=max(1, round(self._settings.grace_seconds)),
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([self._socket]), name="gateway")
        listening = asyncio.create_task(self._server.listening.wait(), name="gateway-listening")
        await asyncio.wait({self._serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            self._serving.result()

    async def close(self) -> None:
        """Take no more requests, answer those under way within ``settings.grace_seconds``, then free the port."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        if self._socket is not None:
            self._socket.close()

    async def _take(self, request: Request) -> Response:
        topic = request.path_params["topic"]
        body = bytearray()
        try:
            self._check(request, topic)
            await self._read_body(request, topic, body)
            events = _events(request, topic, bytes(body))
            positions = await self._sink.write([_outgoing(topic, event) for event in events])
        except EngineError as error:
            # Nothing was written, except perhaps where Kafka gave up half-way: the sender is told to send again.
            return _refusal(error)
        except ClientDisconnect:
            # Nothing was written, and nobody is there to be told.
            return Response(status_code=400)
        finally:
            self._held_bytes -= len(body)
        return _json(202, {"accepted": len(positions), "positions": [str(position) for position in positions]})

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
                        raise _RefusedError(503, "busy", "too many bodies are being read at once; try again")
        except TimeoutError as error:
            raise _RefusedError(408, "timeout", f"the body did not come within {BODY_SECONDS:g} s") from error

    def _check(self, request: Request, topic: str) -> None:
        host = request.url.hostname or ""
        if not self._settings.allow_plaintext and not is_loopback(host):
            # A web page can make its own name point to this machine; it cannot choose the Host that is sent along.
            raise _RefusedError(421, "wrong-host", f"{host} is not served here; use the loopback address")
        if not _TOPIC.match(topic):
            raise TopicError(topic, "is not a valid name of a topic", "Use letters, digits, . _ and -.")
        if topic.startswith((f"{self._settings.app}.", "__")):
            raise _RefusedError(403, "forbidden-topic", f"{topic} is written by the engine or by Kafka alone")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise _RefusedError(415, "unsupported-encoding", "send the body uncompressed")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.max_record_bytes:
            raise RecordTooLarge(topic, int(length), self._settings.max_record_bytes)

    async def _healthz(self, request: Request) -> Response:
        return _json(200, {"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        parts = dict(self._readiness())
        ready = all(state == "ok" for state in parts.values())
        return _json(200 if ready else 503, {"ready": ready, "parts": parts})

    async def _metrics(self, request: Request) -> Response:
        if self._scrape is None:
            raise HTTPException(404)
        content, content_type = await self._scrape(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})


class _Server(uvicorn.Server):
    """Leaves the signals to the process it runs in, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def _events(request: Request, topic: str, body: bytes) -> list[RawEvent]:
    """The events of a request. Raises EventError, or _RefusedError where it is of no kind the binding knows."""
    # The record does not exist yet, so the place in the body stands for its position.
    position = Position(topic, 0, 0)
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    trace = tuple((name, value) for name, value in _raw(request) if name in ("traceparent", "tracestate"))
    if media_type == _BATCH:
        return _batch(body, trace, position)
    if media_type == _STRUCTURED:
        return [read(body, (("content-type", _STRUCTURED.encode()), *trace), position)]
    if media_type.startswith("application/cloudevents"):
        raise _RefusedError(415, "unsupported-media-type", f"send {_STRUCTURED} or {_BATCH}, not {media_type}")
    attributes = tuple((f"ce_{name[3:]}", _decode(name, value)) for name, value in _raw(request) if name[:3] == "ce-")
    described = (("content-type", content_type.encode("latin-1")),) if content_type else ()
    if attributes:
        return [read(body or None, (*attributes, *described, *trace), position)]
    # Without attributes only JSON is taken: what a web page may send without asking first is of another type.
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise _RefusedError(
            415, "unsupported-media-type", "send application/json, or a CloudEvent (ce-* headers, or structured)"
        )
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EventError(Reason.MALFORMED_DATA, str(error)) from error
    return [read(body, (*described, *trace), position)]


def _batch(body: bytes, trace: Headers, position: Position) -> list[RawEvent]:
    try:
        msgspec.json.decode(body, type=list[_Required])
        elements = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventError(Reason.MALFORMED_EVENT, f"not a batch of CloudEvents in JSON: {error}") from error
    headers = (("content-type", _STRUCTURED.encode()), *trace)
    events = []
    for index, element in enumerate(elements):
        try:
            events.append(read(bytes(element), headers, position))
        except EventError as error:
            # All or nothing: a sender that is told 400 may send the whole batch again.
            raise EventError(error.reason, f"event {index} of the batch: {error.cause}") from error
    return events


def _outgoing(topic: str, event: RawEvent) -> Outgoing:
    key = event.extensions.get("partitionkey")
    if (event.datacontenttype or "").strip().lower().startswith("application/cloudevents"):
        # As a record of its own the event would be read as the one inside its data.
        raise EventError(Reason.MALFORMED_EVENT, "an event inside an event cannot be taken; send it by itself")
    headers = to_headers(event)
    if not event.type:
        # A bare record has no identity of its own: its readers name it by where it lies.
        headers = tuple((name, value) for name, value in headers if not name.startswith("ce_"))
    return Outgoing(topic, key.encode() if key else None, event.data, headers)


def _raw(request: Request) -> list[tuple[str, bytes]]:
    return [(name.decode("latin-1").lower(), value) for name, value in request.headers.raw]


def _decode(name: str, value: bytes) -> bytes:
    """A header's value after HTTP binding §3.1.3.2: unquoted, then percent-decoded once, and UTF-8."""
    if len(value) >= 2 and value[:1] == b'"' == value[-1:]:
        value = _QUOTED_PAIR.sub(r"\1", value[1:-1].decode("latin-1")).encode("latin-1")
    decoded = unquote_to_bytes(value)
    try:
        decoded.decode()
    except UnicodeDecodeError as error:
        raise EventError(Reason.MALFORMED_EVENT, f"the header {name} is not percent-encoded UTF-8") from error
    return decoded


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        # create_server lets a port be taken again at once after a restart.
        return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, ValueError, OverflowError) as error:
        raise SettingsError(
            "http",
            address,
            f"cannot listen there: {error}",
            "Free the port, or choose another; port 0 takes a free one.",
        ) from error


def _json(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def _refusal(error: EngineError) -> Response:
    match error:
        case _RefusedError():
            return _answer(error.status, error.error, error.reason)
        case EventError():
            return _answer(400, error.reason, error.cause)
        case RecordTooLarge():
            return _answer(413, "too-large", str(error))
        case TopicError():
            return _answer(404, "unknown-topic", str(error))
        case KafkaUnavailable():
            return _answer(503, "kafka-unavailable", str(error))
        case _:
            raise error


def _answer(status: int, error: str, reason: str) -> Response:
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    if status in (408, 413):
        # The rest of the body is not read, so the connection cannot be used again.
        headers["connection"] = "close"
    return _json(status, {"error": error, "reason": reason}, headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = error.detail.lower().replace(" ", "-")
    return _json(error.status_code, {"error": code, "reason": f"{request.method} {request.url.path}"}, error.headers)
