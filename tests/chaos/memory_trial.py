"""A trial within this process: log in memory, tasks in threads, engines that die at a point and are followed by others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from engine import checkpointer, checkpoints, dispatcher, intake, pressure
from engine.app import App
from engine.broker import Outgoing, Partition, TopicSpec
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker, MemorySink
from engine.results import ResultStore
from engine.settings import Settings
from engine.states import encode
from tests.chaos import flows
from tests.chaos.doomed import DoomedBroker, DoomedExecutor
from tests.chaos.engine_process import snapshots
from tests.chaos.histories import Committed, Effect, Fault, Histories, Logged, Sent, Snapshot, read_lines
from tests.chaos.lasting import LastingExecutor
from tests.chaos.memory_asker import REQUESTS, MemoryAsker
from tests.chaos.points import Life
from tests.chaos.resting import Log

_SOURCE = "/chaos/trial"
#: Far beyond what a trial takes; one that takes longer is left as it is, for the checker to judge.
PATIENCE_SECONDS = 60.0

#: Topic, id, number: an event of every shape, a repeat and one that nobody can read.
EVENTS = (
    ("vigil", "vigil", 0),
    ("single", "a", 1),
    ("chain", "b", 2),
    ("slow", "c", 3),
    ("small", "d", 4),
    ("bad", "e", 5),
    ("wide", "f", 3),
    ("tree", "g", 1),
    ("single", "a", 1),
    ("single", "poison", -1),
    ("small", "h", 6),
    ("bad", "i", 7),
    ("bad", "j", 8),
)
#: More, for a person who asks for something: two that take seconds unless they are cancelled, one that stores a result.
ASKED_EVENTS = (("long", "l", 3), ("long", "m", 2), ("kept", "k", 9))
#: Replays of the event that nobody can read: their id, and what it is to be this time. The first is asked for twice.
REPLAYS = (("mended", 7), ("mended", 7), ("broken", -1))
FLOWS = {
    flow.name: flow
    for flow in (*map(flows.__dict__.get, (name for names in flows.STARTS.values() for name in names)), flows.vigil)
}


class MemoryTrial:
    """``async with MemoryTrial(folder) as trial: histories = await trial.run([Life("intake: after poll"), Life()])``."""

    def __init__(
        self,
        folder: Path,
        events: Sequence[tuple[str, str, int]] = (*EVENTS, *ASKED_EVENTS),
        app: str = "trial",
        *,
        requests: Sequence[tuple[str, str, str]] = REQUESTS,
        is_narrow: bool = False,
    ) -> None:
        """Several at a time need an ``app`` each, so that their runs are told apart, and share a folder.

        Where it ``is_narrow``, an engine begins hardly any runs at a time, and leaves the others on the log.
        """
        self.app = app
        self._effects = folder / "effects.jsonl"
        os.environ[flows.EFFECTS] = str(self._effects)
        self._events = events
        self.broker = MemoryBroker()
        #: Asked now and then; a trial in which there is enough to see need not come to rest.
        self.is_enough: Callable[[Histories], bool] | None = None
        results = (folder / "results").absolute().as_uri()
        self.settings = Settings(app=app, http="", state_partitions=2, event_partitions=1, poll_records=4, results=results)
        store = ResultStore(results, app, self.settings.max_result_bytes)
        self.executor = LastingExecutor(lambda: InlineExecutor(threads=4, results=store))
        if is_narrow:
            self.settings = msgspec.structs.replace(self.settings, max_open_runs=2)
        self._log = Log(self.broker, self.settings)
        self.asker = MemoryAsker(self.broker, self.settings, self._log, _SOURCE, requests)
        self._late: list[Outgoing] = []
        self.sent: list[Sent] = []
        self.faults: list[Fault] = []
        self.committed: list[Committed] = []
        self.snapshots: list[Snapshot] = []
        #: Makes the app of a life; a negative control makes a faulty one.
        self.make_app: Callable[[Life], App] = self._app

    async def __aenter__(self) -> MemoryTrial:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.asker.close()
        await self.executor.close()

    async def run(self, lives: Sequence[Life]) -> Histories:
        """One life after the other; the last one is given the time to come to rest."""
        topics = [TopicSpec(name, 1) for name in (*flows.STARTS, "vigil", "wake", self.settings.replays_topic)]
        await self.broker.ensure_topics(topics)
        await self.send_all()
        for number, life in enumerate(lives, 1):
            await self.live(life, number)
        return self.histories()

    async def send_all(self) -> None:
        """Everything is there before the first engine is: what it does then hangs on nothing but itself."""
        sink = self.broker.sink()
        for topic, id, number in self._events:
            await self._send(sink, topic, id, number)
        for poison in [one for one in self.sent if one.is_poison]:
            for id, number in REPLAYS:
                await self._replay(sink, poison, id, number)

    async def live(self, life: Life, number: int) -> None:
        """Let an engine live until it dies, or until all is done."""
        life.on_commit, life.on_takeover = self._note_commit, self._land_late
        app = self.make_app(life)
        running = asyncio.create_task(app.run(), name=f"engine-{number}")
        dying = asyncio.create_task(life.died.wait())
        resting = asyncio.create_task(self._rest(app, life))
        seeing = asyncio.create_task(self._see_enough())
        asking = asyncio.create_task(self.asker.run())
        await asyncio.wait([running, dying, resting, seeing], return_when=asyncio.FIRST_COMPLETED)
        if not life.is_dead and not running.done():
            app.stop()
            await asyncio.wait([running, dying], return_when=asyncio.FIRST_COMPLETED)
        if life.is_dead:
            self._late += life.late
            life.buried.set()  # whatever of it waits at a point ends, shielded from its cancellation or not
            running.cancel()
            await asyncio.wait([running])
            self.faults.append(Fault(life.died_at, "kill", "engine", f"engine-{number}", number))
            await self._bury(app, life)
        elif running.done() and running.exception() is not None:
            self.faults.append(Fault(time.time(), "exit", "engine", f"engine-{number}: {running.exception()!r}", number, 1))
        for task in (running, dying, resting, seeing, asking):
            task.cancel()
        # One that has not come to rest in time says nothing here: the checker says why.
        await asyncio.gather(running, dying, resting, seeing, asking, return_exceptions=True)
        if asking.done() and not asking.cancelled() and (error := asking.exception()) is not None:
            raise error

    def histories(self) -> Histories:
        """All that was seen."""
        opened, _ = self._log.runs()
        topics = (self.settings.states_topic, self.settings.dead_letters_topic, self.settings.replays_topic)
        return Histories(
            app=self.app,
            lettered=list(flows.LETTERED),
            sent=[*self.sent, *self.asker.sent],
            asked=self.asker.asked,
            logged=[record for topic in topics for record in self._logged(topic)],
            effects=[one for one in read_lines(self._effects, Effect) if one.run_id in opened],
            faults=self.faults,
            committed=self.committed,
            snapshots=self.snapshots,
        )

    async def send(self, topic: str, id: str, number: int) -> None:
        """An event more, for the next engine."""
        await self._send(self.broker.sink(), topic, id, number)

    async def _land_late(self) -> None:
        """What a dead engine had on its way lands behind the ownership of the next one."""
        late, self._late = self._late, []
        if late:
            await self.broker.sink().write(late)

    async def _see_enough(self) -> None:
        while self.is_enough is None or not self.is_enough(self.histories()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def _app(self, life: Life) -> App:
        broker = DoomedBroker(self.broker, life, self.settings.states_topic)
        return App(self.settings, FLOWS, broker, DoomedExecutor(self.executor, life))

    async def _bury(self, app: App, life: Life) -> None:
        """What the kernel and the group's coordinator do for a process that is gone."""
        for source in life.sources:
            await source.close()
        with contextlib.suppress(Exception, TimeoutError):  # whatever is half made of a dead engine: it only has to be gone
            async with asyncio.timeout(1.0):
                await app._dispatcher._checkpointer.close()
                await app._dispatcher._driver.close()

    async def _rest(self, app: App, life: Life) -> None:
        """Wait until only the vigil is open, look at the ledgers, wake it, and wait for its end."""
        vigils = len([event for event in self._events if event[0] == "vigil"])
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._until(lambda: self._is_at_rest(app, vigils))
            if vigils and not any(one.topic == "wake" for one in self.sent):
                self.snapshots = snapshots(app)
                await self._send(self.broker.sink(), "wake", "wake", 0)
            await self._until(lambda: self._is_at_rest(app, 0) and self._log.is_committed(app))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  # any condition, so there is no event to wait for
            await asyncio.sleep(0.02)

    def _is_at_rest(self, app: App, vigils: int) -> bool:
        sent = [one for one in (*self.sent, *self.asker.sent) if one.topic != "wake"]
        wanted = len({(one.id, one.replay, flow) for one in sent for flow in one.flows}) + len(self.asker.made)
        open_runs = sum(len(ledger.runs) for ledger in app._dispatcher._ledgers.values())
        topics = {one.topic for one in sent}
        is_done = self.asker.is_done and len(self._log.runs()[1]) >= wanted - vigils and open_runs <= vigils
        return is_done and self._log.is_taken_in(topics) and self._log.is_read(app)

    async def _send(self, sink: MemorySink, topic: str, id: str, number: int) -> None:
        trace_id, headers = id.encode().hex().zfill(32), _headers(id)
        headers = (*headers, ("traceparent", f"00-{trace_id}-{'1' * 16}-00".encode()))
        [position] = await sink.write([Outgoing(topic, None, _value(number), headers, 0)])
        told = {"flows": _flows_of(topic, number), "is_poison": number < 0, "trace_id": trace_id, "at": time.time()}
        self.sent.append(Sent(_SOURCE, id, topic, position.partition, position.offset, **told))

    async def _replay(self, sink: MemorySink, letter: Sent, id: str, number: int) -> None:
        added = (("x-engine-replay", id.encode()), ("x-engine-origin", letter.place.encode()))
        topic = self.settings.replays_topic
        [position] = await sink.write([Outgoing(topic, None, _value(number), (*_headers(letter.id), *added), 0)])
        told = {"flows": _flows_of(letter.topic, number), "is_poison": number < 0, "replay": id, "origin": letter.place}
        self.sent.append(Sent(_SOURCE, letter.id, topic, position.partition, position.offset, at=time.time(), **told))

    def _note_commit(self, offsets: Mapping[Partition, int]) -> None:
        ends = {
            topic: {n: len(self.broker.log((topic, n))) for n in range(len(self.broker.topic(topic).logs))}
            for topic in (self.settings.states_topic, self.settings.dead_letters_topic)
        }
        told = {f"{topic}/{partition}": offset for (topic, partition), offset in offsets.items()}
        self.committed.append(Committed(time.time(), told, *ends.values()))

    def _logged(self, topic: str) -> list[Logged]:
        return [
            Logged(
                *(topic, partition, record.offset, record.timestamp_ms / 1000),
                headers={name: content.decode("utf-8", "replace") for name, content in record.headers},
                value=None if record.value is None else record.value.decode("utf-8", "replace"),
            )
            for topic, partition in self._log.places(topic)
            for record in self.broker.log((topic, partition))
        ]


def quickly(set_attribute: Callable[[object, str, object], None]) -> None:
    """Let engines look, commit and checkpoint without the pauses that save work; a small checkpoint comes in parts, too.

    ``set_attribute`` as that of pytest's monkeypatch.
    """
    for module in (dispatcher, intake):
        set_attribute(module, "_COMMIT_INTERVAL_SECONDS", 0.0)
        set_attribute(module, "_POLL_SECONDS", 0.01)
    often = {"_RECORDS": 20, "_TIMES_ITS_SIZE": 0, "_HANDOVER_RECORDS": 1, "PART_BYTES": 1_024, "BLOCK_IDS": 4}
    for name, value in often.items():
        set_attribute(checkpointer, name, value)
    set_attribute(pressure, "PATIENCE_SECONDS", 0.0)
    set_attribute(checkpoints, "_INLINE_BYTES", 1_500)


def _headers(id: str) -> tuple[tuple[str, bytes], ...]:
    names = (("ce_specversion", b"1.0"), ("ce_id", id.encode()), ("ce_source", _SOURCE.encode()), ("ce_type", b"test"))
    return (*names, ("content-type", b"application/json"))


def _value(number: int) -> bytes:
    return b"{no JSON" if number < 0 else encode({"number": number, "seconds": 0.0})


def _flows_of(topic: str, number: int) -> tuple[str, ...]:
    return () if number < 0 or topic == "wake" else flows.STARTS.get(topic, (topic,))
