"""engine.checkpoints, checkpointer, restorer: who goes on from a checkpoint knows what the whole log says, wherever it ends."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from engine import checkpointer as checkpointer_module
from engine.broker import Outgoing, Record, TopicSpec
from engine.checkpointer import Checkpointer
from engine.checkpoints import (
    IDS,
    Checkpoint,
    CheckpointUnreadable,
    Ids,
    read_block,
    read_body,
    read_checkpoint,
    write_ids,
    write_run,
)
from engine.ledger import Ledger
from engine.memory import MemoryBroker
from engine.memory_reader import MemoryReader
from engine.publisher import Publisher
from engine.restorer import Restorer
from engine.runs import FlowRun, TaskRun, run_id_of
from engine.seen import Tail
from engine.settings import Settings
from engine.states import (
    CHECKPOINT,
    TRANSITIONS,
    Envelope,
    Failure,
    Origin,
    Ownership,
    Reuse,
    State,
    StateChange,
    is_ownership,
    read,
    type_of,
    utc,
    write_ownership,
)
from engine.telemetry import Tracer
from tests.waiting import eventually

S = State
TOPIC = "t.states"
PLACE = (TOPIC, 0)
#: Parts of 1 KiB and blocks of 32 ids, so that little makes many.
SETTINGS = Settings(app="t", max_record_bytes=2_048)
#: Longer than the clock of the machine has gone: what the runs here say of their times is near its beginning.
WINDOW_SECONDS = 1e10


def run_id(number: int) -> str:
    return run_id_of("t", "f", "/s", str(number))


def scheduled(number: int, **fields: Any) -> StateChange:
    return StateChange(
        run_id=run_id(number), flow="f", state=S.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1_000.0 + number), **fields
    )


def held(run: FlowRun) -> dict[str, Any]:
    """All that a run holds."""
    values = {name: getattr(run, name) for name in FlowRun.__slots__}
    return values | {"tasks": {id_: msgspec.structs.astuple(task) for id_, task in run.tasks.items()}}


def bodied(*runs: FlowRun) -> tuple[Checkpoint, bytes]:
    body = write_ids(Ids(Tail().first(0))) + b"".join(write_run(run) for run in runs)
    return Checkpoint(0, 1, utc(0), 0, len(body)), body


class TestBody:
    def test_a_run_comes_back_with_all_it_holds(self) -> None:
        origin = Origin("/s", "e", "t", "topic", 1, 2, utc(7.0))
        run = FlowRun(scheduled(1, key="Zoë\n", event=origin, parameters=msgspec.Raw(b'{"n":[1,\n2]}')), 77)
        run.traceparent = "00-trace"
        run.advance(S.RUNNING, 5.0, 9)
        for task_run_id, ends in (("r/a/0", {"result": msgspec.Raw(b'"v\\n"'), "length": 3}), ("r/b/1.0", {})):
            run.advance_task("a", task_run_id, S.SCHEDULED, 0, 6.0, 9, wakes_at=utc(99.0))
            run.advance_task("a", task_run_id, S.RUNNING, 1, 6.5, 9)
            if ends:
                run.advance_task("a", task_run_id, S.COMPLETED, 1, 7.0, 9, handled=("4",), **ends)
        child = "r/c/0123456789abcdef"
        run.advance_task("c", child, S.SCHEDULED, 0, 8.0, 9, spawned_by="r/a/0")
        run.advance_task("c", child, S.CANCELLED, 0, 8.0, 9, error=Failure("E", "m", "t"), cause="r/b/1.0")
        ids, runs = read_body(*bodied(run, FlowRun(scheduled(2), 78)))
        again = list(runs)
        assert [held(run) for run in again] == [held(run), held(FlowRun(scheduled(2), 78))]
        assert isinstance(again[0].tasks["r/a/0"], TaskRun)
        assert again[0].advance(S.COMPLETED, 9.0, 10).seq == run.seq + 1
        assert ids.blocks == ()

    def test_what_a_run_may_take_of_another_outlives_its_owner(self) -> None:
        reuse = Reuse("ab" * 16, ("load/0", "price/2"), 2, True)
        [run] = list(read_body(*bodied(FlowRun(scheduled(1, reuse=reuse), 5)))[1])
        assert run.reuse == reuse

    def test_everything_that_a_flow_run_holds_is_written(self) -> None:
        """A field added to FlowRun and not to its line would be lost with the next takeover."""
        line = msgspec.json.decode(write_run(FlowRun(scheduled(1), 5)))
        run = FlowRun(scheduled(1), 5)
        full = {name for name in FlowRun.__slots__ if getattr(run, name)} - {"record_key"}
        assert full <= set(line)
        assert set(FlowRun.__slots__) - {"record_key"} == set(checkpoint_fields())

    @pytest.mark.parametrize(
        "spoil", [lambda body: body[:-1], lambda body: body.replace(b'"seq"', b'"sqe"'), lambda body: b"[" * len(body)]
    )
    def test_what_was_spoilt_is_an_error_not_a_run_less(self, spoil: Any) -> None:
        checkpoint, body = bodied(FlowRun(scheduled(1), 5))
        with pytest.raises(CheckpointUnreadable):
            list(read_body(checkpoint, spoil(body))[1])

    def test_fifty_thousand_tasks_take_a_moment(self) -> None:
        run = FlowRun(scheduled(1), 5)
        for number in range(50_000):
            id_ = f"{run.run_id}/price/3.{number}"
            run.tasks[id_] = TaskRun(S.COMPLETED, 1)
            run.ended.append((id_, 1e9 + number))
        started_at = time.perf_counter()
        line = write_run(run)
        print(f"\n50,000 tasks: {len(line) / 1e6:.1f} MB, {(time.perf_counter() - started_at) * 1e3:.0f} ms")
        assert len(next(read_body(*bodied(run))[1]).tasks) == 50_000


def checkpoint_fields() -> tuple[str, ...]:
    from engine.checkpoints import _Run

    return _Run.__struct_fields__


class Owner:
    """Leads runs as the dispatcher and its driver do: ahead of the log, by what waits for the publisher."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self.world, self.ledger = world, ledger
        self.beginnings = world.publisher.untold
        self.checkpointer = Checkpointer(SETTINGS, world.publisher)
        self.untold: list[tuple[FlowRun, list[StateChange]]] = []

    def read_some(self, count: int) -> None:
        feed(self.ledger, self.world.log[self.ledger.next_offset :][:count])

    def step(self, chance: random.Random) -> None:
        """One open run does something."""
        runs = [run for run in self.ledger if not run.state.is_end and run not in self.beginnings]
        if not runs or not self.ledger.is_recovered:
            return
        run = chance.choice(runs)
        epoch = self.ledger.epoch
        if run.state is S.RUNNING and chance.random() < 0.5:
            task_run_id = f"{run.run_id}/t/{chance.randrange(4)}"
            state = run.state_of(task_run_id)
            following = sorted(new for old, new in TRANSITIONS if old is state)
            if following:
                new = chance.choice(following)
                self.tell(run, run.advance_task("t", task_run_id, new, 1, 3_000.0, epoch, **details_of(chance, run, new)))
            return
        new = chance.choice(sorted(new for old, new in TRANSITIONS if old is run.state))
        changes = [run.advance(new, 3_000.0, epoch)]
        # Before its beginning is told its flow is gone through, which may fail; before that is told its letter is written.
        if new is S.RUNNING and chance.random() < 0.5:
            self.beginnings.add(run)
            self.untold.append((run, changes))
        else:
            self.tell(run, *changes)

    def tell_untold(self, chance: random.Random) -> None:
        for run, changes in self.untold:
            if chance.random() < 0.3:
                changes.append(run.advance(S.FAILED, 3_000.0, self.ledger.epoch))
            self.tell(run, *changes)
        self.beginnings.tell([run for run, _ in self.untold])
        self.untold.clear()

    def tell(self, run: FlowRun, *changes: StateChange) -> None:
        ledger = self.ledger
        for change in changes:
            ends = change.is_flow_run and change.state.is_end
            on_acknowledged = (lambda: ledger.close(run.run_id)) if ends else None
            self.world.publisher.publish(run, Envelope.of("t", run.run_id), change, 0, "", on_acknowledged)

    def checkpoint(self) -> None:
        self.checkpointer.consider([self.ledger])
        if self.ledger.is_recovered and not self.checkpointer._making:
            self.checkpointer._begin(self.ledger, time.monotonic())


def details_of(chance: random.Random, run: FlowRun, new: State) -> dict[str, Any]:
    """What a change of a task says besides: sleeps and children, results that an async flow hears, what is to blame."""
    other = f"{run.run_id}/t/{chance.randrange(4)}"
    match new:
        case S.SCHEDULED:
            return chance.choice([{}, {"wakes_at": utc(9e9)}, {"spawned_by": other}])
        case S.COMPLETED:
            result = msgspec.Raw(b'"%s"' % (b"v" * chance.randrange(200)))
            return chance.choice([{}, {"result": result}, {"result": result, "length": 3, "handled": ("2", "3.1")}])
        case S.FAILED | S.CANCELLED:
            return chance.choice([{}, {"error": Failure("E", "m", "t"), "cause": other}])
    return {}


class Letters:
    """Ends that wait for their letter; as of engine.letter_writer, without the topic."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def takes(self, change: StateChange) -> bool:
        return change.is_flow_run and change.state is S.FAILED

    def add(self, run: FlowRun, change: StateChange, tell: Callable[[], None]) -> None:
        self.waiting.append(tell)

    def write(self, count: int) -> None:
        some, self.waiting = self.waiting[:count], self.waiting[count:]
        for tell in some:
            tell()


class World:
    """A state topic of one partition, its owners, and those who schedule runs on it."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.sink = self.broker.sink()
        self.letters = Letters()
        self.publisher = Publisher(self.sink, TOPIC, Tracer(None, None, None), self.letters)  # type: ignore[arg-type]
        self.restorer = Restorer(self.broker, TOPIC, WINDOW_SECONDS)

    @property
    def log(self) -> list[Record]:
        return self.broker.log(PLACE)

    async def own(self, committed: int | None = None) -> Owner:
        value, headers = write_ownership("t", Ownership(0, "o", utc(1.0)))
        [position] = await self.sink.write([Outgoing(TOPIC, None, value, headers, 0)])
        ledger, checkpoint = await self.restorer.restore(0, position.offset, committed, 5_000.0)
        owner = Owner(self, ledger)
        if checkpoint is not None and committed is not None:
            owner.checkpointer.restored(ledger, checkpoint, committed)
        return owner

    async def schedule(self, number: int, owner: Owner | None) -> None:
        """With an ``owner`` its own intake does it, which hands it the run at once, where it has no ordering key."""
        change = scheduled(number, key=None if number % 4 else f"key-{number % 8}")
        value, headers = Envelope.of("t", change.run_id).write(change, "")
        [position] = await self.sink.write([Outgoing(TOPIC, b"k", value, headers, 0)])
        if owner is not None and change.key is None:
            owner.ledger.read_ahead(position.offset, msgspec.structs.replace(change, traceparent=""))


def feed(ledger: Ledger, records: list[Record]) -> Ledger:
    """Read as the dispatcher does, which begins anew where a checkpoint turns out to be void."""
    for record in records:
        if ledger.is_misled:
            break
        if is_ownership(type_of(record.headers)):
            ledger.begin_epoch(record.offset)
            continue
        if ledger.passes_over(record.offset):
            continue
        change = read(record.value, record.headers)
        if not isinstance(change, StateChange) or (ledger.is_recovered and change.seq):
            ledger.skip(record.offset)
        else:
            ledger.read(record.offset, change)
    return ledger


@contextmanager
def publishing(world: World) -> Iterator[None]:
    task = asyncio.ensure_future(world.publisher.run())
    try:
        yield
    finally:
        task.cancel()


async def lived(seed: int, steps: int = 600) -> World:
    """A partition's life under some owners, the earlier ones of which do not hear at once that they are it no more."""
    chance = random.Random(seed)
    world = World()
    # Of every other one the topic takes less than its owners' settings say.
    limit = 5_000 if seed % 2 else 100_000
    await world.broker.ensure_topics([TopicSpec(TOPIC, 1, config={"max.message.bytes": f"{limit}"})])
    owners = [await world.own()]
    with publishing(world):
        for _ in range(steps):
            match chance.choices("rsptolcy", weights=[16, 20, 8, 6, 0.3, 3, 2, 6])[0]:
                case "r":
                    owners[-1].read_some(chance.randrange(8))
                case "s":
                    chance.choice(owners[-2:]).step(chance)
                case "p":
                    await world.schedule(chance.randrange(120), chance.choice([None, owners[-1]]))
                case "t":
                    owners[-1].tell_untold(chance)
                case "l":
                    world.letters.write(chance.randrange(3))
                case "o":
                    owners.append(await world.own(owners[-1].checkpointer.committable(0)))
                case "c":
                    chance.choice(owners[-2:]).checkpoint()
                case _:
                    await asyncio.sleep(chance.choice([0, 0, 0.002]))
        owners[-1].read_some(10**6)
        owners[-1].checkpoint()
        for owner in owners:
            owner.tell_untold(chance)
            world.letters.write(10**6)
            await owner.checkpointer.hand_over([owner.ledger], 5.0)
            await owner.checkpointer.close()
        await world.publisher.drain()
    return world


def void(log: list[Record], closing: Record) -> bool:
    """Whether the writer of a checkpoint had lost the partition before it wrote."""
    epoch = read_checkpoint(closing.value, closing.headers).epoch
    return any(is_ownership(type_of(record.headers)) for record in log[epoch + 1 : closing.offset])


def knowledge(ledger: Ledger) -> tuple[dict[str, Any], list[str], set[str]]:
    """Open runs, the order of those with an ordering key, ids seen."""
    # Of two SCHEDULED of a run the one that the intake hands over may be the later: where it lies says nothing.
    runs = {run.run_id: held(run) | {"offset": None} for run in ledger}
    in_order = [run.run_id for run in ledger if run.key is not None]
    return runs, in_order, {id_ for id_ in map(run_id, range(120)) if ledger.has_seen(id_)}


@settings(max_examples=16)
@given(seed=st.integers(0, 2**32), steps=st.integers(40, 600))
def test_wherever_the_log_ends_each_checkpoint_and_what_follows_say_what_the_whole_log_says(seed: int, steps: int) -> None:
    """An owner killed at any record: those of its state changes that it had queued are gone, and its checkpoints hold none."""
    with patch.object(checkpointer_module, "_SLICE_SECONDS", -1.0):  # runs go on between any two lines
        asyncio.run(check(seed, steps))


async def check(seed: int, steps: int) -> None:
    world = await lived(seed, steps)
    log = list(world.log)
    used = 0
    for record in log:
        if type_of(record.headers).decode() != CHECKPOINT:
            continue
        is_void = void(log, record)
        for end in {*range(record.offset + 1, len(log), 7), len(log)}:
            restored, _ = await world.restorer.restore(0, end, record.offset, 5_000.0)
            feed(restored, log[restored.next_offset : end])
            if is_void:
                assert restored.is_misled, "and the dispatcher begins anew"
                continue
            assert not restored.is_misled
            assert knowledge(restored) == knowledge(feed(Ledger(0, end, WINDOW_SECONDS), log[:end]))
            used += 1
    assert used


async def test_a_checkpoint_says_what_was_left_on_the_log_and_what_an_earlier_owner_told_of_it() -> None:
    world = World()
    await world.broker.ensure_topics([TopicSpec(TOPIC, 1)])
    owner = await world.own()
    owner.read_some(1)
    shelf = owner.ledger.shelf
    shelf.put(("slow", None), 7)
    shelf.put(("slow", "Zoë"), 3)
    running = msgspec.structs.replace(scheduled(1), state=S.RUNNING, seq=1, epoch=3, attempt=1)
    done = {"task": "t", "task_run_id": "r/t/0", "result": msgspec.Raw(b'{"n":[1]}')}
    shelf.hear(running)
    shelf.hear(msgspec.structs.replace(running, seq=2, state=S.COMPLETED, **done))
    shelf.hear(msgspec.structs.replace(running, run_id=run_id(2), state=S.FAILED, error=Failure("E", "m")))
    with publishing(world):
        owner.checkpoint()
        await eventually(lambda: owner.checkpointer.committable(0) is not None)
    ledger, _ = await world.restorer.restore(0, 10**6, owner.checkpointer.committable(0), 5_000.0)
    assert ledger.shelf.lanes == {("slow", None): 7, ("slow", "Zoë"): 3}
    assert ledger.shelf.told == shelf.told
    assert ledger.shelf.told[run_id(2)] == []


class TestFallback:
    async def test_a_part_that_is_gone_makes_it_read_from_the_beginning(self) -> None:
        world = await lived(3)
        log = world.log
        record = next(r for r in log if type_of(r.headers) == CHECKPOINT.encode() and read_checkpoint(r.value, r.headers).parts)
        part = read_checkpoint(record.value, record.headers).parts[0]
        log[part] = msgspec.structs.replace(log[part], headers=())
        ledger, checkpoint = await world.restorer.restore(0, len(log), record.offset, 5_000.0)
        assert (checkpoint, ledger.next_offset, ledger.runs) == (None, 0, {})

    @pytest.mark.parametrize("committed", [0, 1, 10**9])
    async def test_a_committed_offset_without_a_checkpoint_makes_it_read_from_the_beginning(self, committed: int) -> None:
        world = await lived(1)
        ledger, checkpoint = await world.restorer.restore(0, len(world.log), committed, 5_000.0)
        assert (checkpoint, ledger.next_offset) == (None, 0)


class TestBlocks:
    """Ids of the window that lie in records of their own."""

    async def restored(self, spoil: Callable[[list[Record], int], None]) -> tuple[Ledger, Ledger]:
        """A ledger from a checkpoint a block of which was spoilt, and one from the whole log.

        Forty runs ended under the owner before, who left no checkpoint; one is open.
        """
        world = World()
        await world.broker.ensure_topics([TopicSpec(TOPIC, 1)])
        with publishing(world):
            first = await world.own()
            for number in range(41):
                await world.schedule(number, None)
            first.read_some(50)
            for run in list(first.ledger)[:40]:
                first.tell(run, run.advance(S.RUNNING, 3_000.0, 0), run.advance(S.COMPLETED, 3_000.0, 0))
            await world.publisher.drain()
            second = await world.own()
            second.read_some(10**6)
            second.checkpointer.consider([second.ledger])
            await eventually(lambda: second.ledger.blocks and second.checkpointer.committable(0) is not None)
            before = second.checkpointer.committable(0)
            second.checkpoint()
            await eventually(lambda: second.checkpointer.committable(0) != before)
        await second.checkpointer.close()
        end = len(world.log)
        whole = feed(Ledger(0, end, WINDOW_SECONDS), list(world.log))
        spoil(world.log, second.ledger.blocks[0].offset)
        ledger, checkpoint = await world.restorer.restore(0, end, second.checkpointer.committable(0), 5_000.0)
        assert checkpoint is not None
        feed(ledger, world.log[ledger.next_offset :])
        assert len(whole.runs) == 1
        return ledger, whole

    async def test_their_ids_are_known_again(self) -> None:
        ledger, whole = await self.restored(lambda log, offset: None)
        assert ledger.blocks
        assert knowledge(ledger) == knowledge(whole)

    async def test_ids_that_cannot_be_read_are_read_from_the_log_again_and_what_has_ended_stays_so(self) -> None:
        """The ends that earlier owners wrote count then, though they are older than the checkpoint."""

        def spoil(log: list[Record], offset: int) -> None:
            log[offset] = msgspec.structs.replace(log[offset], value=b"?")

        ledger, whole = await self.restored(spoil)
        assert knowledge(ledger) == knowledge(whole)

    async def test_ids_that_kafka_has_deleted_cost_nothing_else(self) -> None:
        """They are said to be lost; the log holds nothing of them that would be worth a reading."""
        places: list[int] = []

        def spoil(log: list[Record], offset: int) -> None:
            places.append(offset)

        real = MemoryReader.read

        async def read(self: MemoryReader, partition: Any, offsets: Any) -> dict[int, Record]:
            return await real(self, partition, [offset for offset in offsets if offset not in places])

        with capture_logs() as said, patch.object(MemoryReader, "read", read):
            ledger, whole = await self.restored(spoil)
        runs, order, seen = knowledge(ledger)
        all_runs, all_order, all_seen = knowledge(whole)
        assert (runs, order) == (all_runs, all_order)
        assert seen < all_seen
        assert [entry["offset"] for entry in said if "ids of the dedup window are lost" in entry["event"]] == places

    async def test_a_block_of_a_ledger_that_was_dropped_frees_no_way(self) -> None:
        """Else two blocks of the next ledger would be under way with the same ids, and twice as many would be forgotten."""
        world = World()
        await world.broker.ensure_topics([TopicSpec(TOPIC, 1)])
        checkpointer = Checkpointer(SETTINGS, world.publisher)
        ledgers = [Ledger(0, 0, WINDOW_SECONDS), Ledger(0, 1, WINDOW_SECONDS)]
        for ledger in ledgers:
            ledger.begin_epoch(ledger.epoch)
            for number in range(100):
                ledger.read(number + 2, scheduled(number))
        checkpointer.consider(ledgers[:1])
        checkpointer.drop(0)
        checkpointer.consider(ledgers[1:])
        queued, world.publisher._waiting = world.publisher._waiting, []
        await world.publisher._write(queued[:1])
        checkpointer.consider(ledgers[1:])
        queued = queued[1:] + world.publisher._waiting
        world.publisher._waiting = []
        await world.publisher._write(queued)
        await checkpointer.close()
        await world.publisher._write(world.publisher._waiting)
        written = [read_block(r.value, r.headers) for r in world.log if type_of(r.headers) == IDS.encode()]
        of_second = b"".join(block.ids for block in written[1:]) + ledgers[1].tail.first(10**6).ids
        assert of_second == b"".join(bytes.fromhex(run_id(number)) for number in range(100))


async def test_runs_with_one_key_stand_in_the_order_of_the_topic_though_the_first_was_told_last() -> None:
    """Else the next owner would let the second begin beside the first."""
    world = World()
    await world.broker.ensure_topics([TopicSpec(TOPIC, 1)])
    owner = await world.own()
    owner.read_some(1)
    for number in (0, 8):
        await world.schedule(number, None)
    owner.read_some(2)
    first, second = owner.ledger
    assert first.key == second.key
    change = first.advance(S.RUNNING, 3_000.0, owner.ledger.epoch)
    world.publisher.untold.add(first)
    with publishing(world):
        owner.checkpoint()
        await asyncio.sleep(0)
        owner.tell(first, change)
        world.publisher.untold.tell([first])
        await eventually(lambda: owner.checkpointer.committable(0) is not None)
    ledger, _ = await world.restorer.restore(0, 10**6, owner.checkpointer.committable(0), 5_000.0)
    assert [run.run_id for run in ledger] == [first.run_id, second.run_id]


async def test_what_was_taken_in_before_its_flow_was_left_on_the_log_is_not_opened_there_by_the_next_owner() -> None:
    """Without a dedup window nothing else keeps a run that has ended from running again."""
    world = World()
    world.restorer = Restorer(world.broker, TOPIC, 0.0)
    await world.broker.ensure_topics([TopicSpec(TOPIC, 1)])
    owner = await world.own()
    owner.read_some(1)
    await world.schedule(1, owner)
    [run] = owner.ledger
    owner.ledger.shelf.put((run.flow, None), run.offset)
    owner.read_some(1)
    with publishing(world):
        owner.tell(run, run.advance(S.RUNNING, 3_000.0, 0), run.advance(S.COMPLETED, 3_000.0, 0))
        await world.publisher.drain()
        owner.checkpoint()
        await eventually(lambda: owner.checkpointer.committable(0) is not None)
    ledger, _ = await world.restorer.restore(0, 10**6, owner.checkpointer.committable(0), 5_000.0)
    assert not ledger.runs
    assert ledger.open_late(run.offset, scheduled(1)) is None


async def test_a_checkpoint_is_as_old_as_it_is_whoever_goes_on_from_it() -> None:
    """Engines that come and go must not keep one until Kafka deletes it."""
    world = World()
    settings = msgspec.structs.replace(SETTINGS, state_retention_seconds=4e6)
    await world.broker.ensure_topics([TopicSpec(TOPIC, 1)])
    for age_seconds, is_due in ((0.9e6, False), (1.1e6, True)):
        ledger = Ledger(0, 0, WINDOW_SECONDS)
        ledger.begin_epoch(0)
        checkpointer = Checkpointer(settings, world.publisher)
        at = utc(time.time() - age_seconds)
        # One so large that a few records are no reason for another.
        checkpointer.restored(ledger, Checkpoint(0, 0, at, 0, 10**12), 5)
        checkpointer.consider([ledger])
        assert bool(checkpointer._making) is is_due
        await checkpointer.close()


async def test_ten_thousand_open_runs_never_hold_the_loop_for_long() -> None:
    world = World()
    await world.broker.ensure_topics([TopicSpec(TOPIC, 1)])
    owner = await world.own()
    owner.checkpointer = Checkpointer(Settings(app="t"), world.publisher)
    owner.read_some(1)
    for number in range(10_000):
        owner.ledger.read(number + 1, scheduled(number, parameters=msgspec.Raw(b'{"order":"%s"}' % (b"x" * 200))))
    gaps: list[float] = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            gaps.append(time.perf_counter() - before)

    watching = asyncio.ensure_future(watch())
    with publishing(world):
        started_at = time.perf_counter()
        owner.checkpoint()
        await eventually(lambda: owner.checkpointer.committable(0) is not None)
        took = time.perf_counter() - started_at
    watching.cancel()
    print(f"\n10,000 runs: {took:.2f} s, the loop held for {max(gaps) * 1e3:.0f} ms at most")
    assert len(gaps) > 10, "others have had their turns meanwhile"
    started_at = time.perf_counter()
    ledger, _ = await world.restorer.restore(0, 10**6, owner.checkpointer.committable(0), 5_000.0)
    print(f"read back in {time.perf_counter() - started_at:.2f} s")
    assert len(ledger.runs) == 10_000
