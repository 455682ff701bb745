"""The Runs page: a live list with filters in the address, and what is done to many runs at once."""

from __future__ import annotations

from starlette.routing import Route

from engine.web_parts import Parts


def routes(parts: Parts) -> list[Route]:
    """Its addresses."""
    return []
