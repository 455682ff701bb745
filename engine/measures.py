"""Measures: durations, sizes, counts and times in the words that people read; pure."""

from __future__ import annotations

from datetime import UTC, datetime

_FAR = "far away"


def duration(seconds: float | None) -> str:
    """``1.24 s``, ``3 min 5 s``, ``2 d 4 h``; a dash where it is unknown."""
    if seconds is None:
        return "–"
    seconds = max(0.0, seconds)
    if seconds < 0.0005:
        return "0 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
    whole = round(min(seconds, 1e12))
    for unit, size, part, part_size in (("min", 60, "s", 1), ("h", 3_600, "min", 60), ("d", 86_400, "h", 3_600)):
        if unit == "d" or whole < size * {"min": 60, "h": 24}[unit]:
            rest = whole % size // part_size
            return f"{whole // size:,} {unit}" + (f" {rest} {part}" if rest else "")
    raise AssertionError("days have no end")


def ago(at: float, now: float) -> str:
    """How long ago a moment was, or in what time it will be."""
    seconds = now - at
    if abs(seconds) < 1:
        return "now"
    for unit, size, limit in (("s", 1, 60), ("min", 60, 3_600), ("h", 3_600, 86_400), ("d", 86_400, 1e12)):
        if abs(seconds) < limit:
            text = f"{int(abs(seconds) // size)} {unit}"
            return f"{text} ago" if seconds > 0 else f"in {text}"
    return _FAR


def moment(at: float) -> str:
    """A moment in UTC to the millisecond, for people."""
    made = _utc(at)
    return _FAR if made is None else f"{made:%Y-%m-%d %H:%M:%S}.{made.microsecond // 1000:03} UTC"


def clock(at: float) -> str:
    """The time of day of a moment in UTC, to the millisecond."""
    made = _utc(at)
    return _FAR if made is None else f"{made:%H:%M:%S}.{made.microsecond // 1000:03}"


def iso(at: float) -> str:
    """A moment in RFC 3339, for programs; empty where there is no such date."""
    made = _utc(at)
    return "" if made is None else made.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size(count: float | None) -> str:
    """Bytes: ``640 B``, ``1.2 KiB``."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1_024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1_024
    return f"{count:,.1f} TiB"


def number(count: float | None) -> str:
    """A count with its thousands apart."""
    return "–" if count is None else f"{count:,.0f}"


def share(part: float | None) -> str:
    """A share of one as per cent; 100 % only where it is all of it."""
    if part is None:
        return "–"
    return "100 %" if part >= 1 else f"{min(part * 100, 99.9):.1f} %" if part > 0 else "0 %"


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 run``, ``1,200 runs``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _utc(at: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError, OSError):
        return None  # A clock of a producer's that says nonsense.
