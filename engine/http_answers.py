"""Answers of the HTTP endpoints in JSON: which error becomes which status; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engine.errors import EngineError, EventError, KafkaUnavailable, RecordTooLarge, TopicError

#: When a sender should try again after a 503.
RETRY_AFTER_SECONDS = 5


class RequestRefused(EngineError):
    """Raised when a request is not taken, for another reason than its event or Kafka. The sender gets ``status``."""

    def __init__(self, status: int, error: str, reason: str) -> None:
        super().__init__(status, error, reason)
        self.status, self.error, self.reason = status, error, reason

    def __str__(self) -> str:
        return f"{self.error}: {self.reason}"


def json_answer(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """``content`` as JSON."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def refusal(error: EngineError) -> Response:
    """What the sender of an event is told; an error that is none of a request's is raised again."""
    match error:
        case RequestRefused():
            return error_answer(error.status, error.error, error.reason)
        case EventError():
            return error_answer(400, error.reason, error.cause)
        case RecordTooLarge():
            return error_answer(413, "too-large", str(error))
        case TopicError():
            return error_answer(404, "unknown-topic", str(error))
        case KafkaUnavailable():
            return error_answer(503, "kafka-unavailable", str(error))
        case _:
            raise error


def error_answer(status: int, error: str, reason: str) -> Response:
    """A short code and the reason in words."""
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    if status in (408, 413):
        # The rest of the body is not read, so the connection cannot be used again.
        headers["connection"] = "close"
    return json_answer(status, {"error": error, "reason": reason}, headers)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, no such method) in the same form."""
    if not isinstance(error, HTTPException):
        raise error
    code = error.detail.lower().replace(" ", "-")
    return json_answer(error.status_code, {"error": code, "reason": f"{request.method} {request.url.path}"}, error.headers)
