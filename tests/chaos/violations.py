"""A violation: something that must not be, as the checker says it; a value."""

from __future__ import annotations

import msgspec

#: States after which nothing comes.
ENDS = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
#: Ends before which a dead letter is written, where a flow asks for that.
BAD_ENDS = frozenset({"FAILED", "CRASHED"})


class Violation(msgspec.Struct, frozen=True):
    """Something that must not be."""

    kind: str
    #: Id of the run it concerns, or of the event, where it is about none.
    run: str
    text: str
