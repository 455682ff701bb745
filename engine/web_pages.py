"""Pages: templates to HTML, whole or as a fragment. The only importer of jinja2, and of no data.

Everything is escaped, always, and what steers a terminal or the direction of text shows as an escape. A template is given:
``now``, ``active`` (the page's name in the navigation), ``csrf`` (empty where nothing asks for it), ``may_operate``,
``visitor``, and its own context. ``request.state`` has ``csrf``, ``may_operate`` and ``visitor`` from what guards the pages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from engine import measures
from engine.terminal import printable_lines

FOLDER = Path(__file__).parent / "web"
STATIC = FOLDER / "static"

#: Name, title, address, key behind ``g``.
NAVIGATION = (
    ("health", "Health", "/", "h"),
    ("runs", "Runs", "/runs", "r"),
    ("flows", "Flows", "/flows", "f"),
    ("events", "Events", "/events", "e"),
    ("dead-letters", "Dead letters", "/dead-letters", "d"),
    ("cluster", "Cluster", "/cluster", "c"),
    ("about", "About", "/about", "a"),
)


class Pages:
    """Renders templates of ``engine/web/templates``."""

    def __init__(self, app: str, now: Callable[[], float]) -> None:
        """``app`` is the name of the application, ``now`` the clock of what is relative."""
        self._now = now
        #: What every page says above all else; empty where there is nothing to say.
        self.notice = ""
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {
            "duration": measures.duration,
            "moment": measures.moment,
            "clock": measures.clock,
            "iso": measures.iso,
            "size": measures.size,
            "number": measures.number,
            "share": measures.share,
            "cut": _cut,
            "cut_front": _cut_front,
            "middle": _middle,
        }
        versions = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in STATIC.iterdir()}
        self._environment.globals |= {
            "app_name": app,
            "navigation": NAVIGATION,
            "ago": measures.ago,
            "plural": measures.plural,
            "static": lambda name: f"/static/{name}?v={versions[name]}",
        }

    async def page(
        self, request: Request, template: str, context: Mapping[str, Any], *, active: str = "", status: int = 200
    ) -> Response:
        """A page; where htmx asks, only its ``content`` block."""
        wants_fragment = "hx-request" in request.headers and "hx-history-restore-request" not in request.headers
        layout = "fragment.html" if wants_fragment else "base.html"
        html = await self.render(request, template, {"active": active, "layout": layout, "live": None, **context})
        return HTMLResponse(html, status, headers={"cache-control": "no-store", "vary": "hx-request"})

    async def render(self, request: Request, template: str, context: Mapping[str, Any]) -> str:
        """The text of a template, made in a thread."""
        given = {
            "now": self._now(),
            "csrf": getattr(request.state, "csrf", ""),
            "may_operate": getattr(request.state, "may_operate", True),
            "visitor": getattr(request.state, "visitor", None),
            "notice": self.notice,
            **context,
        }
        return await run_in_threadpool(self._environment.get_template(template).render, given)


def _finalize(value: Any) -> Any:
    if value is None:
        return ""
    # What is markup already was made by a macro of ours.
    return printable_lines(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length:,} more characters)"


def _cut_front(text: str, length: int) -> str:
    """What a traceback ends with says most."""
    return text if len(text) <= length else f"({len(text) - length:,} characters before)…{text[-length:]}"


def _middle(text: str, length: int) -> str:
    """Short, with both ends."""
    return text if len(text) <= length else f"{text[: length - 8]}…{text[-7:]}"
