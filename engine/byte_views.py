"""Bytes for people: as text where they are text, and in hexadecimal always; and back again. Pure."""

from __future__ import annotations

import re

import msgspec

from engine.command_errors import UsageError

#: Of a value that is shown in hexadecimal.
HEX_BYTES = 16_384
_ROW = 16


def as_text(data: bytes) -> str | None:
    """The text that the bytes are; None where they are none, or where a form would change them."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    # A browser sends each line's end as \r\n, and drops what it does not know: of such text the bytes are edited.
    return text if all(one.isprintable() or one in "\n\t" for one in text) else None


def pretty(data: bytes) -> str | None:
    """The same JSON on several lines; None where it is none."""
    try:
        return msgspec.json.format(data, indent=2).decode() if data[:1] in (b"{", b"[") else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def as_hex(data: bytes) -> str:
    """Sixteen bytes a line, in groups of two; to be edited."""
    return "\n".join(data[start : start + _ROW].hex(" ", -2) for start in range(0, len(data), _ROW))


def dump(data: bytes, limit: int = HEX_BYTES) -> list[tuple[str, str, str]]:
    """Lines of offset, bytes and the characters that they are."""
    shown = data[:limit]
    return [
        (f"{start:06x}", row.hex(" ", -2), "".join(chr(one) if 32 <= one < 127 else "·" for one in row))
        for start in range(0, len(shown), _ROW)
        if (row := shown[start : start + _ROW])
    ]


def from_form(text: str, form: str) -> bytes:
    """The bytes that a field means, as text or in hexadecimal. Raises UsageError."""
    if form == "text":
        return text.replace("\r\n", "\n").encode(errors="replace")
    try:
        return bytes.fromhex(re.sub(r"\s+", "", text))
    except ValueError as error:
        cause, remedy = "is not in hexadecimal", "Write two of 0-9 and a-f for each byte."
        raise UsageError("value", cause, remedy) from error
