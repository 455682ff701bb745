"""What ``restart`` starts on: topics filled with runs that nobody ran, through the engine's own encoders."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from engine.broker import Outgoing
from engine.kafka import KafkaBroker
from engine.planning import SLEEP
from engine.runs import FlowRun, run_id_of, task_run_id_of
from engine.settings import Settings
from engine.states import Envelope, Origin, Ownership, State, StateChange, encode, utc, write_ownership

_BATCH = 2_000
DAY_SECONDS = 86_400.0
#: Past runs were scheduled over so long, all inside the dedup window of a day.
_PAST_SECONDS = 0.8 * DAY_SECONDS


class History:
    """A state topic, as it was left behind."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._now = time.time()
        #: Records and bytes of values written.
        self.records = self.bytes = 0

    async def write(self, broker: KafkaBroker, past: int, open_runs: int) -> None:
        """Open runs, one of which sleeps for thirty days and the others for one, then runs that have ended."""
        sink = broker.sink()
        await sink.start()
        try:
            ownership = [self._ownership(number) for number in range(self._settings.state_partitions)]
            # The first record of each partition: its offset, 0, is the epoch of what follows.
            assert {position.offset for position in await sink.write(ownership)} == {0}
            batch: list[Outgoing] = []
            for record in self._all(past, open_runs):
                batch.append(record)
                if len(batch) == _BATCH:
                    await sink.write(batch)
                    batch.clear()
            await sink.write(batch)
        finally:
            await sink.close()

    def scheduled(self, name: str, seconds: float) -> tuple[str, Outgoing]:
        """A run that was scheduled and that nobody has begun: its id and record, in the partition of its name's number."""
        run, change = self._new(name, time.time(), "nap", seconds)
        return run.run_id, self._record(run, change)

    def _all(self, past: int, open_runs: int) -> Iterator[Outgoing]:
        for number in range(open_runs):
            yield from self._open(number, (30 if number == 0 else 1) * DAY_SECONDS)
        for number in range(past):
            yield from self._past(number, self._now - _PAST_SECONDS * (1 - number / past))

    def _open(self, number: int, seconds: float) -> Iterator[Outgoing]:
        at = self._now - _PAST_SECONDS
        run, change = self._new(f"open-{number}", at, "nap", seconds)
        yield self._record(run, change)
        yield self._record(run, run.advance(State.RUNNING, at, 0))
        sleep = task_run_id_of(run.run_id, SLEEP, "0")
        wakes_at = utc(self._now + seconds)
        yield self._record(run, run.advance_task(SLEEP, sleep, State.SCHEDULED, 0, at, 0, wakes_at=wakes_at))
        yield self._record(run, run.advance_task(SLEEP, sleep, State.RUNNING, 1, at, 0))

    def _past(self, number: int, at: float) -> Iterator[Outgoing]:
        run, change = self._new(f"past-{number}", at, "gone", 1.0)
        yield self._record(run, change)
        yield self._record(run, run.advance(State.RUNNING, at, 0))
        tasks = msgspec.Raw(b"[]")
        yield self._record(run, run.advance(State.COMPLETED, at, 0, tasks=tasks, result=msgspec.Raw(b'"done"')))

    def _new(self, name: str, at: float, flow: str, seconds: float) -> tuple[FlowRun, StateChange]:
        change = StateChange(
            run_id=run_id_of(self._settings.app, flow, "/bench", name),
            flow=flow,
            state=State.SCHEDULED,
            seq=0,
            epoch=0,
            attempt=0,
            at=utc(at),
            parameters=msgspec.Raw(encode({"seconds": seconds})),
            event=Origin("/bench", name, "nap", "bench-naps", 0, 0, utc(at)),
        )
        return FlowRun(change, 0), change

    def _record(self, run: FlowRun, change: StateChange) -> Outgoing:
        value, headers = Envelope.of(self._settings.app, run.run_id).write(change, "")
        self.records += 1
        self.bytes += len(value)
        # As evenly as Kafka's own choice by key would be.
        partition = int(run.run_id[:8], 16) % self._settings.state_partitions
        return Outgoing(self._settings.states_topic, run.record_key, value, headers, partition)

    def _ownership(self, number: int) -> Outgoing:
        value, headers = write_ownership(self._settings.app, Ownership(number, "benchmark", utc(self._now)))
        return Outgoing(self._settings.states_topic, None, value, headers, number)
