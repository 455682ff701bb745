"""engine.subscriber: which changes of one partition a subscriber gets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import subscriber
from engine.states import State, StateChange, utc
from engine.subscriber import Deduplicator


def change(seq: int, state: State = State.RUNNING, *, run_id: str = "r", epoch: int = 0, **fields: Any) -> StateChange:
    return StateChange(run_id=run_id, flow="f", state=state, seq=seq, epoch=epoch, attempt=1, at=utc(1.0), **fields)


def test_repeats_are_dropped_and_runs_do_not_disturb_each_other() -> None:
    known = Deduplicator()
    assert known.is_new(change(0, State.SCHEDULED))
    assert known.is_new(change(1))
    assert not known.is_new(change(1))
    assert not known.is_new(change(0, State.SCHEDULED))
    assert known.is_new(change(0, State.SCHEDULED, run_id="other"))
    assert known.is_new(change(2))


def test_changes_of_an_owner_that_had_lost_the_partition_are_dropped() -> None:
    known = Deduplicator()
    known.begin_epoch(5)
    assert known.is_new(change(0, State.SCHEDULED))
    assert known.is_new(change(1, epoch=5))
    known.begin_epoch(9)
    assert not known.is_new(change(2, epoch=5))
    assert known.is_new(change(2, epoch=9))
    assert known.is_new(change(0, State.SCHEDULED, run_id="other"))


def test_nothing_comes_after_the_end_of_a_run() -> None:
    known = Deduplicator()
    assert known.is_new(change(3, State.COMPLETED))
    assert not known.is_new(change(3, State.COMPLETED))
    assert not known.is_new(change(0, State.SCHEDULED))


def test_the_end_of_a_task_is_not_the_end_of_its_run() -> None:
    known = Deduplicator()
    assert known.is_new(change(3, State.COMPLETED, task="t", task_run_id="r/t/0"))
    assert known.is_new(change(4, State.COMPLETED))


def test_one_who_comes_in_the_middle_gets_what_is_left() -> None:
    known = Deduplicator()
    assert known.is_new(change(7))
    assert not known.is_new(change(6))


def test_what_is_remembered_of_ended_runs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber, "_REMEMBERED_RUNS", 2)
    known = Deduplicator()
    for run_id in "abc":
        assert known.is_new(change(1, State.COMPLETED, run_id=run_id))
    assert not known.is_new(change(1, State.COMPLETED, run_id="c"))
    assert known.is_new(change(1, State.COMPLETED, run_id="a"))  # forgotten


@given(st.lists(st.integers(1, 8), max_size=30))
def test_whatever_is_repeated_each_change_comes_once_and_in_order(read_from: list[int]) -> None:
    """A reader that goes back to any earlier record, as after a rebalance, delivers a history without repeats."""
    log = [change(seq, State.COMPLETED if seq == 8 else State.RUNNING) for seq in range(9)]
    known = Deduplicator()
    delivered: list[int] = []
    position = 0
    for back in [*read_from, 0]:
        delivered += [entry.seq for entry in log[position:] if known.is_new(entry)] if back == 0 else []
        if back:
            delivered += [entry.seq for entry in log[position : position + 3] if known.is_new(entry)]
            position = max(0, min(position + 3, 9) - back)
    assert delivered == list(range(9))
