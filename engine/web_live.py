"""Live updates: a stream of re-rendered fragments, sent only where they differ, at most twice a second."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from engine.errors import EngineError
from engine.history_database import Version
from engine.history_reader import HistoryReader
from engine.web_pages import Pages

#: What the fragments of a page are made of.
Look = Callable[[], Awaitable[Mapping[str, Any]]]

#: A comment is sent after so long a silence: it finds out readers that are gone.
BEAT_SECONDS = 10.0

_LINES = re.compile(r"\r\n|\r|\n")


class Live:
    """All streams of this process."""

    def __init__(self, pages: Pages, reader: HistoryReader, *, streams: int = 64, interval_seconds: float = 0.5) -> None:
        """More than ``streams`` at once are refused with 503."""
        self._pages, self._reader = pages, reader
        self._streams, self._interval_seconds = streams, interval_seconds
        self._open = 0
        self._is_closing = asyncio.Event()

    def close(self) -> None:
        """End all streams. Called before the server waits for its connections, which would never end by themselves."""
        self._is_closing.set()

    def respond(
        self, request: Request, fragments: Mapping[str, str], look: Look, *, refresh_seconds: float | None = None
    ) -> Response:
        """A stream of ``fragments`` (event → template) of what ``look`` finds, whenever the history changes.

        With ``refresh_seconds`` also after so long without a change, for what has other sources; ``refresh_seconds`` in what
        was found takes its place from then on.
        """
        if self._open >= self._streams or self._is_closing.is_set():
            return PlainTextResponse("too many live pages are open", 503, {"retry-after": "5"})
        return StreamingResponse(
            self._counted(self._stream(request, fragments, look, refresh_seconds)),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _counted(self, stream: AsyncIterator[str]) -> AsyncIterator[str]:
        self._open += 1
        try:
            async for text in stream:
                yield text
        finally:
            self._open -= 1

    async def _stream(
        self, request: Request, fragments: Mapping[str, str], look: Look, refresh_seconds: float | None
    ) -> AsyncIterator[str]:
        sent: dict[str, str] = {}
        version: Version | None = None
        looked_at = told_at = float("-inf")
        took = 0.0
        # Browsers that lost us come back at their own pace, not all at once.
        yield "retry: 2000\n\n"
        while not self._is_closing.is_set() and not await request.is_disconnected():
            begin = time.monotonic()
            texts: dict[str, str] = {}
            try:
                current = await self._reader.version()
                is_stale = refresh_seconds is not None and begin - looked_at >= refresh_seconds
                if current != version or is_stale:
                    version, looked_at = current, begin
                    context = await look()
                    refresh_seconds = context.get("refresh_seconds", refresh_seconds)
                    for event, template in fragments.items():
                        texts[event] = await self._pages.render(request, template, context)
                    texts["trouble"] = ""
                    took = time.monotonic() - begin
            except EngineError as error:
                # The page keeps what it shows and says what is wrong; the next look may do better.
                version = None
                texts = {"trouble": await self._pages.render(request, "_trouble.html", {"trouble": str(error)})}
            changed = {event: text for event, text in texts.items() if sent.get(event, "") != text}
            sent |= changed
            for event, text in changed.items():
                yield _message(event, text)
            if changed:
                told_at = begin
            elif begin - told_at >= BEAT_SECONDS:
                told_at = begin
                yield ": still here\n\n"
            # A page that is dear to make is made less often, however fast the history grows.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), max(self._interval_seconds, 4 * took))


def _message(event: str, text: str) -> str:
    data = "".join(f"data: {line}\n" for line in _LINES.split(text))
    return f"event: {event}\n{data}\n"
