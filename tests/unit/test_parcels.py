"""engine.parcels: whatever workers do, each run has one end; and parcels grow with what there is to do."""

from __future__ import annotations

import itertools
import math
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.parcels import (
    BUDGET_SECONDS,
    MAX_DEATHS,
    MAX_RUNS,
    Hung,
    Outcome,
    PackedRun,
    Parcel,
    Parcels,
    Sizing,
    TaskOutcome,
    Timed,
    decode_hung,
    decode_outcomes,
    decode_parcel,
    decode_tasks,
    decode_timed,
    encode_hung,
    encode_outcomes,
    encode_parcel,
    encode_tasks,
    encode_timed,
)
from engine.states import Failure, State, utc


def new_parcels() -> Parcels:
    numbers = itertools.count()
    return Parcels(lambda: f"parcel-{next(numbers)}")


def runs_of(count: int, attempt: int = 1) -> list[PackedRun]:
    return [PackedRun(f"run-{number}", b"{}", "", 1.0, attempt) for number in range(count)]


def pack(parcels: Parcels, count: int) -> Parcel:
    return parcels.pack("f", "m:f", runs_of(count), 1_000)


def outcome_of(run: PackedRun, state: State = State.COMPLETED) -> Outcome:
    return Outcome(run.run_id, run.attempt, state, 1.0, 2.0)


def measured(run_seconds: float) -> Sizing:
    sizing = Sizing()
    sizing.learn(1, run_seconds)
    return sizing


class TestParcels:
    @given(st.data(), st.integers(1, MAX_RUNS), st.sets(st.integers(0, MAX_RUNS - 1), max_size=3))
    def test_each_run_ends_once_and_only_those_that_kill_their_worker_crash(
        self, data: st.DataObject, count: int, killers: set[int]
    ) -> None:
        """A worker runs in order and dies at a killer; what it has finished may or may not have been heard by then."""
        parcels = new_parcels()
        waiting = [pack(parcels, count)]
        guilty = {f"run-{number}" for number in killers if number < count}
        ended: list[str] = []
        crashed: list[str] = []
        alone: dict[str, int] = {}
        deaths = 0
        while waiting:
            parcel = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            before = list(itertools.takewhile(lambda run: run.run_id not in guilty, parcel.runs))
            outcomes = [outcome_of(run) for run in before]
            if len(before) == len(parcel.runs):
                ended += [outcome.run_id for outcome in parcels.done(outcomes)]
                continue
            deaths += 1
            heard = data.draw(st.integers(0, len(outcomes)))
            if len(parcel.runs) - heard == 1:
                alone[parcel.runs[heard].run_id] = alone.get(parcel.runs[heard].run_id, 0) + 1
            verdict = parcels.died(parcel.parcel_id, outcomes[:heard])
            ended += [outcome.run_id for outcome in verdict.finished]
            crashed += [run.run_id for run in verdict.crashed]
            waiting += verdict.parcels
            assert parcels.died(parcel.parcel_id).parcels == []  # told twice: nothing is sent twice
        assert sorted(crashed) == sorted(guilty)
        assert sorted(ended) == sorted({f"run-{number}" for number in range(count)} - guilty)
        assert alone == dict.fromkeys(guilty, MAX_DEATHS)
        assert deaths <= len(guilty) * (math.ceil(math.log2(count)) + MAX_DEATHS)
        assert len(parcels) == 0

    @given(st.lists(st.sampled_from(["hear", "hear twice", "die", "reset"]), max_size=30), st.integers(1, 20))
    def test_what_is_under_way_is_always_each_open_run_once(self, steps: list[str], count: int) -> None:
        parcels = new_parcels()
        under_way = {(parcel := pack(parcels, count)).parcel_id: parcel}
        open_ids = {run.run_id for run in parcel.runs}
        for step in steps:
            if not under_way:
                break
            parcel_id, parcel = next(iter(under_way.items()))
            first = next(run for run in parcel.runs if run.run_id in open_ids)
            if step.startswith("hear"):
                counting = parcels.done([outcome_of(first)] * (2 if step == "hear twice" else 1))
                assert [outcome.run_id for outcome in counting] == [first.run_id]
                open_ids.discard(first.run_id)
                if not open_ids.intersection(run.run_id for run in parcel.runs):
                    del under_way[parcel_id]
            elif step == "die":
                del under_way[parcel_id]
                verdict = parcels.died(parcel_id)
                under_way |= {new.parcel_id: new for new in verdict.parcels}
                open_ids -= {run.run_id for run in verdict.crashed}
            else:
                under_way = {new.parcel_id: new for new in parcels.resubmit()}
            in_parcels = [run.run_id for each in under_way.values() for run in each.runs if run.run_id in open_ids]
            assert sorted(in_parcels) == sorted(open_ids)
            assert len(parcels) == len(under_way)

    def test_an_outcome_heard_after_the_split_counts_and_the_half_goes_on_without_it(self) -> None:
        parcels = new_parcels()
        parcel = pack(parcels, 4)
        verdict = parcels.died(parcel.parcel_id)
        assert [len(half.runs) for half in verdict.parcels] == [2, 2]
        assert parcels.done([outcome_of(parcel.runs[0])]) == [outcome_of(parcel.runs[0])]
        again = parcels.died(verdict.parcels[0].parcel_id)
        assert [run.run_id for each in again.parcels for run in each.runs] == ["run-1"]

    def test_what_is_left_of_a_parcel_over_which_a_worker_died_is_suspect_until_it_ends(self) -> None:
        parcels = new_parcels()
        parcel = pack(parcels, 3)
        assert not parcel.is_suspect
        [again] = parcels.again(parcel.parcel_id)
        assert not again.is_suspect, "it was not taken, and nobody died"
        halves = parcels.died(again.parcel_id).parcels
        halves += parcels.again(halves.pop().parcel_id)
        halves += parcels.died(halves.pop().parcel_id).parcels
        assert [half.is_suspect for half in halves] == [True, True]

    def test_an_outcome_of_an_earlier_try_does_not_count(self) -> None:
        parcels = new_parcels()
        [first] = pack(parcels, 1).runs
        assert parcels.done([outcome_of(first, State.RETRYING)])
        parcels.pack("f", "m:f", runs_of(1, attempt=2), 1_000)
        assert parcels.done([outcome_of(first)]) == []
        assert "run-0" in parcels

    def test_deaths_are_forgotten_with_the_outcome(self) -> None:
        parcels = new_parcels()
        parcel = pack(parcels, 1)
        for _ in range(MAX_DEATHS - 1):
            [parcel] = parcels.died(parcel.parcel_id).parcels
        parcels.done([outcome_of(parcel.runs[0])])
        assert parcels.died(pack(parcels, 1).parcel_id).crashed == []

    def test_runs_of_a_lost_partition_are_not_sent_again(self) -> None:
        parcels = new_parcels()
        parcel = pack(parcels, 3)
        parcels.drop(["run-0", "run-2", "never-heard-of"])
        assert parcels.done([outcome_of(parcel.runs[0])]) == []
        [again] = parcels.resubmit()
        assert [run.run_id for run in again.runs] == ["run-1"]
        parcels.drop(["run-1"])
        assert len(parcels) == 0


class TestSizing:
    def test_a_single_event_on_an_idle_cluster_goes_at_once(self) -> None:
        assert Sizing().plan(1, 0, 4) == [1]
        assert Sizing().plan(1, 3, 4) == [1]

    def test_nothing_is_planned_of_nothing(self) -> None:
        assert Sizing().plan(0, 0, 4) == []

    def test_without_a_known_worker_something_waits_for_the_first(self) -> None:
        assert Sizing().plan(3, 0, 0)

    def test_slow_runs_are_spread_over_free_slots(self) -> None:
        assert measured(1.0).plan(3, 1, 4) == [1, 1, 1]
        assert measured(0.01).plan(7, 0, 4) == [2, 2, 2, 1]

    def test_tiny_runs_share_a_parcel(self) -> None:
        assert measured(20e-6).plan(30, 0, 8) == [30]

    def test_runs_accumulate_while_all_slots_are_busy(self) -> None:
        sizing = measured(50e-6)
        assert sizing.plan(100, 4, 4) == []
        assert sizing.plan(MAX_RUNS // 2, 4, 4) == [MAX_RUNS // 2]
        assert sizing.plan(100_000, 8, 4) == []

    def test_a_parcel_takes_no_longer_than_the_budget(self) -> None:
        sizing = Sizing()
        sizing.learn(10, 0.05)
        assert max(sizing.plan(1_000, 0, 2)) == round(BUDGET_SECONDS / 0.005)
        sizing.learn(1_000, 1_000.0)
        assert max(sizing.plan(1_000, 0, 2)) == 1

    def test_a_burst_counts_more_than_a_single_run(self) -> None:
        one, many = measured(0.001), measured(0.001)
        one.learn(1, 0.01)
        many.learn(200, 2.0)
        assert 0.001 < one.run_seconds < 0.0015
        assert 0.009 < many.run_seconds < 0.01

    @given(st.integers(0, 5_000), st.integers(0, 40), st.integers(0, 16), st.floats(1e-6, 10.0))
    def test_a_plan_keeps_to_every_limit(self, ready: int, under_way: int, slots: int, run_seconds: float) -> None:
        sizing = measured(run_seconds)
        sizes = sizing.plan(ready, under_way, slots)
        assert sum(sizes) <= ready
        assert all(1 <= size <= sizing.limit <= MAX_RUNS for size in sizes)
        assert len(sizes) <= max(0, 2 * max(1, slots) - under_way)
        if ready and under_way < slots:
            assert sizes  # latency first: nothing waits beside a free slot

    @pytest.mark.parametrize(("runs", "seconds"), [(0, 1.0), (3, math.inf), (3, math.nan)])
    def test_what_was_not_measured_teaches_nothing(self, runs: int, seconds: float) -> None:
        sizing = measured(0.001)
        sizing.learn(runs, seconds)
        assert sizing.run_seconds == 0.001


def test_parcels_and_outcomes_travel_whole() -> None:
    timed = (Timed("r", "0.3", "price", 2, 0.5), Timed("r", "1", "price", 1, 30.0))
    hung = [Hung(timed[0], 1.5, "restarted", "stack")]
    runs = (PackedRun("r", b'{"a":1}', "tp", 1.5, 2, b"\x80memo"),)
    parcel = Parcel("p", "f", "m:f", runs, 10, is_suspect=True, hung=tuple(hung))
    assert decode_parcel(encode_parcel(parcel)) == parcel
    assert (decode_timed(encode_timed(timed)), decode_hung(encode_hung(hung))) == (timed, hung)
    failed = Outcome("r", 1, State.FAILED, 1.0, 2.0, error=Failure("E", "m", "t"), tasks=b"[]")
    retrying = Outcome("r", 1, State.RETRYING, 1.0, 2.0, wait_seconds=0.5, memo=b"\x80")
    assert decode_outcomes(encode_outcomes([failed, retrying])) == [failed, retrying]


@given(st.floats(0.5, 4e9), st.floats(0.5, 4e9))
def test_tasks_stand_in_the_state_change_as_the_contract_has_them(started_at: float, ended_at: float) -> None:
    failure = Failure("E", 'with "quotes"\n', "t")
    done = TaskOutcome("shop.price", "0", State.COMPLETED, 1, started_at, ended_at)
    failed = TaskOutcome("price", "1.2", State.FAILED, 3, 1.0, 2.5, failure)
    cancelled = TaskOutcome("price", "2", State.CANCELLED, 0)
    text = encode_tasks([done, failed, cancelled])
    first, *others = msgspec.json.decode(text)
    assert first == {
        "task": "shop.price",
        "index": "0",
        "state": "COMPLETED",
        "attempt": 1,
        "started_at": first["started_at"],
        "ended_at": first["ended_at"],
    }
    assert others == [
        {
            "task": "price",
            "index": "1.2",
            "state": "FAILED",
            "attempt": 3,
            "started_at": "1970-01-01T00:00:01.000001Z",
            "ended_at": "1970-01-01T00:00:02.500000Z",
            "error": msgspec.to_builtins(failure),
        },
        {"task": "price", "index": "2", "state": "CANCELLED", "attempt": 0},
    ]
    entry = decode_tasks(text)[0]
    assert entry.started_at is not None
    assert abs(entry.started_at - utc(started_at)) <= timedelta(microseconds=1)
    assert len(first["started_at"]) == len("1970-01-01T00:00:01.000001Z")
