"""The dispatcher: owns partitions of the state topic, drives their runs on the cluster, tells every change.

It is the only writer of state changes for the runs of its partitions, and takes in nothing but the state topic and the
cluster's reports. Everything but the wiring of flows (user code, in a thread of its own) happens on one event loop.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.broker import Broker, Outgoing, Partition, Record, Sink
from engine.errors import EngineError, KafkaUnavailable
from engine.executor import Executor, Report, Submission
from engine.flows import Flow
from engine.graph import Graph
from engine.ledger import Ledger
from engine.logs import log_failure, logger
from engine.progress import Progress, Step
from engine.publisher import Publisher
from engine.runs import FlowRun
from engine.settings import Settings
from engine.states import Envelope, Failure, Ownership, is_ownership, is_scheduled, read, type_of, utc, write_ownership
from engine.telemetry import Tracer, attempt_context, run_context
from engine.waitlist import Waitlist
from engine.wiring import UNKNOWN_FLOW, Wirer

_POLL_SECONDS = 0.2
_COMMIT_INTERVAL_SECONDS = 1.0
#: Runs that are wired and submitted in one go: large enough to share a message, small enough not to delay the next.
_MAX_TICK = 200
#: State changes that may wait for Kafka before no further run begins.
_MAX_BACKLOG = 50_000


class _Driven:
    """A run under way: its progress and what its records have in common."""

    __slots__ = ("context", "envelope", "ledger", "progress")

    def __init__(self, progress: Progress, ledger: Ledger, app: str, context: str) -> None:
        self.progress = progress
        self.ledger = ledger
        self.envelope = Envelope.of(app, progress.run.run_id)
        self.context = context


class Dispatcher:
    """A member of the group ``<app>.dispatch``."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        sink: Sink,
        flows: Mapping[str, Flow[..., Any]],
        executor: Executor,
        publisher: Publisher,
        tracer: Tracer,
    ) -> None:
        self._settings = settings
        self._sink = sink
        self._executor = executor
        self._publisher = publisher
        self._tracer = tracer
        self._topic = settings.states_topic
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{os.urandom(4).hex()}"
        self._source = broker.source(
            [self._topic], group=settings.dispatch_group, on_assigned=self._assigned, on_revoked=self._revoked
        )
        self._ledgers: dict[int, Ledger] = {}
        self._driven: dict[str, _Driven] = {}
        self._waitlist = Waitlist()
        self._wake = asyncio.Event()
        self._paused = False
        self._committed: dict[Partition, int] = {}
        self._committed_at = 0.0
        self._is_stopping = False
        self._wirer = Wirer(flows, settings.inline_result_bytes)
        self._timers: set[asyncio.TimerHandle] = set()

    async def start(self) -> None:
        """Connect to the cluster, join the group. Raises DaskUnavailable, KafkaUnavailable or TopicError."""
        await self._executor.start(self._on_reports, self._on_reset)
        await self._source.start()

    async def run(self) -> None:
        """Drive runs until ``stop``."""
        async with asyncio.TaskGroup() as group:
            admitting = group.create_task(self._admit(), name="engine-admit")
            while not self._is_stopping:
                records = await self._source.poll(timeout_seconds=_POLL_SECONDS, max_records=self._settings.poll_records)
                await self._take_all(records)
                if self._waitlist.ready:
                    self._wake.set()
                self._regulate()
                await self._commit()
            admitting.cancel()

    def stop(self) -> None:
        """Make ``run`` return."""
        self._is_stopping = True

    async def close(self) -> None:
        """Leave: tell what is known, commit, leave the group. What runs on the cluster goes on for the next owner.

        Call after ``run`` has returned, while the publisher still writes.
        """
        for timer in self._timers:
            timer.cancel()
        await self._publisher.drain()
        self._committed_at = 0.0
        await self._commit()
        await self._source.close()
        await self._executor.close()
        self._wirer.close()

    async def _assigned(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Take over what is new; go on where we were with what stayed. Answers where to read from."""
        numbers = {number for _, number in partitions}
        for number in set(self._ledgers) - numbers:
            self._drop(number)
        if new := sorted(numbers - set(self._ledgers)):
            logger.info("taking over partitions of the state topic", partitions=new)
        starts: dict[Partition, int] = {}
        for number in numbers:
            ledger = self._ledgers.get(number) or await self._take_over(number)
            starts[self._topic, number] = ledger.next_offset
        return starts

    async def _revoked(self, partitions: Sequence[Partition]) -> None:
        """Commit before the others read. What we drive stays ours until we hear that somebody else took it over."""
        self._committed_at = 0.0
        await self._commit()

    async def _take_over(self, number: int) -> Ledger:
        ownership = Ownership(number, self._owner, utc(time.time()))
        value, headers = write_ownership(self._settings.app, ownership)
        # First on the log: from this record's offset on, nothing that an earlier owner still writes counts.
        [position] = await self._sink.write([Outgoing(self._topic, None, value, headers, number)])
        # Then to the cluster: nothing that an earlier owner still submits runs.
        self._executor.own(number, position.offset)
        ledger = Ledger(number, position.offset, self._settings.dedup_window_seconds)
        partition = (self._topic, number)
        window_ms = int((time.time() - self._settings.dedup_window_seconds) * 1000)
        committed = await self._source.committed(partition)
        in_window = await self._source.offset_at(partition, window_ms)
        # The window's ids must be known before a run may be called new; the committed offset may be younger than that.
        ledger.next_offset = (committed or 0) if in_window is None else min(committed or 0, in_window)
        self._ledgers[number] = ledger
        logger.debug("partition taken over", partition=number, epoch=position.offset, reads_from=ledger.next_offset)
        return ledger

    def _drop(self, number: int) -> None:
        """Somebody else owns the partition: forget its runs, and leave what they have on the cluster alone."""
        self._ledgers.pop(number)
        self._committed.pop((self._topic, number), None)
        for run_id in [run_id for run_id, driven in self._driven.items() if driven.ledger.partition == number]:
            del self._driven[run_id]
        self._waitlist.drop(number)

    async def _take_all(self, records: Sequence[Record]) -> None:
        anew: set[int] = set()
        for record in records:
            number = record.partition
            ledger = self._ledgers.get(number)
            if ledger is None or number in anew:
                continue  # read before the partition was lost, or taken over anew: the ledger would have a gap
            self._take(ledger, record)
            if ledger.is_usurped:
                logger.warning("partition was taken over by another engine and came back", partition=number)
                self._drop(number)
                self._source.seek((self._topic, number), (await self._take_over(number)).next_offset)
                anew.add(number)

    def _take(self, ledger: Ledger, record: Record) -> None:
        was_recovered = ledger.is_recovered
        ce_type = type_of(record.headers)
        if is_ownership(ce_type):
            ledger.begin_epoch(record.offset)
        elif was_recovered and not is_scheduled(ce_type):
            ledger.skip(record.offset)  # what we wrote ourselves comes by again; what others write is void
        else:
            self._read(ledger, record, was_recovered)
        if not was_recovered and ledger.is_recovered:
            if ledger.runs:
                logger.info("going on with open runs", partition=record.partition, runs=len(ledger.runs))
            for run in ledger:
                self._waitlist.add(ledger, run)

    def _read(self, ledger: Ledger, record: Record, was_recovered: bool) -> None:
        try:
            change = read(record.value, record.headers)
            if change is None or isinstance(change, Ownership):
                ledger.skip(record.offset)
                return
            run = ledger.read(record.offset, change)
        except (EngineError, ValueError) as error:
            # Nobody but an owner writes here: a record that cannot be is left out, and the partition goes on.
            logger.error("unreadable record on the state topic", origin=str(record.position), error=str(error))
            ledger.skip(record.offset)
            return
        if run is not None and was_recovered:
            self._waitlist.add(ledger, run)

    async def _admit(self) -> None:
        """Whenever runs may begin: wire them, submit all of them in one message, tell their changes."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (room := self._room()) > 0:
                batch = self._waitlist.take(room)
                wired = await self._wirer.wire([run for _, run in batch], time.time())
                submissions: list[Submission] = []
                for (ledger, run), graph in zip(batch, wired, strict=True):
                    if self._ledgers.get(ledger.partition) is ledger:  # else it was lost while the flow was wired
                        self._begin(ledger, run, graph, submissions)
                if submissions:
                    self._executor.submit(submissions)

    def _room(self) -> int:
        """How many runs may begin now; none while the cluster is away or Kafka does not keep up."""
        if not self._waitlist.ready or self._executor.trouble or self._publisher.backlog > _MAX_BACKLOG:
            return 0
        return min(self._settings.max_open_runs - len(self._driven), _MAX_TICK)

    def _begin(self, ledger: Ledger, run: FlowRun, graph: Graph | Failure, submissions: list[Submission]) -> None:
        now = time.time()
        context = run_context(run.traceparent or "", run.run_id)
        progress = Progress(run, graph if isinstance(graph, Graph) else Graph((), None, None), ledger.epoch)
        driven = self._driven[run.run_id] = _Driven(progress, ledger, self._settings.app, context)
        if isinstance(graph, Graph):
            step = progress.begin(now)
        else:
            step = progress.fail(graph, now, crashed=graph.type == UNKNOWN_FLOW)
        if step.forget:
            self._executor.forget(run.run_id, step.forget)
        if step.submit:
            submissions.append(Submission(run.run_id, ledger.partition, ledger.epoch, step.submit))
        self._tell(driven, step)

    def _on_reports(self, reports: Sequence[Report]) -> None:
        now = time.time()
        for report in reports:
            driven = self._driven.get(report.run_id)
            if driven is not None:
                self._do(driven, driven.progress.report(report, now))

    def _on_reset(self) -> None:
        """The cluster has forgotten everything: submit again what is open."""
        for ledger in self._ledgers.values():
            self._executor.own(ledger.partition, ledger.epoch)
        submissions = [
            Submission(run_id, driven.ledger.partition, driven.ledger.epoch, step.submit)
            for run_id, driven in self._driven.items()
            if (step := driven.progress.resubmit()).submit
        ]
        logger.info("open runs are submitted again", runs=len(submissions))
        self._executor.submit(submissions)
        self._wake.set()

    def _do(self, driven: _Driven, step: Step) -> None:
        run_id = driven.progress.run.run_id
        if step.forget:
            self._executor.forget(run_id, step.forget)
        if step.submit:
            ledger = driven.ledger
            self._executor.submit([Submission(run_id, ledger.partition, ledger.epoch, step.submit)])
        if step.retry is not None:
            index, wait_seconds = step.retry
            self._later(wait_seconds, functools.partial(self._retry, driven, index))
        self._tell(driven, step)

    def _retry(self, driven: _Driven, index: int) -> None:
        if self._driven.get(driven.progress.run.run_id) is driven:
            self._do(driven, driven.progress.retry(index))

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        def act() -> None:
            self._timers.discard(timer)
            action()

        timer = asyncio.get_running_loop().call_later(seconds, act)
        self._timers.add(timer)

    def _tell(self, driven: _Driven, step: Step) -> None:
        progress, ledger = driven.progress, driven.ledger
        run = progress.run
        for change in step.changes:
            log_failure(change, driven.context)
            parent = driven.context
            if change.task_run_id is not None and change.attempt:
                parent = attempt_context(driven.context, change.task_run_id, change.attempt)
            ends = change.is_flow_run and change.state.is_end
            on_acknowledged = functools.partial(self._ended, driven) if ends else None
            self._publisher.publish(run, driven.envelope, change, ledger.partition, parent, on_acknowledged)
            if ends:
                parent = run.traceparent or ""
                self._tracer.run(driven.context, parent, change, self._settings.app, progress.started_at, change.error)
                self._waitlist.end(ledger, run)
                self._wake.set()

    def _ended(self, driven: _Driven) -> None:
        """The run's end is safely on the state topic: only now may the cluster and the ledger let it go."""
        run_id = driven.progress.run.run_id
        if self._driven.get(run_id) is driven:
            del self._driven[run_id]
            driven.ledger.close(run_id)
            keep_seconds = self._settings.result_ttl_seconds if driven.progress.keeps_result else 0.0
            self._executor.release(run_id, keep_seconds)
            if self._waitlist.ready:
                self._wake.set()

    def _regulate(self) -> None:
        """Stop reading while more waits than may be open, and read again when half of it is gone."""
        backlog = len(self._waitlist)
        limit = self._settings.max_open_runs
        if self._paused:
            self._paused = backlog > limit // 2
            if not self._paused:
                self._source.resume([(self._topic, number) for number in self._ledgers])
        elif backlog > limit:
            self._paused = True
        if self._paused:  # a partition that recovers is read on: what it waits for may be its own history
            recovered = [(self._topic, number) for number, ledger in self._ledgers.items() if ledger.is_recovered]
            self._source.pause(recovered)

    async def _commit(self) -> None:
        now = time.monotonic()
        if now - self._committed_at < _COMMIT_INTERVAL_SECONDS:
            return
        self._committed_at = now
        offsets = {
            (self._topic, number): ledger.safe_offset
            for number, ledger in self._ledgers.items()
            if ledger.is_recovered and self._committed.get((self._topic, number)) != ledger.safe_offset
        }
        if not offsets:
            return
        try:
            if await self._source.commit(offsets):
                self._committed.update(offsets)
        except KafkaUnavailable as error:
            # The next owner reads a little more; the next commit catches up.
            logger.warning("cannot commit the state topic", error=str(error))
