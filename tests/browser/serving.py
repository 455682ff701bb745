"""The dashboard served in this process, on a free port of loopback, with what it is given in place of Kafka and Dask."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette

from engine.errors import EngineError
from engine.repeats import Kind
from engine.vital_signs import DaskVital, EngineVital, Lag, Vital, Worker

GIB = 1 << 30
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    b" base-uri 'none'; frame-ancestors 'none'"
)


class Served:
    """An application on its own event loop in a thread, until it is closed."""

    def __init__(self, build: Callable[[], Starlette]) -> None:
        self._build = build
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="served")
        self._thread.start()
        assert self._begun.wait(30)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = self._build()
        config = uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        self._server.capture_signals = _nothing  # type: ignore[method-assign]
        self._live = app.state.parts.live
        self._begun.set()
        await self._server.serve([self._socket])

    def close(self) -> None:
        def stop() -> None:
            self._live.close()
            self._server.should_exit = True

        self._loop.call_soon_threadsafe(stop)
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._socket.close()


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _nothing() -> Any:
    return _Nothing()


class Noted:
    """Actions that are noted, and go wrong where they are told to."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.error: EngineError | None = None
        self.new_run_id = "f" * 32

    async def cancel(self, run_id: str, reason: str) -> None:
        self._do("cancel", run_id, reason)

    async def repeat(self, run_id: str, kind: Kind, *, from_task: str | None = None, request_id: str | None = None) -> str:
        self._do("repeat", run_id, kind, from_task)
        return self.new_run_id

    def _do(self, *done: Any) -> None:
        if self.error is not None:
            raise self.error
        self.done.append(done)


class Shown:
    """Vitals that are as they are set."""

    def __init__(self, vital: Vital) -> None:
        self.vital = vital

    async def look(self) -> Vital:
        return self.vital


def a_vital(now: float) -> Vital:
    """A small cluster that is well."""
    lags = [Lag("app.intake", "orders", n, 52_000 + n, 52_000 + n + (0, 3, 1, 0)[n], (0, 3, 1, 0)[n]) for n in range(4)]
    lags += [Lag("app.dispatch", "app.states", n, 9_000, 9_000 + 40 * n, 40 * n) for n in range(8)]
    workers = tuple(
        Worker(
            f"tcp://10.0.0.{n}:40331",
            f"worker-{n}",
            "running",
            4,
            int(used * GIB),
            4 * GIB,
            GIB // 3,
            0,
            n % 3,
            1,
            35.0 * n % 90,
            now,
        )
        for n, used in enumerate((1.4, 2.9, 0.8), 7)
    )
    dask = DaskVital("tcp://10.0.0.5:8786", now - 90_000, 12, workers, 3, 5, 6)
    engines = (EngineVital("127.0.0.1:40411", True, {"kafka": "ok", "dask": "ok"}),)
    return Vital(now, tuple(lags), {}, "", dask, "", engines)


def guarded(app: Starlette) -> Starlette:
    """With the content security policy that the dashboard has, so that whatever would need a hole in it fails a test."""

    class Policy:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def secured(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
                await send(message)

            await self._inner(scope, receive, secured)

    app.add_middleware(Policy)
    return app
