"""Hangs: which attempts a worker's process was ended for, because their time was over and nothing in it got on; pure.

Code in C that holds the interpreter's lock keeps its process from saying anything, even that it has begun. The kernel ends the
process at a time that follows from the attempt's deadline (engine.deadlines): who was due just then is the one.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.deadlines import ENDED_AFTER_SECONDS

#: The scheduler hears of it soon after, but begins may take a while on a busy machine.
_LATE_SECONDS = 5.0
#: Clocks of two machines are that far apart; one clock's readings are not.
_SKEW_SECONDS, _EARLY_SECONDS = 0.5, 0.1


class Suspect(msgspec.Struct, frozen=True):
    """An attempt with a deadline on a worker that has died."""

    key: str
    timeout_seconds: float
    #: How long ago the worker was given it, by the scheduler's clock alone.
    given_seconds: float
    #: How long ago it began, by the worker's clock and the scheduler's; None where the worker had not said so.
    begun_seconds: float | None = None

    def overdue_seconds(self, since_seconds: float) -> float:
        """For how long its process should have been ended already, had it begun ``since_seconds`` ago."""
        return since_seconds - self.timeout_seconds - ENDED_AFTER_SECONDS


def hung(suspects: Sequence[Suspect], *, is_full: bool = False) -> list[str]:
    """Keys of the attempts whose time had been over so long that the kernel ended their process; mostly none.

    Had they been well, they would have ended or been told stuck before. One of which nobody knows whether it had begun is
    taken for it only where there is no other, and not where the worker ``is_full`` of those that had: it is better to run an
    attempt once too often than to blame the wrong one.
    """
    known = [
        suspect.key
        for suspect in suspects
        if suspect.begun_seconds is not None
        and -_SKEW_SECONDS <= suspect.overdue_seconds(suspect.begun_seconds) <= _LATE_SECONDS
    ]
    if known or is_full:
        return known
    unknown = [
        suspect.key
        for suspect in suspects
        if suspect.begun_seconds is None and -_EARLY_SECONDS <= suspect.overdue_seconds(suspect.given_seconds) <= _LATE_SECONDS
    ]
    return unknown if len(unknown) == 1 else []
