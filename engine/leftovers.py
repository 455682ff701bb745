"""Leftovers: runs that the cluster still holds though their end is on the state topic; lets them go, and no others.

An owner lets a run go when its end is acknowledged. One that dies or leaves between the two leaves the run behind, and whoever
owns the partition next reads the end and has nothing to drive.
"""

from __future__ import annotations

import asyncio

from engine.errors import DaskUnavailable
from engine.executor import Executor
from engine.ledger import Ledger
from engine.logs import logger


class Leftovers:
    """Looks for those of one engine's partitions."""

    def __init__(self, executor: Executor, keep_seconds: float) -> None:
        """What is let go can be had for ``keep_seconds`` more, as after any end."""
        self._executor, self._keep_seconds = executor, keep_seconds
        self._looks: set[asyncio.Task[None]] = set()

    def look(self, ledger: Ledger) -> None:
        """Look once, soon. Call when the ledger knows all of its history: what it knows nothing of yet is left alone."""
        look = asyncio.get_running_loop().create_task(self._look(ledger), name="engine-leftovers")
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def close(self) -> None:
        """Stop looking."""
        for look in self._looks:
            look.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)

    async def _look(self, ledger: Ledger) -> None:
        try:
            held = await self._executor.held(ledger.partition, ledger.epoch)
        except DaskUnavailable as error:
            # They stay until the next owner looks; where the scheduler has gone, they have gone with it.
            logger.info("could not ask the cluster what it still holds", partition=ledger.partition, error=str(error))
            return
        # Not all that is not open has ended: of a SCHEDULED that was begun ahead of its record we may not have read yet.
        ended = [run_id for run_id in held if run_id not in ledger.runs and ledger.has_seen(run_id)]
        for run_id in ended:
            self._executor.release(run_id, self._keep_seconds)
        if ended:
            self._executor.release_parcels(ended, self._keep_seconds)
            logger.info("let go of runs that had ended under an earlier owner", partition=ledger.partition, runs=len(ended))
