"""The pages Dead letters and Dead letter: why, what it says as text or hexadecimal, to be edited and replayed, or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.byte_views import as_hex, as_text, dump, from_form, pretty
from engine.command_errors import NotFound
from engine.events import Reason
from engine.history import History
from engine.history_rows import LetterLine, Page
from engine.history_schema import KEPT_BYTES, LetterRow
from engine.letter_queries import LetterQuery, query_of
from engine.measures import plural
from engine.web_acts import go_to, said
from engine.web_forms import read_form
from engine.web_parts import Acting, Parts

PAGE = 50
#: Of one request.
MOST = 200
#: A value in hexadecimal is three times as long.
_FORM_BYTES = 4 * KEPT_BYTES


def routes(parts: Parts) -> list[Route]:
    """Their addresses."""

    def actions() -> Acting:
        if parts.actions is None:
            raise HTTPException(404, "This dashboard only shows")
        return parts.actions

    def where(request: Request) -> tuple[int, int]:
        return request.path_params["partition"], request.path_params["offset"]

    async def look(query: LetterQuery) -> Mapping[str, Any]:
        def ask(history: History) -> Page[LetterLine]:
            reasons = [query.reason] if query.reason else []
            return history.letters(all=query.all, reasons=reasons, cursor=query.cursor or None, limit=PAGE)

        page = await parts.reader.ask(ask)
        reasons = [reason.value for reason in Reason]
        return {"page": page, "query": query, "all": query.all, "reasons": reasons, "may_act": parts.actions is not None}

    async def show(request: Request) -> Response:
        query = query_of(request.query_params)
        # Older pages stay as they are: what is new is on the first one.
        live = None if query.cursor else query.address("/dead-letters/live")
        return await parts.pages.page(request, "letters.html", {**await look(query), "live": live}, active="dead-letters")

    async def live(request: Request) -> Response:
        query = query_of(request.query_params)
        return parts.live.respond(request, {"letters": "_letters.html"}, lambda: look(query))

    async def look_at(place: tuple[int, int]) -> Mapping[str, Any]:
        def ask(history: History) -> tuple[LetterLine | None, list[str]]:
            return history.letter(*place), history.flow_names()

        line, flows = await parts.reader.ask(ask)
        if line is None:
            raise NotFound(
                "dead letter", "{}/{}".format(*place), "It may have expired. `engine dead-letters ls --all` lists them."
            )
        return {"line": line, "flows": flows, "may_act": parts.actions is not None}

    async def show_one(request: Request) -> Response:
        place = where(request)
        context = await look_at(place)
        row = context["line"].row
        shown = {**_contents(row, request.query_params.get("as", "")), "headers": _headers(row.headers)}
        live = "/live/dead-letters/{}/{}".format(*place)
        return await parts.pages.page(request, "letter.html", {**context, **shown, "live": live}, active="dead-letters")

    async def live_one(request: Request) -> Response:
        place = where(request)
        await look_at(place)
        return parts.live.respond(request, {"letter": "_letter.html"}, lambda: look_at(place))

    async def replay(request: Request) -> Response:
        letter_id = "{}/{}".format(*where(request))
        form = {name: values[0] for name, values in (await read_form(request, _FORM_BYTES)).items()}
        value = from_form(form["value"], form.get("as", "text")) if "value" in form else None
        line = await parts.reader.ask(lambda history: history.letter(*where(request)))
        if line is not None and value == (line.row.value or b""):
            value = None  # Only what was edited is another value: of its own one the letter itself is replayed.
        await actions().replay([letter_id], value=value, flow=form.get("flow") or None)
        return go_to(f"/dead-letters/{letter_id}")

    async def drop(request: Request) -> Response:
        await actions().drop(["{}/{}".format(*where(request))])
        return go_to("/dead-letters")

    async def replay_many(request: Request) -> Response:
        ids = await _ids(request)
        done = await actions().replay(ids)
        return said(f"{plural(len(done), 'letter')} replayed")

    async def drop_many(request: Request) -> Response:
        ids = await _ids(request)
        await actions().drop(ids)
        return said(f"{plural(len(ids), 'letter')} dropped")

    one = "/dead-letters/{partition:int}/{offset:int}"
    return [
        Route("/dead-letters", show),
        Route("/dead-letters/live", live),
        Route("/dead-letters/replay", replay_many, methods=["POST"]),
        Route("/dead-letters/drop", drop_many, methods=["POST"]),
        Route(one, show_one),
        Route(f"/live{one}", live_one),
        Route(f"{one}/replay", replay, methods=["POST"]),
        Route(f"{one}/drop", drop, methods=["POST"]),
    ]


async def _ids(request: Request) -> list[str]:
    ids = list(dict.fromkeys((await read_form(request)).get("id", [])))
    if not ids or len(ids) > MOST:
        raise HTTPException(400, f"Select from 1 to {MOST} dead letters")
    return ids


def _contents(row: LetterRow, wanted: str) -> Mapping[str, Any]:
    """The value in the form that is wanted, or the best for it; to be edited where all of it is here."""
    value = row.value or b""
    text = as_text(value)
    form = "hex" if wanted == "hex" or text is None else "text"
    shown = text if form == "text" and text is not None else as_hex(value)
    is_whole = row.size is None or row.size <= len(value)
    return {
        "form": form,
        "is_text": text is not None,
        "shown": shown if is_whole else "",
        "pretty": pretty(value) or text if form == "text" else None,
        "dump": dump(value) if form == "hex" else [],
        "is_whole": is_whole,
        "may_replay": row.size is not None or row.value is not None,
    }


def _headers(raw: bytes) -> list[tuple[str, str]]:
    """As the history keeps them: JSON of names and values."""
    try:
        found = msgspec.json.decode(raw)
    except msgspec.MsgspecError:
        return []
    pairs = found.items() if isinstance(found, dict) else found
    return [(str(name), "" if value is None else str(value)) for name, value in pairs]
