"""An executor within this process that outlives its engines, as the scheduler and its plugin do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from engine.executor import Call, Listener, Report, RunEnd, Submission
from engine.parcels import Outcome, Parcel


class LastingExecutor:
    """An inline executor that does what the scheduler plugin does for a cluster: it outlives its engines.

    It remembers what was reported, tells the next owner all of it again, and takes nothing from an older epoch.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._inner = make()
        self.slots: int = self._inner.slots
        self.trouble = ""
        self._listener: Listener | None = None
        self._reports: dict[str, list[Report]] = {}
        self._outcomes: dict[tuple[str, int], Outcome | None] = {}
        self._epochs: dict[int, int] = {}
        #: Whether the futures are held for the next owner, as they should be.
        self.is_holding = True

    async def start(self, listener: Listener) -> None:
        if self._listener is None:
            await self._inner.start(self)
        elif not self.is_holding:
            self._reports.clear()
            self._outcomes.clear()
            for run_id in list(self._inner._calls):
                self._inner.release(run_id, 0.0)
        self._listener = listener

    def own(self, partition: int, epoch: int) -> None:
        self._epochs[partition] = max(epoch, self._epochs.get(partition, -1))

    async def held(self, partition: int, epoch: int) -> list[str]:
        return await self._inner.held(partition, epoch)

    def submit(self, submissions: Sequence[Submission]) -> None:
        current = [one for one in submissions if one.epoch >= self._epochs.get(one.partition, -1)]
        loop = asyncio.get_running_loop()
        for one in current:
            if one.is_anew and (told := self._reports.get(one.run_id)):
                loop.call_soon(self._tell, list(told))
        self._inner.submit(current)

    def send(self, parcel: Parcel, owners: Sequence[tuple[int, int]]) -> None:
        if any(epoch < self._epochs.get(partition, -1) for partition, epoch in owners):
            asyncio.get_running_loop().call_soon(self._refuse, parcel.parcel_id)
            return
        known = [run for run in parcel.runs if (run.run_id, run.attempt) in self._outcomes]
        told = [outcome for run in known if (outcome := self._outcomes[run.run_id, run.attempt]) is not None]
        if told:
            asyncio.get_running_loop().call_soon(self._tell_outcomes, told)
        new = tuple(run for run in parcel.runs if run not in known)
        self._outcomes.update({(run.run_id, run.attempt): None for run in new})
        if new:
            self._inner.send(msgspec.structs.replace(parcel, runs=new), owners)

    def cancel(self, run_id: str) -> None:
        self._reports.pop(run_id, None)
        self._inner.cancel(run_id)

    def cancel_packed(self, run_ids: Sequence[str]) -> None:
        self._inner.cancel_packed(run_ids)

    def release(self, run_id: str, keep_seconds: float, end: RunEnd | None = None) -> None:
        self._reports.pop(run_id, None)
        self._inner.release(run_id, keep_seconds, end)

    def release_parcels(self, run_ids: Sequence[str], keep_seconds: float) -> None:
        for key in [key for key in self._outcomes if key[0] in run_ids]:
            del self._outcomes[key]

    async def fetch(self, call: Call) -> Any:
        return await self._inner.fetch(call)

    async def close(self) -> None:
        await self._inner.close()

    def on_reports(self, reports: Sequence[Report]) -> None:
        for report in reports:
            known = self._reports.setdefault(report.run_id, [])
            if report not in known:
                known.append(report)
        self._tell(reports)

    def on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._outcomes[outcome.run_id, outcome.attempt] = outcome
        self._tell_outcomes(outcomes)

    def _tell(self, reports: Sequence[Report]) -> None:
        if self._listener is not None:
            self._listener.on_reports(reports)

    def _tell_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        if self._listener is not None:
            self._listener.on_outcomes(outcomes)

    def _refuse(self, parcel_id: str) -> None:
        if self._listener is not None:
            self._listener.on_refused(parcel_id)
