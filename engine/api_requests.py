"""Requests of the HTTP API: queries and bodies as typed values, bounded, and the answers that errors become."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from engine.api_items import ErrorItem, Ids, Limit
from engine.command_errors import AlreadyEnded, NotFound, NotRepeatable, ParametersError
from engine.errors import EngineError, EventError, KafkaUnavailable, RecordTooLarge, TopicError
from engine.history_errors import HistoryUnavailable, HistoryUnreadable
from engine.states import State

T = TypeVar("T", bound=msgspec.Struct)

#: A body that takes longer is given up.
BODY_SECONDS = 30.0
_RETRY_AFTER_SECONDS = 5


class ApiError(EngineError):
    """Raised when a request is not taken, for another reason than what it asks about. The sender gets ``status``."""

    def __init__(self, status: int, error: str, reason: str) -> None:
        super().__init__(status, error, reason)
        self.status, self.error, self.reason = status, error, reason

    def __str__(self) -> str:
        return f"{self.error}: {self.reason}"


class RunsQuery(msgspec.Struct):
    """Which runs; ``flow`` and ``state`` may be given again."""

    flow: list[str] = []
    state: list[State] = []
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    cursor: str | None = None
    limit: Limit = 50


class TasksQuery(msgspec.Struct):
    """Which task runs, in the order of their names."""

    after: str = ""
    limit: Limit = 200


class ChangesQuery(msgspec.Struct):
    """Which state changes, in their order."""

    after: int = -1
    limit: Limit = 200


class LogsQuery(msgspec.Struct):
    """Which log lines, in their order; with ``latest`` the last ones."""

    after: int | None = None
    limit: Limit = 200
    task: str | None = None
    level: str | None = None
    latest: bool = False


class EventsQuery(msgspec.Struct):
    """Which events, the newest first."""

    cursor: str | None = None
    limit: Limit = 50


class LettersQuery(msgspec.Struct):
    """Which dead letters, the newest first; with ``all`` also those that were dealt with. ``reason`` may be given again."""

    all: bool = False
    reason: list[str] = []
    cursor: str | None = None
    limit: Limit = 50


class CancelRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Why, as the states of the run will say."""

    reason: str = "cancelled"


class RepeatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The same ``request_id`` makes no second repeat. Of a rerun: the task from which on it runs again."""

    request_id: str | None = None
    from_task: str | None = None


class StartRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters by name, or ``data`` as an event would bring it. The same ``request_id`` makes no second run."""

    parameters: dict[str, Any] = {}
    data: Any = msgspec.UNSET
    key: str | None = None
    request_id: str | None = None


class ReplayRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead letters; ``flow`` instead of the one each names, ``value`` (of one letter) instead of its own."""

    ids: Ids
    flow: str | None = None
    value: str | None = None
    replay_id: str | None = None


class DropRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead letters."""

    ids: Ids


def query_of(params: QueryParams, kind: type[T]) -> T:
    """The query of a request. Raises ApiError, which names the parameter."""
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    unknown = [name for name in params if name not in known]
    if unknown:
        raise ApiError(400, "unknown-parameter", f"{unknown[0][:100]} is unknown; known: {', '.join(known) or 'none'}")
    given: dict[str, Any] = {
        name: params.getlist(name) if typing.get_origin(known[name].type) is list else params[name] for name in params
    }
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid-parameter", str(error)) from error


async def body_of(request: Request, kind: type[T], limit: int) -> T:
    """The body of a request, JSON and nothing else: what a web page can send without asking first is of another type.

    Raises ApiError.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(415, "unsupported-media-type", "send application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise ApiError(413, "too-large", f"a body may have {limit:,} bytes")
    except TimeoutError as error:
        raise ApiError(408, "timeout", f"the body did not come within {BODY_SECONDS:g} s") from error
    try:
        return msgspec.json.decode(bytes(body) or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid-body", str(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid-body", f"not JSON: {error}") from error


def answer(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """JSON, kept by nobody."""
    return Response(msgspec.json.encode(content), status, {"cache-control": "no-store", **(headers or {})}, "application/json")


def refusal(error: EngineError) -> Response:
    """What an error becomes."""
    status, code = status_of(error)
    match error:
        case ApiError():
            reason = error.reason
        case EventError():
            reason = error.cause  # its text would begin with the code, which stands beside it
        case _:
            reason = str(error)
    headers = {"retry-after": str(_RETRY_AFTER_SECONDS)} if status == 503 else {}
    if status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    return answer(status, ErrorItem(code, reason), headers)


def status_of(error: EngineError) -> tuple[int, str]:
    """The status of an error, and its code."""
    match error:
        case ApiError():
            return error.status, error.error
        case NotFound():
            return 404, "not-found"
        case TopicError():
            return 404, "unknown-topic"
        case NotRepeatable() | AlreadyEnded():
            return 409, "not-in-this-state"
        case ParametersError():
            return 422, "invalid-parameters"
        case RecordTooLarge():
            return 413, "too-large"
        case EventError():
            return 400, error.reason
        case KafkaUnavailable():
            return 503, "kafka-unavailable"
        case HistoryUnavailable() | HistoryUnreadable():
            return 503, "history-unavailable"
        case _:
            return {2: (400, "usage"), 3: (404, "not-found"), 4: (503, "unavailable")}.get(error.exit_code, (500, "failed"))
