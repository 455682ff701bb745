"""The pages Flows and Flow: signature, triggers, how the last runs did, and a form to start a run by hand."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.charts import spark
from engine.command_errors import NotFound
from engine.declarations import Declaration
from engine.history import History
from engine.history_rows import FlowRow, Page, RunFilter
from engine.history_schema import RunRow
from engine.schema_forms import fields_of, parameters_of
from engine.web_acts import go_to
from engine.web_forms import read_form
from engine.web_parts import Parts

#: Runs of a spark line, and its size.
_LAST, _WIDTH, _HEIGHT = 40, 160, 28
_RUNS = 8
#: Parameters may be large; a run's own limit is that of a record.
_FORM_BYTES = 8 * 1024 * 1024


class _Flow(msgspec.Struct, frozen=True):
    """What the pages show of one flow."""

    name: str
    declared: Declaration | None
    row: FlowRow | None
    #: Bars from the oldest run to the newest: state, seconds, x, width, height.
    bars: list[tuple[str, float, float, float, float]]


def routes(parts: Parts) -> list[Route]:
    """Their addresses."""

    async def look() -> Mapping[str, Any]:
        def ask(history: History) -> list[_Flow]:
            declared = {one.name: one for one in history.declarations()}
            rows = {row.flow: row for row in history.flows()}
            return [_flow(name, declared.get(name), rows.get(name)) for name in sorted(declared.keys() | rows.keys())]

        return {"flows": await parts.reader.ask(ask), "width": _WIDTH, "height": _HEIGHT}

    async def show(request: Request) -> Response:
        return await parts.pages.page(request, "flows.html", {**await look(), "live": "/live/flows"}, active="flows")

    async def live(request: Request) -> Response:
        return parts.live.respond(request, {"flows": "_flows.html"}, look)

    async def look_at(name: str) -> Mapping[str, Any]:
        def ask(history: History) -> tuple[_Flow | None, Page[RunRow]]:
            declared = next((one for one in history.declarations() if one.name == name), None)
            runs = history.runs(RunFilter(flows=[name]), limit=_RUNS)
            row = history.flow(name) if runs.items else None
            return None if declared is None and row is None else _flow(name, declared, row), runs

        flow, runs = await parts.reader.ask(ask)
        if flow is None:
            raise NotFound("flow", name, "No engine has declared it, and it has no runs.")
        return {"flow": flow, "runs": runs.items, "width": _WIDTH * 2, "height": _HEIGHT}

    async def show_one(request: Request) -> Response:
        name = request.path_params["name"]
        context = await look_at(name)
        declared = context["flow"].declared
        more = {
            "fields": [] if declared is None else fields_of(declared.parameters),
            "may_act": parts.actions is not None and declared is not None,
            "nonce": secrets.token_hex(8),
            "live": f"/live/flows/{quote(name)}",
        }
        return await parts.pages.page(request, "flow.html", {**context, **more}, active="flows")

    async def live_one(request: Request) -> Response:
        name = request.path_params["name"]
        return parts.live.respond(request, {"flow": "_flow.html"}, lambda: look_at(name))

    async def start(request: Request) -> Response:
        if parts.actions is None:
            raise HTTPException(404, "This dashboard only shows")
        name = request.path_params["name"]
        form = await read_form(request, _FORM_BYTES)
        declared = (await parts.actions.declarations()).get(name)
        if declared is None:
            raise HTTPException(404, "No engine has declared this flow")
        parameters = parameters_of(name, fields_of(declared.parameters), form)
        key = "".join(form.get("key", [])[:1]).strip()[:1_000] or None
        # Sent twice, the same form makes the same run; edited in between, it makes another.
        content = msgspec.json.encode([sorted(form.items()), name])
        request_id = hashlib.blake2b(content, digest_size=16).hexdigest()
        run_id = await parts.actions.start(name, parameters, key=key, request_id=request_id)
        return go_to(f"/runs/{run_id}?new=1")

    return [
        Route("/flows", show),
        Route("/live/flows", live),
        Route("/live/flows/{name}", live_one),
        Route("/flows/{name}/start", start, methods=["POST"]),
        Route("/flows/{name}", show_one),
    ]


def _flow(name: str, declared: Declaration | None, row: FlowRow | None) -> _Flow:
    last = [] if row is None else row.last[:_LAST][::-1]
    # Counted from the right, so that the newest run stands at the same place whatever there is before it.
    padding = _LAST - len(last)
    sized = spark([0.0] * padding + [seconds for _, seconds in last], _WIDTH, _HEIGHT)[padding:]
    return _Flow(name, declared, row, [(state, seconds, *bar) for (state, seconds), bar in zip(last, sized, strict=True)])
