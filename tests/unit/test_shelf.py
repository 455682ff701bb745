"""engine.shelf: whatever is left on the log is read again exactly once, in order, while everything else goes by."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoints import Checkpoint, Ids, read_body, write_ids, write_run
from engine.ledger import Ledger
from engine.pressure import PATIENCE_SECONDS, Pressure
from engine.runs import FlowRun
from engine.shelf import Lane
from engine.states import State, StateChange, utc
from engine.waitlist import Waitlist


def scheduled(number: int, flow: str = "slow", key: str | None = None) -> StateChange:
    return StateChange(
        run_id=f"{number:032x}", flow=flow, state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1.5), key=key
    )


class Reading:
    """The dispatcher and the reader of the shelf over one partition, without either."""

    def __init__(self, max_waiting: int) -> None:
        self.ledger = Ledger(0, 0, 60.0)
        self.ledger.begin_epoch(0)
        self.waitlist = Waitlist()
        self.pressure = Pressure(self.waitlist, max_waiting)
        self.log: list[StateChange] = [scheduled(0, "none")]
        self.now = 0.0

    def come(self, change: StateChange) -> None:
        """A record is written and read."""
        self.log.append(change)
        self.poll()

    def poll(self) -> None:
        """Read all that is written."""
        for offset in range(self.ledger.next_offset, len(self.log)):
            change = self.log[offset]
            if self.ledger.passes_over(offset):
                continue
            if self.pressure.leaves(self.ledger, change.flow, change.key, offset):
                self.ledger.skip(offset)
            elif (run := self.ledger.read(offset, change)) is not None:
                self.waitlist.add(self.ledger, run)

    def offer(self, change: StateChange) -> None:
        """A record is written by this engine's intake, which hands it over before it is read."""
        offset = len(self.log)
        self.log.append(change)
        if change.key is None and not self.pressure.leaves(self.ledger, change.flow, None, offset):
            run = self.ledger.read_ahead(offset, change)
            assert run is not None
            self.waitlist.add(self.ledger, run)

    def lose_patience(self) -> None:
        for _ in range(2):
            self.pressure.regulate([self.ledger], self.now)
            self.now += PATIENCE_SECONDS

    def read_again(self, lane: Lane) -> None:
        """What the reader does with one lane, for all that the log has."""
        shelf, (flow, own_key) = self.ledger.shelf, lane
        room = self.pressure.room(0, *lane)
        bound = shelf.bound(lane, self.ledger.next_offset)
        for offset in range(shelf.lanes[lane], bound):
            if room <= 0:
                return
            change = self.log[offset]
            if change.seq == 0 and shelf.belongs(lane, change.flow, change.key):
                left = own_key is None and change.key is not None
                if not (left and self.pressure.leaves_key(self.ledger, flow, change.key or "", offset)):
                    run = self.ledger.open_late(offset, change)
                    if run is not None:  # else it was handed over before the lane began
                        self.waitlist.add(self.ledger, run)
                        room -= 1
            shelf.move(lane, offset + 1)
        if shelf.lanes[lane] >= bound and self.pressure.room(0, *lane) > 0:
            shelf.close(lane)

    def end(self, run: FlowRun) -> None:
        self.waitlist.end(self.ledger, run)
        self.ledger.close(run.run_id)


def test_reading_pauses_for_a_moment_and_then_lets_others_by() -> None:
    reading = Reading(10)
    for n in range(1, 13):
        reading.come(scheduled(n))
    assert reading.pressure.regulate([reading.ledger], 5.0) == []
    assert reading.pressure.is_paused
    assert reading.pressure.regulate([reading.ledger], 5.0 + PATIENCE_SECONDS) == ["slow"]
    assert not reading.pressure.is_paused
    reading.come(scheduled(20))
    reading.come(scheduled(21, "quick"))
    assert (reading.waitlist.weight("slow"), reading.waitlist.weight("quick")) == (12, 1)
    assert reading.ledger.next_offset == 15
    assert reading.ledger.shelf.lanes == {("slow", None): 13}


def test_a_flow_that_keeps_up_is_never_left_on_the_log() -> None:
    reading = Reading(10)
    for n in range(1, 13):
        reading.come(scheduled(n))
    reading.pressure.regulate([reading.ledger], 5.0)
    reading.waitlist.take(11)
    assert reading.pressure.regulate([reading.ledger], 5.1) == []
    for n in range(13, 25):
        reading.come(scheduled(n))
    assert reading.pressure.regulate([reading.ledger], 5.0 + PATIENCE_SECONDS) == []
    assert reading.pressure.is_paused, "a burst after a break is another burst"


def test_a_flow_that_fills_up_whenever_it_is_read_is_slow_however_much_it_does() -> None:
    reading = Reading(10)
    slow: list[str] = []
    for round_ in range(10):
        for n in range(12):
            reading.come(scheduled(1 + round_ * 12 + n))
        slow += reading.pressure.regulate([reading.ledger], round_ * PATIENCE_SECONDS / 4)
        reading.waitlist.take(9)
        reading.pressure.regulate([reading.ledger], (round_ + 0.5) * PATIENCE_SECONDS / 4)
    assert slow == ["slow"]


def test_a_hot_key_is_left_on_the_log_alone() -> None:
    reading = Reading(8)
    for n in range(1, 101):
        reading.come(scheduled(n, key="hot"))
        reading.pressure.regulate([reading.ledger], float(n))
        assert not reading.pressure.is_paused
    reading.come(scheduled(101, key="cold"))
    assert list(reading.ledger.shelf.lanes) == [("slow", "hot")]
    assert reading.waitlist.weight("slow") == 4
    assert [run.key for _, run in reading.waitlist.take(9)] == ["hot", "cold"]


def test_large_parameters_count_as_many_runs() -> None:
    reading = Reading(100)
    reading.come(msgspec.structs.replace(scheduled(1), parameters=msgspec.Raw(b"x" * 3_000_000)))
    reading.pressure.regulate([reading.ledger], 5.0)
    assert reading.pressure.is_paused


def test_what_the_intake_hands_over_waits_on_the_log_like_what_is_read() -> None:
    reading = Reading(10)
    for n in range(1, 13):
        reading.offer(scheduled(n))
    reading.lose_patience()
    reading.offer(scheduled(20))
    reading.offer(scheduled(21, "quick"))
    assert (reading.waitlist.weight("slow"), reading.waitlist.weight("quick")) == (12, 1)
    reading.poll()
    assert reading.waitlist.weight("slow") == 12
    reading.waitlist.take(99)
    reading.read_again(("slow", None))
    assert [run.run_id for _, run in reading.waitlist.take(99)] == [f"{20:032x}"]


COMING = st.tuples(st.booleans(), st.sampled_from(["slow", "other"]), st.sampled_from([None, "hot", "cold"]))
STEPS = st.lists(st.one_of(COMING, st.sampled_from(["end", "regulate", "read", "take", "poll"])), max_size=120)


@given(STEPS, st.integers(1, 6))
def test_whatever_happens_each_run_is_opened_once_and_runs_of_a_key_in_order(steps: list[object], most: int) -> None:
    reading = Reading(most)
    begun: list[FlowRun] = []
    open_now: list[FlowRun] = []

    def take() -> None:
        taken = [run for _, run in reading.waitlist.take(2)]
        begun.extend(taken)
        open_now.extend(taken)

    def read() -> None:
        for lane in list(reading.ledger.shelf.lanes):
            if lane in reading.ledger.shelf.lanes:
                reading.read_again(lane)

    count = 0
    for step in steps:
        if isinstance(step, tuple):
            count += 1
            is_offered, flow, key = step
            (reading.offer if is_offered else reading.log.append)(scheduled(count, flow, key))
        elif step == "poll":
            reading.poll()
        elif step == "end" and open_now:
            reading.end(open_now.pop(0))
        elif step == "regulate":
            reading.lose_patience()
        elif step == "read":
            read()
        elif step == "take":
            take()
    reading.poll()
    for _ in range(count * 4):
        read()
        take()
        if open_now:
            reading.end(open_now.pop(0))
    assert sorted(int(run.run_id, 16) for run in begun) == list(range(1, count + 1))
    for flow in ("slow", "other"):
        for key in ("hot", "cold"):
            mine = [int(run.run_id, 16) for run in begun if (run.flow, run.key) == (flow, key)]
            assert mine == sorted(mine)


class Owned(Reading):
    """The same with what runs tell on the log, checkpoints, and owners that come and go."""

    def __init__(self, max_waiting: int, window_seconds: float) -> None:
        self.records: list[StateChange | None] = []
        self.most, self.window_seconds = max_waiting, window_seconds
        self.checkpointed: tuple[int, int, bytes] | None = None
        self.begin()

    def begin(self) -> None:
        """Somebody takes over what the last owner has left, in the middle of anything."""
        epoch = len(self.records)
        self.records.append(None)
        self.ledger, self.waitlist = Ledger(0, epoch, self.window_seconds), Waitlist()
        self.pressure = Pressure(self.waitlist, self.most)
        self.now = 0.0
        self.open_now: list[FlowRun] = []
        if self.checkpointed is not None:
            from_offset, by, body = self.checkpointed
            checkpoint = Checkpoint(0, by, utc(2.0), from_offset, len(body))
            ids, runs = read_body(checkpoint, body)
            self.ledger.restore(from_offset, checkpoint, ids, runs)
        self.poll()
        for run in self.ledger:
            self.waitlist.add(self.ledger, run)

    @property
    def log(self) -> list[StateChange]:  # type: ignore[override]
        return [scheduled(0, "none") if one is None else one for one in self.records]

    def poll(self) -> None:
        for offset in range(self.ledger.next_offset, len(self.records)):
            change = self.records[offset]
            was_recovered = self.ledger.is_recovered
            if change is None:
                self.ledger.begin_epoch(offset)
            elif was_recovered and change.seq:
                self.ledger.skip(offset)
            elif self.ledger.passes_over(offset):
                continue
            elif was_recovered and self.pressure.leaves(self.ledger, change.flow, change.key, offset):
                self.ledger.skip(offset)
            elif (run := self.ledger.read(offset, change)) is not None and was_recovered:
                self.waitlist.add(self.ledger, run)

    def offer(self, change: StateChange) -> None:
        offset = len(self.records)
        self.records.append(change)
        if change.key is None and not self.pressure.leaves(self.ledger, change.flow, None, offset):
            run = self.ledger.read_ahead(offset, change)
            if run is not None:
                self.waitlist.add(self.ledger, run)

    def take(self) -> None:
        for _, run in self.waitlist.take(2):
            if run.state is State.SCHEDULED:
                self.records.append(run.advance(State.RUNNING, 2.0, self.ledger.epoch))
            self.open_now.append(run)

    def end_one(self) -> None:
        if self.open_now:
            run = self.open_now.pop(0)
            self.records.append(run.advance(State.COMPLETED, 2.0, self.ledger.epoch))
            self.end(run)

    def read_lanes(self) -> None:
        for lane in list(self.ledger.shelf.lanes):
            if lane in self.ledger.shelf.lanes:
                self.read_again(lane)

    def checkpoint(self) -> None:
        ledger, shelf = self.ledger, self.ledger.shelf
        ids = Ids(ledger.tail.first(len(ledger.tail)), (), tuple(shelf.lanes.items()), shelf.told)
        self.checkpointed = ledger.next_offset, ledger.epoch, b"".join([write_ids(ids), *map(write_run, ledger)])


@pytest.mark.parametrize("seed", range(60))
def test_whoever_takes_over_a_shelf_each_run_begins_and_ends_once_and_runs_of_a_key_in_order(seed: int) -> None:
    chance = random.Random(seed)
    # Without a window no ids are kept, so nothing may be met twice; then nobody takes over.
    window_seconds = chance.choice([60.0, 60.0, 0.0])
    life = Owned(chance.randrange(1, 7), window_seconds)
    doing: dict[str, Callable[[], None]] = {
        "poll": life.poll,
        "take": life.take,
        "end": life.end_one,
        "read": life.read_lanes,
        "regulate": life.lose_patience,
        "checkpoint": life.checkpoint,
        "takeover": life.begin,
    }
    count = 0
    for _ in range(500):
        what = chance.choices(["come", *doing], weights=[30, 15, 12, 15, 8, 5, 2, 1.5 if window_seconds else 0])[0]
        if what == "come":
            count += 1
            change = scheduled(count, chance.choice(["slow", "slow", "other"]), chance.choice([None, None, "hot", "cold"]))
            chance.choice([life.offer, life.records.append])(change)
        else:
            doing[what]()
    for _ in range(count * 4 + 4):
        life.poll()
        life.read_lanes()
        life.take()
        life.end_one()
    assert not life.ledger.shelf.lanes
    assert not life.ledger.shelf.told
    keys = {one.run_id: one.key for one in life.records if one is not None and one.seq == 0}
    for state in (State.RUNNING, State.COMPLETED):
        told = [one for one in life.records if one is not None and one.state is state]
        assert sorted(int(one.run_id, 16) for one in told) == list(range(1, count + 1)), state
        for lane in itertools.product(("slow", "other"), ("hot", "cold")):
            of_key = [int(one.run_id, 16) for one in told if (one.flow, keys[one.run_id]) == lane]
            assert of_key == sorted(of_key)
