"""What may reach a terminal: text in which nothing steers it, nor passes for another line; pure."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with everything that has no shape of its own escaped: a control character shows as ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The same, but lines stay lines."""
    return "\n".join(printable(line) for line in text.replace("\t", "    ").split("\n"))
