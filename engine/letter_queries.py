"""Letter queries: the filters of the Dead letters page as they stand in an address, and back; pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec

#: Longer texts are nobody's reason or cursor.
_LONGEST = 100


class LetterQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: with ``all`` those that were dropped or replayed, too; ``reason`` alone where it is not empty."""

    all: bool = False
    reason: str = ""
    cursor: str = ""

    def address(self, path: str = "/dead-letters", **changed: object) -> str:
        """The address of the page with this query; ``changed`` replaces fields of it."""
        query = msgspec.structs.replace(self, **changed)
        named = [("all", "1" if query.all else ""), ("reason", query.reason), ("cursor", query.cursor)]
        given = [(name, value) for name, value in named if value]
        return f"{path}?{urlencode(given)}" if given else path


def query_of(given: Mapping[str, str]) -> LetterQuery:
    """The query that an address says; what makes no sense in it is left out."""
    reason, cursor = given.get("reason", "").strip()[:_LONGEST], given.get("cursor", "")[:_LONGEST]
    return LetterQuery(all=given.get("all") == "1", reason=reason, cursor=cursor)
