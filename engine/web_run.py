"""The Run page: one run whole: facts, timeline, graph, logs, changes, and what is done to it."""

from __future__ import annotations

from starlette.routing import Route

from engine.web_parts import Parts


def routes(parts: Parts) -> list[Route]:
    """Its addresses."""
    return []
