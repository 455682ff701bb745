"""How much a page view is worth: an example of a packed flow, for events that are small and come by the thousand.

With ``pack=True`` a whole run executes inside one Dask task, together with many others, so that it costs little more than
the functions themselves. Its states are the runs' own alone, with the tasks in the last one. Nothing else changes: take
``pack`` away and the results are the same.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from engine import flow, on, task

#: Who stays longer has left the page open.
MOST_SECONDS = 300.0
SEARCH_ENGINES = {"duckduckgo.com", "www.bing.com", "www.ecosia.org", "www.google.com"}


class View(msgspec.Struct, frozen=True):
    """The data of a page.viewed event."""

    visitor: str
    page: Annotated[str, msgspec.Meta(pattern="^/")]
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    #: How far down the page was seen, from 0 to 1.
    depth: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    referrer: str | None = None


class Score(msgspec.Struct, frozen=True):
    """What a page view says of the visitor's interest."""

    visitor: str
    page: str
    #: From 0 to 100.
    score: int
    #: search, link or direct.
    came_by: str


@task
def attention(seconds: float, depth: float) -> float:
    """From 0 to 1: time and depth count the same."""
    return (min(seconds, MOST_SECONDS) / MOST_SECONDS + depth) / 2


@task
def came_by(referrer: str | None) -> str:
    """How the visitor has found the page."""
    host = urlsplit(referrer or "").hostname
    if host is None:
        return "direct"
    return "search" if host in SEARCH_ENGINES else "link"


@task
def rate(view: View, attention: float, came_by: str) -> Score:
    """Who searched for a page wanted it more than who happened on it."""
    factor = 100 if came_by == "search" else 80
    return Score(view.visitor, view.page, round(factor * attention), came_by)


@flow(on("clicks", type="page.viewed"), pack=True)
def score(view: View) -> Score:
    """Three tasks, wired as in any other flow."""
    return rate(view, attention(view.seconds, view.depth), came_by(view.referrer))
