"""Runs of which memory says more than the publisher's queue, for a moment: a checkpoint must not say more than the log does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable

from engine.runs import FlowRun


class Untold:
    """Runs whose flows are being gone through, between their beginning and its telling, and ends that wait for a letter."""

    def __init__(self) -> None:
        #: How many changes of each are yet to be queued: a run that fails as it begins has two.
        self._runs: Counter[FlowRun] = Counter()
        self._told = asyncio.Event()

    def __contains__(self, run: FlowRun) -> bool:
        return run in self._runs

    def add(self, run: FlowRun) -> None:
        """A run has gone on, and its change is yet to be queued."""
        self._runs[run] += 1

    def tell(self, runs: Iterable[FlowRun]) -> None:
        """Their changes are queued, or nobody's business any more."""
        for run in runs:
            self._runs[run] -= 1
            if self._runs[run] <= 0:
                del self._runs[run]
        self._told.set()
        self._told = asyncio.Event()

    async def wait(self, runs: Collection[FlowRun]) -> None:
        """Until one of these has been told, which it may have been before."""
        while all(run in self._runs for run in runs):
            await self._told.wait()
