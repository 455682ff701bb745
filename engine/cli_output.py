"""What commands print: data on standard output, words on standard error, nothing that could steer the terminal."""

from __future__ import annotations

import re
import sys
from typing import Any

import msgspec

from engine.terminal import printable, printable_lines

# JSON escapes C0 itself; DEL and C1 can steer a terminal as well, and mean the same when escaped.
_STEERING = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def short(text: str, limit: int = 100) -> str:
    """``text``, printable, in one line of at most ``limit`` characters."""
    shown = printable(text[: limit + 1])
    return shown if len(text) <= limit and len(shown) <= limit else f"{shown[: limit - 1]}…"


def json_text(value: Any) -> str:
    """``value`` as one line of JSON that cannot steer a terminal and means exactly the same."""
    return safe_json(msgspec.json.encode(value).decode())


def safe_json(text: str) -> str:
    """JSON with what could steer a terminal escaped as JSON does."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def put(line: str) -> None:
    """A line of data on standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """A line for a person, on standard error. Lines inside it stay lines; anything else is made printable."""
    sys.stderr.write(f"{printable_lines(line)}\n")
    sys.stderr.flush()


def print_error(error: Exception, *, as_json: bool) -> None:
    """Say what ended a command: one line, or a JSON object, on standard error."""
    if as_json:
        sys.stderr.write(json_text({"error": {"type": type(error).__name__, "message": str(error)}}) + "\n")
    else:
        say(f"error: {error}")
