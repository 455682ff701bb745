"""A rolling restart of ``engine run`` under a steady producer: every event has one run and one end, whoever is there."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from engine.broker import Outgoing
from engine.events import Event, to_headers
from engine.kafka import KafkaBroker
from engine.runs import run_id_of
from engine.settings import Settings
from engine.states import Epochs, Ownership, State, StateChange, encode, read
from tests.acceptance.conftest import PATIENCE_SECONDS, Stack, command_environment
from tests.waiting import eventually

APP = f"rolling-{uuid.uuid4().hex[:8]}"
#: Of its own events: other tests send to the topic, too.
SOURCE = f"/tests/{APP}"
PARTITIONS = 4


class Seen(msgspec.Struct):
    """What an independent reader has found on the state topic."""

    #: Process by partition and epoch.
    owners: dict[tuple[int, int], int] = {}
    #: Partition and epoch of each end, as often as it is there with another seq or epoch.
    ends: dict[str, list[tuple[int, int, int, State]]] = {}
    seqs: dict[str, set[int]] = {}
    #: Runs of events that other tests have sent to the topic before.
    others: set[str] = set()
    #: By partition. A change by an owner that has lost its partition is void, and left out.
    epochs: dict[int, Epochs] = {}

    @property
    def by_owner(self) -> Counter[int]:
        """How many runs each process has ended."""
        places = [found[0] for found in self.ends.values()]
        return Counter(self.owners[partition, epoch] for partition, epoch, _, _ in places)


async def follow(broker: KafkaBroker, topic: str, seen: Seen) -> None:
    source = broker.source([topic], group=None)
    await source.start()
    try:
        while True:
            for record in await source.poll(timeout_seconds=0.2, max_records=1_000):
                change = read(record.value, record.headers)
                if isinstance(change, Ownership):
                    seen.owners[record.partition, record.offset] = int(change.owner.split("/")[1])
                    seen.epochs.setdefault(record.partition, Epochs()).begin(record.offset)
                elif isinstance(change, StateChange):
                    if change.event is not None and change.event.source != SOURCE:
                        seen.others.add(change.run_id)
                    if change.run_id in seen.others or not seen.epochs.setdefault(record.partition, Epochs()).admits(change):
                        continue
                    seen.seqs.setdefault(change.run_id, set()).add(change.seq)
                    if change.is_flow_run and change.state.is_end:
                        end = (record.partition, change.epoch, change.seq, change.state)
                        found = seen.ends.setdefault(change.run_id, [])
                        if end not in found:
                            found.append(end)
    finally:
        await source.close()


@asynccontextmanager
async def producing(broker: KafkaBroker) -> AsyncIterator[list[str]]:
    """Steadily sends events; gives the ids that Kafka has acknowledged, which are all when it is left."""
    sink = broker.sink()
    await sink.start()
    ids: list[str] = []
    is_done = asyncio.Event()

    async def produce() -> None:
        while not is_done.is_set():
            batch = [uuid.uuid4().hex for _ in range(3)]
            events = [(id, Event(id=id, source=SOURCE, type="item.made", data=None)) for id in batch]
            await sink.write([Outgoing("items", None, encode({"name": id}), to_headers(event)) for id, event in events])
            ids.extend(batch)
            await asyncio.sleep(0.02)

    producer = asyncio.create_task(produce())
    try:
        yield ids
        is_done.set()
        await producer
    finally:
        producer.cancel()
        await sink.close()


@asynccontextmanager
async def engine_run(stack: Stack) -> AsyncIterator[asyncio.subprocess.Process]:
    where = ("--app", APP, "--kafka", stack.ready["kafka"], "--dask", stack.ready["dask"], "--http", "127.0.0.1:0")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", "run", str(stack.handlers), *where, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=command_environment() | {"ENGINE_STATE_PARTITIONS": str(PARTITIONS)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    reading = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await process.stdout.readline(), (await reading).decode()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def test_engines_come_and_go_and_each_event_has_one_run_and_one_end(stack: Stack) -> None:
    settings = Settings(app=APP, kafka=stack.ready["kafka"])
    broker = KafkaBroker(settings)
    seen = Seen()
    async with AsyncExitStack() as engines:
        first = await engines.enter_async_context(engine_run(stack))
        following = asyncio.create_task(follow(broker, settings.states_topic, seen))
        engines.callback(following.cancel)
        second = await engines.enter_async_context(engine_run(stack))
        async with producing(broker) as ids:
            await eventually(lambda: min(seen.by_owner[one.pid] for one in (first, second)) >= 10, PATIENCE_SECONDS)
            codes = [await stopped(first)]
            third = await engines.enter_async_context(engine_run(stack))
            await eventually(lambda: seen.by_owner[third.pid] >= 10, PATIENCE_SECONDS)
            codes.append(await stopped(second))
            alone = len(ids)
            await eventually(lambda: len(ids) >= alone + 30, PATIENCE_SECONDS)
        expected = {run_id_of(APP, "process", SOURCE, id) for id in ids}
        await eventually(lambda: expected <= seen.ends.keys(), PATIENCE_SECONDS)
        codes.append(await stopped(third))
        assert codes == [0, 0, 0]
        assert seen.seqs.keys() == expected, "one run for each event, and no other"
        assert {tuple(state for *_, state in found) for found in seen.ends.values()} == {(State.COMPLETED,)}, "one end each"
        assert {frozenset(seqs) for seqs in seen.seqs.values()} == {frozenset(range(6))}, "gapless, and no task twice"
        assert set(seen.by_owner) == {first.pid, second.pid, third.pid}


async def stopped(process: asyncio.subprocess.Process) -> int:
    """Its exit code after SIGTERM; what runs it has handed over by then."""
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await process.wait()
