"""The driver: begins the runs of the partitions that this engine owns, leads them on the cluster, tells every change.

It takes in runs from the dispatcher and reports from the cluster. Everything but going through flows (user code, in a
thread of its own) happens on one event loop.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.awaited import AwaitedEvents
from engine.driven import Driven
from engine.endings import cancelled, end_of
from engine.executor import Call, Executor, Report, Submission
from engine.feeder import Feeder
from engine.flows import Flow
from engine.ledger import Ledger
from engine.logs import log_failure, logger
from engine.packer import Packer
from engine.planning import Advance, Limits
from engine.progress import Progress
from engine.publisher import Publisher
from engine.recovery import heard
from engine.runs import FlowRun
from engine.settings import Settings
from engine.states import Failure, StateChange
from engine.steps import Step
from engine.telemetry import Tracer
from engine.waitlist import Waitlist
from engine.wiring import Start, Wirer

#: Runs that are begun and submitted in one go: large enough to share a message, small enough not to delay the next.
_MAX_TICK = 200
#: State changes that may wait for Kafka before no further run begins.
_MAX_BACKLOG = 50_000


class Driver:
    """Leads runs from their beginning to their end."""

    def __init__(
        self,
        settings: Settings,
        flows: Mapping[str, Flow[..., Any]],
        executor: Executor,
        publisher: Publisher,
        tracer: Tracer,
        events: AwaitedEvents,
    ) -> None:
        self._settings = settings
        self._flows = flows
        self._executor = executor
        self._publisher, self._tracer, self._events = publisher, tracer, events
        # One flow alone never takes all the room: another one's first runs find some.
        most = max(1, settings.max_open_runs * 9 // 10)
        self.waitlist = Waitlist(most, {name: flow.max_open_runs for name, flow in flows.items() if flow.max_open_runs})
        self._driven: dict[str, Driven] = {}
        self._wake = asyncio.Event()
        limits = Limits(settings.inline_result_bytes, settings.max_run_tasks, settings.app if settings.results else "")
        self._wirer = Wirer(flows, limits, settings.flow_timeout_seconds)
        #: What flows log.
        self.logs = self._wirer.logs
        self._feeder = Feeder(self._wirer, executor, self._on_advance, self._on_lost)
        #: Flows that are being gone through, for the first time or again.
        self._begins: set[asyncio.Task[None]] = set()
        self._ledgers: Mapping[int, Ledger] = {}
        packer = self._packer = Packer(settings, flows, executor, publisher, tracer, self._on_end)
        # See engine.executor.Listener: what is said of parcels is the packer's.
        self.on_outcomes, self.on_deaths, self.on_refused = packer.on_outcomes, packer.on_deaths, packer.on_refused

    async def start(self, ledgers: Mapping[int, Ledger]) -> None:
        """Connect to the cluster. ``ledgers`` are those of the partitions owned, by number. Raises DaskUnavailable."""
        self._ledgers = ledgers
        self._events.start(self._on_event)
        await self._executor.start(self)

    async def run(self) -> None:
        """Begin runs and go on with flows until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._admit(), name="engine-admit")
            group.create_task(self._feeder.run(), name="engine-feed")

    def own(self, partition: int, epoch: int) -> None:
        """The partition is ours from ``epoch`` on."""
        self._executor.own(partition, epoch)

    def nudge(self) -> None:
        """Runs may have come in."""
        self._wirer.watch()
        if self.waitlist.has_ready:
            self._wake.set()

    def drop(self, partition: int) -> None:
        """Somebody else owns the partition: forget its runs, and leave what they have on the cluster alone."""
        for run_id in [run_id for run_id, driven in self._driven.items() if driven.ledger.partition == partition]:
            self._forget(run_id)
        self._packer.drop(partition)
        self.waitlist.drop(partition)

    def cancel(self, ledger: Ledger, run: FlowRun) -> None:
        """Somebody wants the run to end: whatever it is at, its last changes are made now."""
        driven = self._driven.get(run.run_id)
        if driven is not None:
            self._cancel(driven)
        elif run.run_id in self._packer or self.waitlist.withdraw(ledger, run):
            self._cancel_waiting(ledger, run)

    def _cancel_waiting(self, ledger: Ledger, run: FlowRun) -> None:
        if self._packer.takes(run.flow):
            self._packer.cancel(ledger, run)
        else:
            self._cancel(self._new(ledger, run))

    def _cancel(self, driven: Driven) -> None:
        run = driven.progress.run
        if not run.state.is_end and run not in self._publisher.untold:
            driven.close()
            driven.progress.is_ended = True
            self._executor.cancel(run.run_id)
            self._tell(driven, Step(changes=cancelled(run, time.time(), driven.ledger.epoch)))

    async def close(self) -> None:
        """Disconnect. What runs on the cluster goes on for the next owner."""
        for driven in self._driven.values():
            driven.close()
        self._packer.close()
        for task in self._begins:
            task.cancel()
        await asyncio.gather(*self._begins, return_exceptions=True)
        await self._feeder.close()
        await self._events.close()
        await self._executor.close()
        self._wirer.close()

    # --- Beginning ------------------------------------------------------------------------------------------------------

    async def _admit(self) -> None:
        """Whenever runs may begin: go through their flows, submit all in one message, tell their changes."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (room := self._room()) > 0:
                # What begins goes on when we are stopped, so that it is told what a run is ahead of the log by.
                await asyncio.shield(self._begin_soon(self.waitlist.take(room)))

    def _room(self) -> int:
        """How many runs may begin now; none while the cluster is away or Kafka does not keep up."""
        if not self.waitlist.has_ready or self._executor.trouble or self._publisher.backlog > _MAX_BACKLOG:
            return 0
        open_runs = len(self._driven) - self.waitlist.parked + len(self._packer)
        return min(self._settings.max_open_runs - open_runs, _MAX_TICK)

    async def _begin_all(self, batch: Sequence[tuple[Ledger, FlowRun]]) -> None:
        now = time.time()
        begun: list[tuple[Driven, Step]] = []
        starts: list[Start] = []
        for ledger, run in batch:
            if run.cancelled is not None:  # between being taken and now
                self._cancel_waiting(ledger, run)
                continue
            if self._packer.takes(run.flow):
                self._packer.add(ledger, run)
                continue
            driven = self._new(ledger, run)
            step = driven.progress.begin(now)
            begun.append((driven, step))
            self._publisher.untold.add(run)
            starts.append(Start(run, heard(run), run.running_at))
        if not starts:
            return
        advances = await self._wirer.start(starts)
        submissions: list[Submission] = []
        for (driven, step), advance in zip(begun, advances, strict=True):
            if self._is_ours(driven):
                self._tell(driven, step, is_decision=advance.is_decided)
                self._advance(driven, advance, submissions)
        self._publisher.untold.tell([driven.progress.run for driven, _ in begun])
        self._executor.submit(submissions)
        for driven, _ in begun:
            if driven.progress.run.cancelled is not None and self._is_ours(driven):
                self._cancel(driven)  # which was put off, because its RUNNING was not told

    def _begin_again(self, driven: Driven) -> None:
        """The next attempt of a flow, which takes the place of the last."""
        self._wirer.forget(driven.run_id)
        self._begin_soon([(driven.ledger, driven.progress.run)])

    def _begin_soon(self, batch: Sequence[tuple[Ledger, FlowRun]]) -> asyncio.Task[None]:
        begin = asyncio.get_running_loop().create_task(self._begin_all(batch), name="engine-begin")
        self._begins.add(begin)
        begin.add_done_callback(self._begins.discard)
        return begin

    def _new(self, ledger: Ledger, run: FlowRun) -> Driven:
        flow = self._flows.get(run.flow)
        progress = Progress(
            run,
            ledger.epoch,
            is_async=flow is not None and flow.is_async,
            retry=None if flow is None else flow.retry,
            max_tasks=self._settings.max_run_tasks,
            window=self._settings.map_window,
        )
        driven = Driven(progress, ledger, self._settings.app, run.context)
        self._driven[run.run_id] = driven
        return driven

    def _is_ours(self, driven: Driven) -> bool:
        """Whether nobody has taken the run over while we looked away."""
        return self._driven.get(driven.run_id) is driven

    # --- Going on -------------------------------------------------------------------------------------------------------

    def _on_advance(self, advances: Sequence[tuple[Driven, Advance]]) -> None:
        submissions: list[Submission] = []
        for driven, advance in advances:
            if self._is_ours(driven):
                self._advance(driven, advance, submissions)
        self._executor.submit(submissions)

    def _advance(self, driven: Driven, advance: Advance, submissions: list[Submission]) -> None:
        """A flow has gone on."""
        step = driven.progress.plan(advance.planned, advance.outcome, advance.handled, time.time())
        self._do(driven, step, submissions)
        if advance.fetch is not None:
            self._feeder.fetch(driven, advance.fetch)

    def _on_lost(self, driven: Driven, index: str) -> None:
        if self._is_ours(driven):
            self._do_now(driven, driven.progress.remake(index))

    def on_reports(self, reports: Sequence[Report]) -> None:
        """See engine.executor.Listener."""
        now = time.time()
        submissions: list[Submission] = []
        for report in reports:
            driven = self._driven.get(report.run_id)
            if driven is not None:
                self._do(driven, driven.progress.report(report, now), submissions)
        self._executor.submit(submissions)

    def on_reset(self) -> None:
        """See engine.executor.Listener: the cluster has forgotten everything, so submit again what is open."""
        for ledger in self._ledgers.values():
            self._executor.own(ledger.partition, ledger.epoch)
        submissions: list[Submission] = []
        for driven in self._driven.values():
            driven.begin_anew()
            self._submit(driven, driven.progress.resubmit().submit, submissions)
        logger.info("open runs are submitted again", runs=len(submissions) + len(self._packer))
        self._executor.submit(submissions)
        self._packer.on_reset()
        self._wake.set()

    def _on_event(self, run_id: str, index: str, event: bytes | None, error: Failure | None) -> None:
        driven = self._driven.get(run_id)
        if driven is not None:
            self._do_now(driven, driven.progress.wake(index, time.time(), event=event, error=error))

    def _do_now(self, driven: Driven, step: Step) -> None:
        submissions: list[Submission] = []
        self._do(driven, step, submissions)
        self._executor.submit(submissions)

    def _do(self, driven: Driven, step: Step, submissions: list[Submission]) -> None:
        progress, run_id = driven.progress, driven.run_id
        # First the changes: what is submitted because of a decision waits for its acknowledgement.
        self._tell(driven, step, is_decision=step.is_decision)
        self._submit(driven, step.submit, submissions)
        for index, wait_seconds in step.retries:
            driven.later(index, wait_seconds, functools.partial(self._retry, driven, index))
        for index, until in step.sleeps:
            driven.later(index, until - time.time(), functools.partial(self._wake_up, driven, index))
        for wait in step.waits:
            self._events.add(progress.run, wait, progress.parking.found())
        for index in step.dropped:
            self._events.drop(run_id, index)
            driven.drop_timer(index)
        if step.begin_again_in_seconds is not None:
            driven.later("flow", step.begin_again_in_seconds, functools.partial(self._begin_again, driven))
        if step.feeds:
            self._feeder.add(driven, step.feeds)
        if step.fetch is not None:
            self._feeder.fetch(driven, step.fetch)
        if not progress.is_parked:
            self.waitlist.unpark(progress.run)
        elif self.waitlist.park(progress.run):
            self._wake.set()

    def _submit(self, driven: Driven, calls: Sequence[Call], submissions: list[Submission]) -> None:
        if (calls or not driven.has_submitted) and (submission := driven.submission(calls)) is not None:
            submissions.append(submission)

    def _decided(self, driven: Driven) -> None:
        """What this engine decided is on the topic, where the next owner finds it: what follows from it may happen."""
        submission = driven.decided()
        if submission is not None and self._is_ours(driven) and not driven.progress.is_ended:
            self._executor.submit([submission])

    def _retry(self, driven: Driven, index: str) -> None:
        self._do_now(driven, driven.progress.retry(index))

    def _wake_up(self, driven: Driven, index: str) -> None:
        self._do_now(driven, driven.progress.wake(index, time.time()))

    # --- Telling --------------------------------------------------------------------------------------------------------

    def _tell(self, driven: Driven, step: Step, *, is_decision: bool = False) -> None:
        progress, ledger = driven.progress, driven.ledger
        run = progress.run
        for change in step.changes:
            log_failure(change, driven.context)
            parent = driven.context_of(change)
            ends = change.is_flow_run and change.state.is_end
            on_acknowledged: Callable[[], None] | None = functools.partial(self._ended, driven, change) if ends else None
            if is_decision and on_acknowledged is None:
                driven.decide()
                on_acknowledged = functools.partial(self._decided, driven)
            self._publisher.publish(run, driven.envelope, change, ledger.partition, parent, on_acknowledged)
            if change.is_flow_run:
                self._tracer.run(driven.context, change, self._settings.app, run)
            if ends:
                self._on_end(ledger, run)

    def _on_end(self, ledger: Ledger, run: FlowRun) -> None:
        self.waitlist.end(ledger, run)
        self.nudge()

    def _ended(self, driven: Driven, end: StateChange) -> None:
        """The run's end is safely on the state topic: only now may the cluster and the ledger let it go."""
        run_id = driven.run_id
        if self._is_ours(driven):
            self._forget(run_id)
            driven.ledger.close(run_id)
            keep_seconds = self._settings.result_ttl_seconds if driven.progress.keeps_result else 0.0
            self._executor.release(run_id, keep_seconds, end_of(end, driven.progress.outcome))
            self.nudge()

    def _forget(self, run_id: str) -> None:
        driven = self._driven.pop(run_id)
        self._feeder.forget(run_id)
        flow = self._flows.get(driven.progress.run.flow)
        if flow is not None and flow.is_async:
            self._wirer.forget(run_id)
            self._events.drop_run(run_id)
        driven.close()
