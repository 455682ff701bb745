"""Runs of which memory says more than the publisher's queue, for a moment: a checkpoint must not say more than the log does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from engine.runs import FlowRun


class Untold:
    """Runs whose flows are being gone through, between their beginning and its telling, and ends that wait for a letter."""

    def __init__(self) -> None:
        self._runs: set[FlowRun] = set()
        self._told = asyncio.Event()

    def __contains__(self, run: FlowRun) -> bool:
        return run in self._runs

    def add(self, run: FlowRun) -> None:
        """A run has gone on, and its change is yet to be queued."""
        self._runs.add(run)

    def tell(self, runs: Iterable[FlowRun]) -> None:
        """Their changes are queued, or nobody's business any more."""
        self._runs.difference_update(runs)
        self._told.set()
        self._told = asyncio.Event()

    async def wait(self) -> None:
        """Until some have been told."""
        await self._told.wait()
