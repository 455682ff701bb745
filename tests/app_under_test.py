"""An app under test: runs in the test's own loop on topics of its own, sends events to it and hears what comes of them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from typing import Any

import msgspec

from engine.app import App
from engine.broker import Broker, Outgoing, Record, Source
from engine.cancellations import Cancellation, write_cancellation
from engine.events import Event, Headers, Position, to_headers
from engine.executor import Executor
from engine.flows import Flow
from engine.runs import run_id_of
from engine.settings import Settings
from engine.states import State, StateChange, encode, is_scheduled, type_of, utc
from engine.subscriber import Subscription
from tests.waiting import eventually


def fresh_settings(**options: Any) -> Settings:
    """Settings of an app that nobody else has."""
    given = {"app": f"t{uuid.uuid4().hex[:12]}", "http": "", "state_partitions": 2, "event_partitions": 2}
    return Settings(**{**given, "session_timeout_seconds": 3.0, "connect_timeout_seconds": 20.0, **options})


def moved(app: str, flows: Iterable[Flow[..., Any]]) -> dict[str, Flow[..., Any]]:
    """The flows, listening to topics of this app alone, by name."""
    return {
        flow.name: Flow(
            flow.function,
            tuple(_moved(app, flow)),
            flow.name,
            pack=flow.pack,
            retry=flow.retry,
            on_failure=flow.on_failure,
            max_open_runs=flow.max_open_runs,
        )
        for flow in flows
    }


class Run:
    """All changes of one run, in order."""

    def __init__(self, changes: list[StateChange]) -> None:
        self.changes = changes

    @property
    def id(self) -> str:
        return self.changes[0].run_id

    @property
    def end(self) -> StateChange:
        """The run's own end."""
        return self.changes[-1]

    @property
    def result(self) -> Any:
        return msgspec.json.decode(self.end.result)

    @property
    def story(self) -> list[tuple[str | None, State]]:
        """Task (None for the flow run itself) and state of each change."""
        return [(change.task, change.state) for change in self.changes]

    def of(self, task: str) -> list[StateChange]:
        """The changes of all runs of one task."""
        return [change for change in self.changes if change.task == task]

    def states(self, task: str) -> list[State]:
        return [change.state for change in self.of(task)]


class AppUnderTest:
    """One engine, with its own producer and subscriber beside it."""

    def __init__(
        self, settings: Settings, flows: Iterable[Flow[..., Any]], broker: Broker, executor: Executor, log: Broker
    ) -> None:
        """``log`` is the same log as ``broker``; the app closes its own."""
        self.settings = settings
        #: Of its own events: run ids follow from it, and apps of several tests share a cluster.
        self.source = f"/tests/{settings.app}"
        self.app = App(settings, moved(settings.app, flows), broker, executor)
        self.log = log
        self.changes: list[StateChange] = []
        self.running: asyncio.Task[None] | None = None
        self._sink = log.sink()
        self._following: asyncio.Task[None] | None = None
        self._sent = 0

    async def start(self) -> None:
        """Run the app and follow its state topic. Raises what the app ends with where it does not start."""
        await self._sink.start()
        ready = asyncio.Event()
        self.running = asyncio.create_task(self.app.run(ready.set))
        starting = asyncio.create_task(ready.wait())
        await asyncio.wait([self.running, starting], return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if self.running.done():
            await self.running
        self._follow_soon()

    async def follow_only(self) -> None:
        """Produce and follow, while the engine is somewhere else."""
        await self._sink.start()
        self._follow_soon()

    async def stop(self) -> None:
        """Stop the app in order and wait for its end."""
        self.app.stop()
        if self.running is not None:
            await self.running

    @property
    def epochs(self) -> dict[int, int]:
        """Epoch by partition of the state topic, of those whose history this engine has read."""
        return {n: ledger.epoch for n, ledger in self.app._dispatcher._ledgers.items() if ledger.is_recovered}

    @property
    def open_runs(self) -> int:
        """Runs this engine knows of that have not ended."""
        return sum(len(ledger.runs) for ledger in self.app._dispatcher._ledgers.values())

    async def close(self) -> None:
        """Free everything; twice does no harm."""
        try:
            await self.stop()
        finally:
            if self._following is not None:
                self._following.cancel()
                await asyncio.gather(self._following, return_exceptions=True)
            await self._sink.close()

    def topic(self, name: str) -> str:
        """The app's own topic of that name."""
        return f"{self.settings.app}.{name}"

    async def send(self, topic: str, data: object, *, id: str | None = None, **attributes: Any) -> str:
        """Publish an event; answers its id."""
        self._sent += 1
        id = id or f"event-{self._sent}"
        await self.send_record(topic, encode(data), self.headers(id, **attributes))
        return id

    def headers(self, id: str, **attributes: Any) -> Headers:
        """Headers of an event in binary mode."""
        return to_headers(Event(id=id, source=self.source, type=attributes.pop("type", "test"), data=None, **attributes))

    async def send_record(
        self, topic: str, value: bytes | None, headers: Headers = (), key: bytes | None = None, partition: int | None = None
    ) -> Position:
        """Publish any record."""
        [position] = await self._sink.write([Outgoing(self.topic(topic), key, value, headers, partition)])
        return position

    async def send_many(self, topic: str, items: Iterable[tuple[str, object]]) -> None:
        """Publish many events at once: id and data of each."""
        await self._sink.write([Outgoing(self.topic(topic), None, encode(data), self.headers(id)) for id, data in items])

    async def write(self, *records: Outgoing) -> list[Position]:
        """Publish records on any topic."""
        return await self._sink.write(records)

    async def cancel(self, run_id: str, reason: str = "enough") -> None:
        """Ask for the end of a run, as ``engine runs cancel`` does."""
        topic = self.settings.states_topic
        records = [record for record in await self.records(topic) if is_scheduled(type_of(record.headers))]
        [scheduled] = [record for record in records if run_id.encode() in (record.value or b"")]
        value, headers = write_cancellation(self.settings.app, Cancellation(run_id, utc(time.time()), reason))
        await self.write(Outgoing(topic, scheduled.key, value, headers, scheduled.partition))

    def run_id(self, flow: str, id: str) -> str:
        return run_id_of(self.settings.app, flow, self.source, id)

    async def run(self, flow: str, id: str) -> Run:
        """Wait for the end of the run that an event made."""
        return await self.run_of(self.run_id(flow, id))

    async def run_of(self, run_id: str) -> Run:
        await eventually(lambda: self.ends(run_id))
        return Run([change for change in self.changes if change.run_id == run_id])

    async def do(self, topic: str, data: object, flow: str, **attributes: Any) -> Run:
        """Publish an event and wait for the end of its run."""
        return await self.run(flow, await self.send(topic, data, **attributes))

    def ends(self, run_id: str | None = None) -> list[StateChange]:
        """The ends of runs so far."""
        return [c for c in self.changes if c.is_flow_run and c.state.is_end and (run_id is None or c.run_id == run_id)]

    async def heard(self, *, task: str | None, state: State) -> StateChange:
        """Wait for a change."""

        def found() -> list[StateChange]:
            return [change for change in self.changes if change.task == task and change.state is state]

        await eventually(found)
        return found()[0]

    async def records(self, topic: str) -> list[Record]:
        """All that lies on one of the log's topics now, partition by partition."""
        source: Source = self.log.source([topic], group=None)
        await source.start()
        try:
            ends = await source.end_offsets(sorted(source.assignment))
            found: dict[tuple[str, int], list[Record]] = {partition: [] for partition in ends}
            done = {partition: end == 0 for partition, end in ends.items()}
            while not all(done.values()):
                for record in await source.poll(timeout_seconds=0.1, max_records=1_000):
                    place = (record.topic, record.partition)
                    found[place].append(record)
                    done[place] = record.offset >= ends[place] - 1
            return [record for records in found.values() for record in records]
        finally:
            await source.close()

    async def letters(self, count: int) -> list[Record]:
        """Wait for so many dead letters."""
        source = self.log.source([self.settings.dead_letters_topic], group=None)
        await source.start()
        try:
            found: list[Record] = []
            while len(found) < count:
                found += await source.poll(timeout_seconds=0.1, max_records=100)
            return found
        finally:
            await source.close()

    def _follow_soon(self) -> None:
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async with Subscription(self.log, self.settings.states_topic, from_beginning=True) as subscription:
            async for change in subscription:
                self.changes.append(change)


def _moved(app: str, flow: Flow[..., Any]) -> list[Any]:
    return [msgspec.structs.replace(trigger, topic=f"{app}.{trigger.topic}") for trigger in flow.triggers]
