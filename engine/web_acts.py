"""What is done to runs from pages: cancel, retry, rerun, one or many; each is a record on a topic, and no page waits for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.errors import EngineError
from engine.measures import plural
from engine.repeats import Kind
from engine.web_forms import read_form
from engine.web_parts import Acting, Parts

#: Of one request.
MOST = 200
#: Each reads the topic or waits for Kafka: so many at a time.
_AT_ONCE = 8
_REASON = "cancelled from the dashboard"
_FAILURES_SHOWN = 5


def routes(parts: Parts) -> list[Route]:
    """Their addresses; all are POST."""

    def actions() -> Acting:
        if parts.actions is None:
            raise HTTPException(404, "This dashboard only shows")
        return parts.actions

    async def cancel_one(request: Request) -> Response:
        form = await read_form(request)
        await actions().cancel(request.path_params["run_id"], _first(form, "reason") or _REASON)
        return said("The run is being cancelled")

    async def repeat_one(request: Request) -> Response:
        form = await read_form(request)
        kind = _kind(_first(form, "kind"))
        run_id = await actions().repeat(
            request.path_params["run_id"],
            kind,
            from_task=_first(form, "from_task") or None,
            request_id=_first(form, "request_id") or None,
        )
        return go_to(f"/runs/{run_id}?new=1")

    async def cancel_many(request: Request) -> Response:
        form = await read_form(request)
        reason = _first(form, "reason") or _REASON
        return await _many(parts, request, form.get("id", []), "cancelled", lambda run_id: actions().cancel(run_id, reason))

    async def repeat_many(request: Request) -> Response:
        form = await read_form(request)
        kind = _kind(_first(form, "kind"))
        done = "retried" if kind is Kind.RETRY else "rerun"
        return await _many(parts, request, form.get("id", []), done, lambda run_id: actions().repeat(run_id, kind))

    return [
        Route("/runs/cancel", cancel_many, methods=["POST"]),
        Route("/runs/repeat", repeat_many, methods=["POST"]),
        Route("/runs/{run_id}/cancel", cancel_one, methods=["POST"]),
        Route("/runs/{run_id}/repeat", repeat_one, methods=["POST"]),
    ]


def said(text: str) -> Response:
    """Nothing of the page changes; it says ``text`` once."""
    return Response(status_code=204, headers={"hx-trigger": json.dumps({"said": text})})


def go_to(address: str) -> Response:
    """The browser goes to another page."""
    return Response(status_code=204, headers={"hx-redirect": address})


async def _many(parts: Parts, request: Request, ids: list[str], done: str, act: Callable[[str], Awaitable[object]]) -> Response:
    ids = list(dict.fromkeys(ids))
    if not ids or len(ids) > MOST:
        raise HTTPException(400, f"Select from 1 to {MOST} runs")
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(run_id: str) -> str:
        async with room:
            try:
                await act(run_id)
            except EngineError as error:
                return str(error)  # The others are none the worse for it; the page says which did not go.
            return ""

    failures = [text for text in await asyncio.gather(*map(one, ids)) if text]
    good = len(ids) - len(failures)
    if not failures:
        return said(f"{plural(good, 'run')} {'is' if good == 1 else 'are'} being {done}")
    context = {
        "trouble": f"{good} of {plural(len(ids), 'run')} will be {done}.",
        "more": failures[:_FAILURES_SHOWN],
        "left": len(failures) - _FAILURES_SHOWN,
    }
    html = await parts.pages.render(request, "_trouble.html", context)
    return Response(html, 200, {"hx-retarget": "#trouble", "hx-reswap": "innerHTML"}, "text/html; charset=utf-8")


def _first(form: dict[str, list[str]], name: str) -> str:
    return form.get(name, [""])[0].strip()[:1_000]


def _kind(text: str) -> Kind:
    try:
        return Kind(text)
    except ValueError as error:
        raise HTTPException(400, "It is either retry or rerun") from error
