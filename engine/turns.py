"""Turns: which run's tasks go before another's where tasks queue for workers; pure. Flows share the workers evenly.

Each run gets a turn: a point on a clock that counts seconds of work. A flow's next run comes as much later as its last one
takes, but never before the clock, which is where the work that was done last stood. So a flow that has begun a thousand runs
at once has turns far ahead, and a run of a flow that asked for little goes before nearly all of them.
"""

from __future__ import annotations

#: What a task takes that nobody has run yet.
GUESS_SECONDS = 0.01


class Turns:
    """The turns of all runs on one scheduler."""

    def __init__(self) -> None:
        self._clock = 0.0
        #: When the next run of each flow may begin, and the turns of runs that have not ended.
        self._next: dict[str, float] = {}
        self._turns: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def turn(self, run_id: str, flow: str, seconds: float) -> float:
        """The turn of a run which asks for ``seconds`` of work more; it keeps the one that it has."""
        begins_at = max(self._clock, self._next.get(flow, 0.0))
        self._next[flow] = begins_at + seconds
        return self._turns.setdefault(run_id, begins_at)

    def end(self, run_id: str) -> None:
        """The run has ended, or nobody wants it any more: the clock is there at least."""
        self._clock = max(self._clock, self._turns.pop(run_id, 0.0))


def priority(turn: float, depth: int) -> int:
    """For Dask, where more is sooner. Within a run the deeper goes first, so that what was started is finished."""
    return min(depth, 999) - 1_000 * int(turn * 1e6)
