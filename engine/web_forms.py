"""Web forms: what a form sends, read with a limit; url-encoded alone."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request

#: A form that is larger is refused; web pages that need more say so.
FORM_BYTES = 256 * 1024
_FIELDS = 1_000


async def read_form(request: Request, limit_bytes: int = FORM_BYTES) -> dict[str, list[str]]:
    """Fields by name, with all their values. Raises HTTPException (413, 415, 400)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "A form is wanted")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise HTTPException(413, "The form is too large")
    try:
        return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS, errors="strict")
    except ValueError as error:
        raise HTTPException(400, "The form cannot be read") from error
