"""The HTTP server: listens at an address and serves an ASGI app there until it is closed; knows nothing of what it serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import SettingsError

#: Connections at once; more are answered 503.
CONNECTIONS = 512


class HttpServer:
    """Serves one app at ``host:port``; port 0 takes a free one."""

    def __init__(self, app: ASGIApp, address: str, grace_seconds: float, *, name: str) -> None:
        """``name`` is that of its task. Requests under way at the end have ``grace_seconds``, streams none."""
        self._streams = _Streams(app)
        self._wanted = address
        self._grace_seconds = grace_seconds
        self._name = name
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """``host:port`` where it listens, the port being the real one where the settings say 0."""
        if self._socket is None:
            raise RuntimeError(f"the {self._name} has not been started")
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def check(self) -> None:
        """Raise SettingsError where the address cannot be had now; take nothing."""
        _listen(self._wanted).close()

    async def start(self) -> None:
        """Listen. Raises SettingsError where the address cannot be had."""
        self._socket = _listen(self._wanted)
        config = uvicorn.Config(
            self._streams,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=max(1, round(self._grace_seconds)),
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([self._socket]), name=self._name)
        listening = asyncio.create_task(self._server.listening.wait(), name=f"{self._name}-listening")
        await asyncio.wait({self._serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            self._serving.result()

    async def close(self) -> None:
        """Take no more requests, end the streams, answer what else is under way within the grace, then free the port."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            # They have no end of their own: the grace is not for them.
            self._streams.end()
            await self._serving
        if self._socket is not None:
            self._socket.close()


class _Streams:
    """Passes requests on, and can end the answers that are streams of events."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open: set[asyncio.Task[Any]] = set()
        self._is_ending = False

    def end(self) -> None:
        """End all streams, also those that begin from now on."""
        self._is_ending = True
        for task in self._open:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        is_stream = is_over = False

        async def watched(message: Message) -> None:
            nonlocal is_stream, is_over
            if message["type"] == "http.response.start" and _is_stream(message) and task is not None:
                is_stream = True
                self._open.add(task)
            await send(message)
            is_over |= message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_stream and self._is_ending and not is_over:
                raise asyncio.CancelledError

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if not (is_stream and self._is_ending):
                raise
            # The server is closing, and this is how we end a stream: the browser comes back when there is a server again.
            if not is_over:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if task is not None:
                self._open.discard(task)


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


def _is_stream(message: Message) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in message["headers"])


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        # create_server lets a port be taken again at once after a restart.
        return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, ValueError, OverflowError) as error:
        # create_server's own words tell the address once more. Numbers below 0 are of names that nobody knows.
        number = error.errno if isinstance(error, OSError) else None
        cause = os.strerror(number) if number is not None and number > 0 else str(error)
        raise SettingsError(
            "http",
            address,
            f"cannot listen there: {cause.rstrip('.')}",
            "Free the port, or choose another; port 0 takes a free one.",
        ) from error
