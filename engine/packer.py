"""The packer: leads packed runs, many to a parcel, from their beginning to their end, and tells every change.

It is the driver's other lane, on the same event loop. It never looks into a run: flow and tasks are the worker's.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from engine.executor import Executor
from engine.flows import Flow
from engine.ledger import Ledger
from engine.logs import log_failure
from engine.parcels import Outcome, PackedRun, Parcel, Parcels, Sizing
from engine.publisher import Publisher
from engine.retries import judge_named, next_wait_seconds
from engine.runs import FlowRun
from engine.settings import Settings
from engine.states import ABSENT, Envelope, Failure, State, StateChange, later, utc
from engine.telemetry import Tracer

_EMPTY = msgspec.Raw(b"[]")


class _Run:
    """A packed run that has begun or may."""

    __slots__ = ("context", "envelope", "ledger", "memo", "run", "timer")

    def __init__(self, ledger: Ledger, run: FlowRun, app: str) -> None:
        self.ledger = ledger
        self.run = run
        self.context = run.context
        self.envelope = Envelope.of(app, run.run_id)
        #: What its earlier tries have finished.
        self.memo = b""
        self.timer: asyncio.TimerHandle | None = None


class Packer:
    """The packed runs of one engine."""

    def __init__(
        self,
        settings: Settings,
        flows: Mapping[str, Flow[..., Any]],
        executor: Executor,
        publisher: Publisher,
        tracer: Tracer,
        on_end: Callable[[Ledger, FlowRun], None],
    ) -> None:
        """``on_end`` is called when the end of a run has been made."""
        self._settings = settings
        self._flows = {name: flow for name, flow in flows.items() if flow.pack}
        self._executor = executor
        self._publisher = publisher
        self._tracer = tracer
        self._on_end = on_end
        self._runs: dict[str, _Run] = {}
        self._ready: dict[str, deque[_Run]] = {name: deque() for name in self._flows}
        self._sizing = {name: Sizing() for name in self._flows}
        self._parcels = Parcels(lambda: os.urandom(16).hex())
        #: Parcels whose worker has died, one after the other: else an innocent one would die again and again beside the
        #: culprit, with the worker they share. And the one of them that is under way.
        self._suspects: deque[str] = deque()
        self._suspect = ""
        self._released: list[str] = []
        self._is_sending = False

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def takes(self, flow: str) -> bool:
        """Whether runs of this flow are packed."""
        return flow in self._flows

    def add(self, ledger: Ledger, run: FlowRun) -> None:
        """A run may begin."""
        added = self._runs[run.run_id] = _Run(ledger, run, self._settings.app)
        self._ready[run.flow].append(added)
        self._send_soon()

    def drop(self, partition: int) -> None:
        """Somebody else owns the partition: forget its runs."""
        lost = [run_id for run_id, packed in self._runs.items() if packed.ledger.partition == partition]
        for run_id in lost:
            packed = self._runs.pop(run_id)
            if packed.timer is not None:
                packed.timer.cancel()
        self._parcels.drop(lost)
        for name, ready in self._ready.items():
            self._ready[name] = deque(packed for packed in ready if packed.ledger.partition != partition)

    def cancel(self, ledger: Ledger, run: FlowRun) -> None:
        """The run is to end now, also where only an earlier owner had it here. A worker that is at it is not heard."""
        packed = self._runs.get(run.run_id)
        if packed is None:
            packed = self._runs[run.run_id] = _Run(ledger, run, self._settings.app)
        if packed.timer is not None:
            packed.timer.cancel()
        self._parcels.drop([run.run_id])
        ready = self._ready[run.flow]
        if packed in ready:
            ready.remove(packed)
        self._executor.cancel_packed([run.run_id])
        self._finish(packed, State.CANCELLED, time.time(), {"tasks": _EMPTY, "reason": run.cancelled})

    def close(self) -> None:
        """Wait for nothing more."""
        for packed in self._runs.values():
            if packed.timer is not None:
                packed.timer.cancel()

    def on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """See engine.executor.Listener."""
        seconds: dict[str, list[float]] = {}
        for outcome in self._parcels.done(outcomes):
            packed = self._runs[outcome.run_id]
            seconds.setdefault(packed.run.flow, []).append(outcome.ended_at - outcome.started_at)
            if outcome.state is State.FAILED:
                outcome = self._with_retry(packed, outcome)  # noqa: PLW2901 - the flow's own policy may make it another
            if outcome.state is State.RETRYING:
                self._retry_later(packed, outcome)
            else:
                self._end(packed, outcome)
        for name, spent in seconds.items():
            self._sizing[name].learn(len(spent), sum(spent))
        self._send_suspect()
        self._send_all()

    def on_deaths(self, run_ids: Sequence[str], reason: str) -> None:
        """See engine.executor.Listener: what is left is sent again in halves, until the culprit is alone."""
        for parcel_id in self._parcels.holding(run_ids):
            verdict = self._parcels.died(parcel_id)
            for run in verdict.crashed:
                now = time.time()
                error = Failure("KilledWorker", f"every worker that ran it died ({reason}); see their logs")
                self._end(self._runs[run.run_id], Outcome(run.run_id, run.attempt, State.CRASHED, now, now, error=error))
            self._suspects.extend(parcel.parcel_id for parcel in verdict.parcels)
        self._send_suspect()

    def on_refused(self, parcel_id: str) -> None:
        """See engine.executor.Listener: the runs that are still ours go again, without those that are not."""
        asyncio.get_running_loop().call_later(0.1, self._send_again, parcel_id)

    def on_reset(self) -> None:
        """See engine.executor.Listener."""
        self._suspects.clear()
        self._submit(self._parcels.resubmit())
        self._send_all()

    def _send_suspect(self) -> None:
        while self._suspects and not self._parcels.is_under_way(self._suspect):
            for parcel in self._parcels.again(self._suspects.popleft()):
                self._suspect = parcel.parcel_id
                self._submit([parcel])

    def _send_again(self, parcel_id: str) -> None:
        self._submit(self._parcels.again(parcel_id))

    def _send_soon(self) -> None:
        """Once all that may begin now has been added."""
        if not self._is_sending:
            self._is_sending = True
            asyncio.get_running_loop().call_soon(self._send_all)

    def _send_all(self) -> None:
        self._is_sending = False
        if self._executor.trouble:
            return
        under_way = self._parcels.by_flow()
        waiting = [name for name, ready in self._ready.items() if ready]
        # Flows share the threads: else the parcels of a slow one would leave no room for a quick one's.
        slots = max(1, self._executor.slots // max(1, len({*waiting, *under_way})))
        for name in waiting:
            ready = self._ready[name]
            for size in self._sizing[name].plan(len(ready), under_way[name], slots):
                self._begin(name, [ready.popleft() for _ in range(size)])

    def _begin(self, name: str, begun: list[_Run]) -> None:
        now = time.time()
        runs: list[PackedRun] = []
        for packed in begun:
            run = packed.run
            if run.state is not State.RUNNING:  # else an earlier owner has begun it
                self._tell(packed, run.advance(State.RUNNING, now, packed.ledger.epoch))
            attempt = max(1, run.attempt)
            runs.append(PackedRun(run.run_id, run.parameters, packed.context, run.scheduled_at, attempt, packed.memo))
        parcel = self._parcels.pack(
            name,
            self._flows[name].reference,
            runs,
            self._settings.inline_result_bytes,
            self._settings.app if self._settings.results else "",
        )
        self._submit([parcel])

    def _submit(self, parcels: Iterable[Parcel]) -> None:
        for parcel in parcels:
            ledgers = [self._runs[run.run_id].ledger for run in parcel.runs]
            self._executor.send(parcel, [(ledger.partition, ledger.epoch) for ledger in ledgers])

    def _with_retry(self, packed: _Run, outcome: Outcome) -> Outcome:
        """The same, or RETRYING where the flow has attempts left: it is gone through again, but for what has completed."""
        retry = self._flows[packed.run.flow].retry
        verdict = judge_named(retry, outcome.error.type if outcome.error is not None else "")
        wait_seconds = next_wait_seconds(retry, packed.run.attempt, is_final=verdict.is_final)
        if wait_seconds is None:
            return outcome
        return msgspec.structs.replace(outcome, state=State.RETRYING, wait_seconds=wait_seconds)

    def _retry_later(self, packed: _Run, outcome: Outcome) -> None:
        run = packed.run
        at = later(utc(outcome.ended_at), outcome.wait_seconds)
        details: dict[str, Any] = {"error": outcome.error, "next_attempt_at": at}
        self._tell(packed, run.advance(State.RETRYING, outcome.ended_at, packed.ledger.epoch, **details))
        packed.memo = outcome.memo
        packed.timer = asyncio.get_running_loop().call_later(outcome.wait_seconds, self._come_again, packed)

    def _come_again(self, packed: _Run) -> None:
        packed.timer = None
        self._ready[packed.run.flow].append(packed)
        self._send_all()

    def _end(self, packed: _Run, outcome: Outcome) -> None:
        tasks = msgspec.Raw(outcome.tasks) if outcome.tasks else _EMPTY
        details: dict[str, Any] = {"tasks": tasks}
        if outcome.state is State.COMPLETED:
            details["result"] = ABSENT if outcome.result is None else msgspec.Raw(outcome.result)
            if outcome.kept is not None:
                details["result_ref"] = outcome.stored or f"dask:variable/run-{packed.run.run_id}"
                details["reason"] = outcome.kept
        else:
            details["error"] = outcome.error
        self._finish(packed, outcome.state, outcome.ended_at, details)

    def _finish(self, packed: _Run, state: State, at: float, details: dict[str, Any]) -> None:
        run = packed.run
        change = run.advance(state, at, packed.ledger.epoch, **details)
        self._tell(packed, change, functools.partial(self._ended, packed))
        self._on_end(packed.ledger, run)

    def _tell(self, packed: _Run, change: StateChange, on_acknowledged: Callable[[], None] | None = None) -> None:
        if change.error is not None:
            log_failure(change, packed.context)
        partition = packed.ledger.partition
        self._publisher.publish(packed.run, packed.envelope, change, partition, packed.context, on_acknowledged)
        self._tracer.run(packed.context, change, self._settings.app, packed.run)

    def _ended(self, packed: _Run) -> None:
        """The run's end is safely on the state topic: only now may the cluster and the ledger let it go."""
        run_id = packed.run.run_id
        if self._runs.get(run_id) is not packed:
            return
        del self._runs[run_id]
        packed.ledger.close(run_id)
        self._released.append(run_id)
        if len(self._released) == 1:  # those of one acknowledgement go together
            asyncio.get_running_loop().call_soon(self._release_all)

    def _release_all(self) -> None:
        released, self._released = self._released, []
        self._executor.release_parcels(released, self._settings.result_ttl_seconds)
