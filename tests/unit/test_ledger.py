"""engine.ledger: open runs and ids seen, whatever owners wrote and however often it is read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoints import Checkpoint, Ids
from engine.errors import IllegalTransition
from engine.ledger import Ledger
from engine.runs import FlowRun
from engine.seen import Tail
from engine.states import TRANSITIONS, Failure, State, StateChange, utc

WINDOW_SECONDS = 100.0
RUN_IDS = [f"{number:032x}" for number in range(4)]


def change(run_id: str, state: State, seq: int, epoch: int = 0, at: float = 1.0, **fields: Any) -> StateChange:
    values: dict[str, Any] = {"attempt": 1} | fields
    return StateChange(run_id=run_id, flow="f", state=state, seq=seq, epoch=epoch, at=utc(at), **values)


def scheduled(run_id: str = RUN_IDS[0], at: float = 1.0) -> StateChange:
    return change(run_id, State.SCHEDULED, 0, at=at, attempt=0)


#: A record of a log: a state change, an ownership record (None), or one that says nothing ("").
Entry = StateChange | None | str


def feed(ledger: Ledger, log: list[Entry], start: int = 0, end: int | None = None) -> Ledger:
    for offset, entry in enumerate(log[start:end], start):
        if entry is None:
            ledger.begin_epoch(offset)
        elif isinstance(entry, str):
            ledger.skip(offset)
        else:
            ledger.read(offset, entry)
    return ledger


def view(ledger: Ledger) -> dict[str, tuple[Any, ...]]:
    """All that an owner goes on from."""
    return {
        run.run_id: (run.state, run.seq, run.offset, run.attempt, {key: (t.state, t.attempt) for key, t in run.tasks.items()})
        for run in ledger
    }


class World:
    """Writes a log as honest owners do: each goes on from what it knew when it took over, also when it is stale."""

    def __init__(self) -> None:
        self.log: list[Entry] = []
        #: By epoch, what that owner believes: run id to (state, seq). The last is right.
        self.beliefs: dict[int, dict[str, tuple[State, int]]] = {}
        self.truth: dict[str, tuple[State, int]] = {}
        self.offsets: dict[str, int] = {}

    def own(self) -> None:
        self.truth = dict(self.truth)
        self.beliefs[len(self.log)] = self.truth
        self.log.append(None)

    def schedule(self, run_id: str) -> None:
        known = self.truth.get(run_id)
        if known is None:
            self.truth[run_id] = (State.SCHEDULED, 0)
            self.offsets[run_id] = len(self.log)
        self.log.append(scheduled(run_id))

    def step(self, owner: int, run_id: str, choice: int, *, of_task: bool) -> None:
        if not self.beliefs:
            return
        epochs = sorted(self.beliefs)
        epoch = epochs[owner % len(epochs)]
        state, seq = self.beliefs[epoch].get(run_id, (State.COMPLETED, 0))
        following = sorted(new for old, new in TRANSITIONS if old is state)
        if not following:
            return
        if of_task:
            task_run_id = f"{run_id}/t/{seq}"
            self.beliefs[epoch][run_id] = (state, seq + 1)
            self.log.append(change(run_id, State.SCHEDULED, seq + 1, epoch, task="t", task_run_id=task_run_id))
            return
        new = following[choice % len(following)]
        self.beliefs[epoch][run_id] = (new, seq + 1)
        self.log.append(change(run_id, new, seq + 1, epoch))

    @property
    def open_runs(self) -> dict[str, tuple[State, int]]:
        return {run_id: known for run_id, known in self.truth.items() if not known[0].is_end}


run_ids = st.sampled_from(RUN_IDS[:2])  # few, so that owners meet
operations = st.one_of(
    st.tuples(st.just("own")),
    st.tuples(st.just("skip")),
    st.tuples(st.just("schedule"), run_ids),
    st.tuples(st.just("step"), st.integers(-3, -2), run_ids, st.integers(0, 5), st.booleans()),
    st.tuples(st.just("step"), st.just(-1), run_ids, st.integers(0, 5), st.booleans()),
)


def world_of(done: list[Any]) -> World:
    """A log that ends with the ownership record of the owner whose ledger is tried."""
    world = World()
    for name, *details in done:
        if name == "own":
            world.own()
        elif name == "skip":
            world.log.append("")
        elif name == "schedule":
            world.schedule(*details)
        else:
            owner, run_id, choice, of_task = details
            world.step(owner, run_id, choice, of_task=of_task)
    world.own()
    return world


def owners_ledger(world: World) -> Ledger:
    return Ledger(0, len(world.log) - 1, WINDOW_SECONDS)


worlds = st.lists(operations, min_size=12, max_size=40).map(world_of)


@given(worlds)
def test_open_runs_are_those_scheduled_and_not_ended_by_whoever_owned_the_partition_then(world: World) -> None:
    ledger = feed(owners_ledger(world), world.log)
    assert {run.run_id: (run.state, run.seq) for run in ledger} == world.open_runs
    assert ledger.is_recovered
    assert not ledger.is_usurped
    assert all(ledger.has_seen(run_id) for run_id in world.truth)


@given(worlds, st.data())
def test_reading_a_stretch_again_changes_nothing(world: World, data: st.DataObject) -> None:
    once = feed(owners_ledger(world), world.log)
    end = data.draw(st.integers(0, len(world.log)))
    start = data.draw(st.integers(0, end))
    twice = feed(owners_ledger(world), world.log, 0, end)
    feed(twice, world.log, start, end)
    assert twice.next_offset == end
    feed(twice, world.log, end)
    assert view(twice) == view(once)
    assert (twice.next_offset, twice.is_usurped) == (once.next_offset, once.is_usurped)


@given(worlds, st.data())
def test_an_owner_learns_that_another_one_came_after_it(world: World, data: st.DataObject) -> None:
    epoch = data.draw(st.sampled_from(sorted(world.beliefs)))
    ledger = feed(Ledger(0, epoch, WINDOW_SECONDS), world.log)
    assert ledger.is_usurped == (epoch != max(world.beliefs))


def test_a_run_is_opened_once() -> None:
    ledger = Ledger(0, 0, WINDOW_SECONDS)
    ledger.begin_epoch(0)
    opened = ledger.read(1, scheduled())
    assert opened is not None
    assert opened.run_id == RUN_IDS[0]
    assert ledger.read(2, scheduled(at=1.0 + WINDOW_SECONDS - 1)) is None
    assert len(ledger.runs) == 1


def test_a_closed_run_is_forgotten_but_its_id_is_remembered_for_the_window() -> None:
    ledger = Ledger(0, 0, WINDOW_SECONDS)
    ledger.begin_epoch(0)
    ledger.read(1, scheduled())
    ledger.close(RUN_IDS[0])
    ledger.close(RUN_IDS[0])  # the end may be acknowledged twice
    assert ledger.runs == {}
    assert ledger.read(2, scheduled(at=1.0 + WINDOW_SECONDS)) is None
    ledger.read(3, scheduled(RUN_IDS[1], at=2.0 + WINDOW_SECONDS * 4 / 3))  # time goes on, by the window and a third
    assert not ledger.has_seen(RUN_IDS[0])
    assert ledger.read(4, scheduled(at=3.0 + WINDOW_SECONDS * 4 / 3)) is not None


def test_a_run_that_is_open_for_longer_than_the_window_is_not_opened_again() -> None:
    ledger = Ledger(0, 0, WINDOW_SECONDS)
    ledger.begin_epoch(0)
    first = ledger.read(1, scheduled())
    ledger.read(2, scheduled(RUN_IDS[1], at=2.0 + WINDOW_SECONDS))
    assert ledger.read(3, scheduled(at=3.0 + WINDOW_SECONDS)) is None
    assert ledger.runs[RUN_IDS[0]] is first


def test_history_is_read_before_runs_may_be_driven() -> None:
    ledger = Ledger(0, 2, WINDOW_SECONDS)
    ledger.read(0, scheduled())
    ledger.skip(1)
    assert not ledger.is_recovered
    ledger.begin_epoch(2)
    assert ledger.is_recovered


def test_a_change_that_contradicts_the_log_is_left_out_and_reading_goes_on() -> None:
    ledger = Ledger(0, 9, WINDOW_SECONDS)
    ledger.read(0, scheduled())
    with pytest.raises(IllegalTransition):
        ledger.read(1, change(RUN_IDS[0], State.COMPLETED, 1))
    assert ledger.next_offset == 2
    ledger.read(2, change(RUN_IDS[0], State.RUNNING, 1))
    assert ledger.runs[RUN_IDS[0]].state is State.RUNNING


def test_what_a_stale_owner_writes_after_it_lost_the_partition_is_void() -> None:
    ledger = Ledger(0, 9, WINDOW_SECONDS)
    ledger.begin_epoch(0)
    ledger.read(1, scheduled())
    ledger.read(2, change(RUN_IDS[0], State.RUNNING, 1, epoch=0))
    ledger.begin_epoch(3)
    ledger.read(4, change(RUN_IDS[0], State.FAILED, 2, epoch=0))
    assert ledger.runs[RUN_IDS[0]].state is State.RUNNING
    ledger.read(5, change(RUN_IDS[0], State.COMPLETED, 2, epoch=3))
    assert ledger.runs == {}


def test_the_end_of_a_task_does_not_end_its_run() -> None:
    ledger = Ledger(0, 9, WINDOW_SECONDS)
    ledger.read(0, scheduled())
    fields: dict[str, Any] = {"task": "t", "task_run_id": "r/t/0"}
    for seq, state in enumerate([State.SCHEDULED, State.RUNNING, State.FAILED], 1):
        error = Failure("E", "m") if state is State.FAILED else None
        ledger.read(seq, change(RUN_IDS[0], state, seq, error=error, **fields))
    [run] = ledger
    assert (run.state, run.tasks["r/t/0"].error) == (State.SCHEDULED, Failure("E", "m"))


def test_changes_of_unknown_runs_say_nothing() -> None:
    ledger = Ledger(0, 9, WINDOW_SECONDS)
    assert ledger.read(0, change(RUN_IDS[0], State.RUNNING, 1)) is None
    assert ledger.read(1, msgspec.structs.replace(scheduled(), task="t", task_run_id="r/t/0")) is None
    assert ledger.runs == {}


def test_a_run_taken_in_ahead_is_opened_once_and_its_record_is_passed_over() -> None:
    ledger = feed(Ledger(0, epoch=0, dedup_window_seconds=WINDOW_SECONDS), [None])

    run = ledger.read_ahead(3, scheduled(RUN_IDS[1]))

    assert run is not None
    assert ledger.next_offset == 1
    ledger.read(1, scheduled(RUN_IDS[0]))
    ledger.skip(2)
    assert ledger.passes_over(3)
    assert ledger.next_offset == 4
    assert not ledger.passes_over(3)
    assert set(view(ledger)) == {RUN_IDS[0], RUN_IDS[1]}


def test_a_repeat_that_lies_before_a_run_taken_in_ahead_opens_nothing() -> None:
    ledger = feed(Ledger(0, epoch=0, dedup_window_seconds=WINDOW_SECONDS), [None])
    ledger.read_ahead(3, scheduled(RUN_IDS[1]))

    assert ledger.read(1, scheduled(RUN_IDS[1])) is None


def test_nothing_is_taken_in_ahead_of_history_nor_twice() -> None:
    ledger = Ledger(0, epoch=2, dedup_window_seconds=WINDOW_SECONDS)
    assert ledger.read_ahead(5, scheduled()) is None
    feed(ledger, ["", "", None, "", ""])

    assert ledger.read_ahead(4, scheduled()) is None, "it has been read"
    assert ledger.read_ahead(5, scheduled()) is not None
    assert ledger.read_ahead(6, scheduled()) is None, "a repeat"


def test_an_id_leaves_the_window_by_its_time_whether_or_not_another_run_comes() -> None:
    ledger = feed(Ledger(0, epoch=0, dedup_window_seconds=WINDOW_SECONDS), [None, scheduled(at=1.0)])
    ledger.close(RUN_IDS[0])

    assert ledger.read(2, scheduled(at=WINDOW_SECONDS)) is None
    assert ledger.read(3, scheduled(at=WINDOW_SECONDS * 4 / 3 + 2.0)) is not None


def test_without_a_window_only_a_run_that_is_open_keeps_its_repeat_away() -> None:
    ledger = feed(Ledger(0, epoch=0, dedup_window_seconds=0.0), [None, scheduled(at=1.0)])

    assert ledger.read(2, scheduled(at=1.0)) is None
    ledger.close(RUN_IDS[0])
    assert ledger.read(3, scheduled(at=1.0)) is not None


def test_a_log_that_is_read_again_for_lost_ids_says_nothing_of_the_runs_that_the_checkpoint_holds() -> None:
    """The ownership record that made a change void may be gone from the log's beginning, and the change still be there."""
    run = FlowRun(scheduled(), 1)
    run.advance(State.RUNNING, 2.0, 5)
    ledger = Ledger(0, epoch=20, dedup_window_seconds=WINDOW_SECONDS)
    ledger.restore(12, Checkpoint(0, 5, utc(3.0), 10, 0), Ids(Tail().first(0)), [run])
    ledger.read_again()
    assert ledger.next_offset == 0
    ledger.read(6, change(RUN_IDS[0], State.FAILED, 2))  # of epoch 0
    ledger.read(7, scheduled(RUN_IDS[1]))
    ledger.read(8, change(RUN_IDS[1], State.RUNNING, 1))
    ledger.read(11, change(RUN_IDS[0], State.RETRYING, 2, epoch=5))
    assert {run.run_id: run.state for run in ledger} == {RUN_IDS[0]: State.RETRYING, RUN_IDS[1]: State.RUNNING}
