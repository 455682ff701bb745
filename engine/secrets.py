"""Secrets: text that never shows itself, and a mask that takes such text out of what is about to be shown; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

#: What stands where a secret stood.
MASKED = "***"
#: Parts of an address shorter than this are words like "hooks": masked they would make a text unreadable, and protect nothing.
_PART_LENGTH = 6


class Secret(str):
    """A setting that never shows itself: ``repr`` and formatting give asterisks, ``reveal`` the text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(MASKED, spec)

    def reveal(self) -> str:
        """The secret itself, for the one place that hands it to a library."""
        return str.__str__(self)


class Mask:
    """Takes secrets out of texts that somebody else wrote: each one whole, and each part of an address."""

    def __init__(self, secrets: Iterable[str]) -> None:
        found: set[str] = set()
        for secret in secrets:
            # A scheme is no secret; whatever stands behind it may be.
            parts = re.split(r"[/?&=:@#\s]+", secret.partition("://")[2] or secret)
            wanted = [secret, *(part for part in parts if len(part) >= _PART_LENGTH)]
            found.update(text for part in wanted for text in (part, unquote(part)) if text)
        # The longest first: else a part would be taken out of the whole, and leave the rest.
        self._pattern = (
            re.compile("|".join(re.escape(text) for text in sorted(found, key=len, reverse=True))) if found else None
        )

    def hide(self, text: str) -> str:
        """``text`` without them."""
        return text if self._pattern is None else self._pattern.sub(MASKED, text)
