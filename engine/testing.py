"""For tests of handlers: run flows on events in this process, on the in-memory log, with the same state changes as on Kafka.

Tasks run in threads of the process, or on an in-process Dask cluster; nothing listens on a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from engine.app import App
from engine.broker import Outgoing, Record
from engine.errors import EventError
from engine.events import Event, Headers, read, to_headers
from engine.executor import Executor
from engine.flows import Flow
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker
from engine.results import ResultStore
from engine.runs import run_id_of
from engine.settings import Settings
from engine.states import ABSENT, Failure, State, StateChange, encode
from engine.subscriber import Subscription
from engine.triggers import Match, Triggers

__all__ = ["run", "Run", "bench", "Bench", "Outcome"]

_POLL_SECONDS = 0.05


class Run(msgspec.Struct, frozen=True):
    """What became of one flow run."""

    run_id: str
    flow: str
    #: Every state change of the run and its tasks, in order.
    changes: list[StateChange]

    @property
    def end(self) -> StateChange:
        """The last change: the run's own end."""
        return self.changes[-1]

    @property
    def state(self) -> State:
        """How the run ended."""
        return self.end.state

    @property
    def error(self) -> Failure | None:
        """Why it did not complete."""
        return self.end.error

    def result(self, type: Any = Any) -> Any:
        """What the flow returned, decoded to ``type``. Raises LookupError where there is no result that travelled."""
        if self.end.result is ABSENT:
            raise LookupError(f"the run ended {self.state} without a result: {self.error or self.end.reason}")
        return msgspec.json.decode(self.end.result, type=type)


class Outcome(msgspec.Struct, frozen=True):
    """What one event led to."""

    runs: list[Run]
    dead_letters: list[Record]

    @property
    def run(self) -> Run:
        """The only run. Raises LookupError where there are none or several."""
        if len(self.runs) != 1:
            reasons = [dict(letter.headers).get("x-engine-error", b"").decode() for letter in self.dead_letters]
            raise LookupError(f"the event started {len(self.runs)} runs, not one; dead letters: {reasons or 'none'}")
        return self.runs[0]


class Bench:
    """A running engine on the in-memory log; made by ``bench``."""

    def __init__(self, settings: Settings, flows: Mapping[str, Flow[..., Any]], broker: MemoryBroker) -> None:
        self.settings = settings
        self.broker = broker
        self._triggers = Triggers(flows.values())
        self._lettered = {name for name, flow in flows.items() if flow.on_failure is not None}
        self._sink = broker.sink()
        self._changes: dict[str, list[StateChange]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._letters = broker.source([settings.dead_letters_topic], group=None)
        self._sent = 0

    async def send(
        self, topic: str, data: object = None, *, type: str = "", id: str | None = None, source: str = "/test"
    ) -> Outcome:
        """Publish an event and wait for all that comes of it. ``data`` is encoded as JSON; bytes go as they are."""
        self._sent += 1
        event: Event[None] = Event(id=id or f"event-{self._sent}", source=source, type=type or "test", data=None)
        value = data if isinstance(data, bytes) else encode(data)
        return await self.send_record(topic, value, to_headers(event))

    async def send_record(self, topic: str, value: bytes | None, headers: Headers = (), key: bytes | None = None) -> Outcome:
        """The same with a record as another producer would write it."""
        [position] = await self._sink.write([Outgoing(topic, key, value, headers)])
        expected: list[str] = []
        letters = 0
        try:
            event = read(value, headers, position)
        except EventError:
            letters = 1
        else:
            for match in self._triggers.match(topic, event):
                if isinstance(match, Match):
                    expected.append(run_id_of(self.settings.app, match.flow, event.source, event.id))
                else:
                    letters += 1
        for run_id in expected:
            await self._ended.setdefault(run_id, asyncio.Event()).wait()
        runs = [Run(run_id, self._changes[run_id][0].flow, self._changes[run_id]) for run_id in expected]
        letters += sum(run.state in (State.FAILED, State.CRASHED) and run.flow in self._lettered for run in runs)
        return Outcome(runs, await self._read_letters(letters, str(position)))

    async def follow(self) -> None:
        """Take in state changes until cancelled."""
        async with Subscription(self.broker, self.settings.states_topic, from_beginning=True) as subscription:
            async for change in subscription:
                self._changes.setdefault(change.run_id, []).append(change)
                if change.is_flow_run and change.state.is_end:
                    self._ended.setdefault(change.run_id, asyncio.Event()).set()

    async def open(self) -> None:
        """Connect to the log."""
        await self._sink.start()
        await self._letters.start()

    async def close(self) -> None:
        """Disconnect from it."""
        await self._letters.close()
        await self._sink.close()

    async def _read_letters(self, count: int, origin: str) -> list[Record]:
        letters: list[Record] = []
        while len(letters) < count:
            records = await self._letters.poll(timeout_seconds=_POLL_SECONDS, max_records=100)
            letters += [record for record in records if ("x-engine-origin", origin.encode()) in record.headers]
        return letters


@asynccontextmanager
async def bench(*flows: Flow[..., Any], cluster: bool = False, settings: Settings | None = None) -> AsyncIterator[Bench]:
    """A running engine for ``flows``: ``async with bench(fulfil) as engine: outcome = await engine.send("orders", order)``.

    With ``cluster`` the tasks run on an in-process Dask cluster, else in threads.
    """
    settings = settings or Settings(app="test", http="", state_partitions=2, event_partitions=2)
    by_name = {flow.name: flow for flow in flows}
    broker = MemoryBroker()
    async with _executor(settings, cluster) as executor:
        app = App(settings, by_name, broker, executor)
        ready = asyncio.Event()
        running = asyncio.create_task(app.run(ready.set), name="engine-app")
        starting = asyncio.create_task(ready.wait())
        await asyncio.wait([running, starting], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            starting.cancel()
            await running
        made = Bench(settings, by_name, broker)
        await made.open()
        following = asyncio.create_task(made.follow(), name="engine-follow")
        try:
            yield made
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await made.close()
            app.stop()
            await running


def run(flow: Flow[..., Any], data: object = None, *, topic: str | None = None, type: str = "", cluster: bool = False) -> Run:
    """Run one flow on one event and wait for its end: ``assert run(fulfil, order, type="order.created").result() == …``.

    ``topic`` defaults to that of the flow's first trigger, ``type`` to its type. Raises LookupError where the event does
    not start the flow; its text has the reason of the dead letter.
    """

    async def once() -> Run:
        trigger = flow.triggers[0]
        wanted = type or (trigger.type or "").replace(".*", ".test")
        async with bench(flow, cluster=cluster) as engine:
            return (await engine.send(topic or trigger.topic, data, type=wanted)).run

    return asyncio.run(once())


@asynccontextmanager
async def _executor(settings: Settings, cluster: bool) -> AsyncIterator[Executor]:
    if not cluster:
        store = ResultStore(settings.results, settings.app, settings.max_result_bytes) if settings.results else None
        yield InlineExecutor(results=store)
        return
    # Imported here: who tests without a cluster should not wait for distributed.
    from engine.cluster import Cluster, in_process

    async with in_process() as address:
        yield Cluster(
            settings.app,
            address,
            results=settings.results,
            max_result_bytes=settings.max_result_bytes,
            max_run_tasks=settings.max_run_tasks,
        )
