"""The Health page: whether all is well, in one sentence with its reasons; rates, lag, workers, the last hour."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.web_parts import Parts


def routes(parts: Parts) -> list[Route]:
    """Its addresses."""

    async def show(request: Request) -> Response:
        return await parts.pages.page(request, "health.html", {}, active="health")

    return [Route("/", show)]
