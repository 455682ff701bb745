"""engine.http_server: streams of events end with the server, however they end themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from engine.http_server import HttpServer


@pytest.mark.parametrize("is_told", [False, True], ids=["endless", "ends by itself"])
async def test_a_stream_ends_with_the_server_and_nothing_goes_wrong(is_told: bool, caplog: pytest.LogCaptureFixture) -> None:
    closing = asyncio.Event()

    async def events() -> AsyncIterator[str]:
        yield "data: first\n\n"
        while not closing.is_set():
            await asyncio.sleep(0.005)
            yield ": still here\n\n"

    async def answer(request: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    server = HttpServer(Starlette(routes=[Route("/", answer)]), "127.0.0.1:0", 20.0, name="server")
    await server.start()
    async with (
        httpx.AsyncClient(base_url=f"http://{server.address}", trust_env=False) as client,
        client.stream("GET", "/") as stream,
    ):
        lines = stream.aiter_lines()
        assert await anext(lines) == "data: first"
        if is_told:
            closing.set()
        # Within the grace of twenty seconds, or the test would not end in time.
        async with asyncio.timeout(15):
            ending = asyncio.create_task(server.close())
            async for _ in lines:
                pass
            await ending
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
