"""Times on a command line: a moment, or so long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import msgspec

from engine.command_errors import UsageError

_AGO = re.compile(r"(\d{1,6})([smhd])\Z")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def time_of(flag: str, text: str | None) -> datetime | None:
    """What a flag says, as an aware time; None where it was not given. Raises UsageError."""
    if text is None:
        return None
    if (ago := _AGO.match(text)) is not None:
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = msgspec.convert(text, datetime)
    except msgspec.ValidationError as error:
        raise UsageError(
            flag, f"{text!r} is no time", "E.g. 2026-03-01T12:00:00+01:00, or 30m, 2h, 7d for so long ago."
        ) from error
    return found if found.tzinfo is not None else found.astimezone()
