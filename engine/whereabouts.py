"""Whereabouts: which attempts with a deadline are under way in a parcel, noted elsewhere before they begin.

Code in C that holds the interpreter's lock keeps its process from saying where it is, until the kernel ends it: what it was at
can only be known from before. To have that noted takes longer than a small run does, so it is done where it matters: for the
first attempts of a parcel of one run, and for all of a parcel over which a worker has died. Knows nothing of Dask.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from engine.parcels import Parcel, Timed

#: So many times a run that travels alone waits for a note.
_FEW = 4


def notes_of(parcel: Parcel) -> float:
    """How many times this parcel may wait for a note."""
    if parcel.is_suspect:
        return math.inf
    return _FEW if len(parcel.runs) == 1 else 0


class Whereabouts:
    """Where one parcel is. For its own thread, but for ``at``, which any may read."""

    __slots__ = ("_is_over", "_left", "_note", "at")

    def __init__(self, note: Callable[[], bool], notes: float) -> None:
        """``note`` has what is ``at`` noted and returns once it is; False where that took too long. At most ``notes`` times."""
        self._note = note
        self._left = notes
        self._is_over = notes <= 0
        #: What is under way and noted, or about to be.
        self.at: tuple[Timed, ...] = ()

    def enter(self, timed: Timed) -> None:
        """This attempt is about to begin."""
        if self._is_over:
            return
        if self._left <= 1:
            self._stop()
            return
        self.at = (*self.at, timed)
        self._have_noted()

    def leave(self, timed: Timed) -> None:
        """It is over, or has not even begun."""
        if timed not in self.at:
            return
        self.at = tuple(one for one in self.at if one != timed)
        # Where it was the last one that can wait: nobody ends the process while none is under way.
        if self.at:
            if self._left <= 1:
                self._stop()
            else:
                self._have_noted()

    def _have_noted(self) -> None:
        self._left -= 1
        if not self._note():
            self._is_over, self.at = True, ()

    def _stop(self) -> None:
        """From now on nothing is noted: what has been would be taken for what comes."""
        self._is_over, self.at = True, ()
        self._note()
