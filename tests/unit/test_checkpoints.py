"""engine.checkpoints, checkpointer, restorer: who goes on from a checkpoint knows what the whole log says, wherever it ends."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from engine import checkpointer as checkpointer_module
from engine.broker import Outgoing, Record, TopicSpec
from engine.checkpointer import Checkpointer
from engine.checkpoints import Checkpoint, CheckpointUnreadable, Ids, read_body, read_checkpoint, write_ids, write_run
from engine.ledger import Ledger
from engine.memory import MemoryBroker
from engine.publisher import Publisher
from engine.restorer import Restorer
from engine.runs import FlowRun, TaskRun, run_id_of
from engine.seen import Tail
from engine.settings import Settings
from engine.states import (
    ABSENT,
    CHECKPOINT,
    TRANSITIONS,
    Envelope,
    Failure,
    Origin,
    Ownership,
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
        self.untold: list[tuple[FlowRun, StateChange]] = []

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
                result = msgspec.Raw(b'"%s"' % (b"v" * chance.randrange(200))) if state is S.RUNNING else ABSENT
                new = chance.choice(following)
                self.tell(run, run.advance_task("t", task_run_id, new, 1, 3_000.0, epoch, result=result))
            return
        new = chance.choice(sorted(new for old, new in TRANSITIONS if old is run.state))
        change = run.advance(new, 3_000.0, epoch)
        # Before it is told its flow is gone through; before its end is told its dead letter is written.
        if (new is S.RUNNING or new is S.FAILED) and chance.random() < 0.5:
            self.beginnings.add(run)
            self.untold.append((run, change))
        else:
            self.tell(run, change)

    def tell_untold(self) -> None:
        for run, change in self.untold:
            self.tell(run, change)
        self.beginnings.tell([run for run, _ in self.untold])
        self.untold.clear()

    def tell(self, run: FlowRun, change: StateChange) -> None:
        ledger = self.ledger
        ends = change.is_flow_run and change.state.is_end
        on_acknowledged = (lambda: ledger.close(run.run_id)) if ends else None
        self.world.publisher.publish(run, Envelope.of("t", run.run_id), change, 0, "", on_acknowledged)

    def checkpoint(self) -> None:
        self.checkpointer.consider([self.ledger])
        if self.ledger.is_recovered and not self.checkpointer._making:
            self.checkpointer._begin(self.ledger, time.monotonic())


class World:
    """A state topic of one partition, its owners, and those who schedule runs on it."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.sink = self.broker.sink()
        self.publisher = Publisher(self.sink, TOPIC, Tracer(None, None, None))
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
            owner.checkpointer.restored(ledger, checkpoint.size, committed)
        return owner

    async def schedule(self, number: int, owner: Owner | None) -> None:
        """With an ``owner`` its own intake does it, which hands it the run at once."""
        change = scheduled(number)
        value, headers = Envelope.of("t", change.run_id).write(change, "")
        [position] = await self.sink.write([Outgoing(TOPIC, b"k", value, headers, 0)])
        if owner is not None:
            owner.ledger.read_ahead(position.offset, msgspec.structs.replace(change, traceparent=""))


def feed(ledger: Ledger, records: list[Record]) -> Ledger:
    """Read as the dispatcher does."""
    for record in records:
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


async def lived(seed: int) -> World:
    """A partition's life under three owners, the earlier ones of which do not hear at once that they are it no more."""
    chance = random.Random(seed)
    world = World()
    await world.broker.ensure_topics([TopicSpec(TOPIC, 1, config={"max.message.bytes": "100000"})])
    owners = [await world.own()]
    with publishing(world):
        for _ in range(600):
            match chance.choices("rsptocy", weights=[16, 20, 8, 6, 0.3, 2, 6])[0]:
                case "r":
                    owners[-1].read_some(chance.randrange(8))
                case "s":
                    chance.choice(owners[-2:]).step(chance)
                case "p":
                    await world.schedule(chance.randrange(120), chance.choice([None, owners[-1]]))
                case "t":
                    owners[-1].tell_untold()
                case "o":
                    owners.append(await world.own(owners[-1].checkpointer.committable(0)))
                case "c":
                    chance.choice(owners[-2:]).checkpoint()
                case _:
                    await asyncio.sleep(chance.choice([0, 0, 0.002]))
        owners[-1].read_some(10**6)
        owners[-1].checkpoint()
        for owner in owners:
            owner.tell_untold()
            await owner.checkpointer.hand_over([owner.ledger], 5.0)
            await owner.checkpointer.close()
        await world.publisher.drain()
    return world


def knowledge(ledger: Ledger) -> tuple[dict[str, Any], set[str]]:
    # Of two SCHEDULED of a run the one that the intake hands over may be the later: where it lies says nothing.
    return {run.run_id: held(run) | {"offset": None} for run in ledger}, {
        id_ for id_ in map(run_id, range(120)) if ledger.has_seen(id_)
    }


@pytest.mark.parametrize("seed", range(12))
async def test_wherever_the_log_ends_each_checkpoint_and_what_follows_say_what_the_whole_log_says(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner killed at any record: those of its state changes that it had queued are gone, and its checkpoints hold none."""
    monkeypatch.setattr(checkpointer_module, "_SLICE_SECONDS", -1.0)  # runs go on between any two lines
    world = await lived(seed)
    log = list(world.log)
    owned = [record.offset for record in log if is_ownership(type_of(record.headers))]
    used = 0
    for record in log:
        if type_of(record.headers).decode() != CHECKPOINT:
            continue
        checkpoint = read_checkpoint(record.value, record.headers)
        is_void = any(checkpoint.epoch < offset < record.offset for offset in owned)
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
    assert max(gaps) < 0.25
    started_at = time.perf_counter()
    ledger, _ = await world.restorer.restore(0, 10**6, owner.checkpointer.committable(0), 5_000.0)
    print(f"read back in {time.perf_counter() - started_at:.2f} s")
    assert len(ledger.runs) == 10_000
