"""engine.runs: ids that follow from what they name, and changes applied once and in order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import IllegalTransition
from engine.runs import FlowRun, run_id_of, task_run_id_of
from engine.states import Failure, State, StateChange

RUN_ID = "0" * 32
AT = datetime(2026, 1, 1, tzinfo=UTC)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def change(state: State, seq: int, **fields: Any) -> StateChange:
    values: dict[str, Any] = {"epoch": 0, "attempt": 0, "at": AT} | fields
    return StateChange(run_id=RUN_ID, flow="fulfil", state=state, seq=seq, **values)


def task_change(state: State, seq: int, **fields: Any) -> StateChange:
    return change(state, seq, task="price", task_run_id=f"{RUN_ID}/price/0", **fields)


@given(st.tuples(texts, texts, texts, texts), st.tuples(texts, texts, texts, texts))
def test_two_events_share_a_run_id_only_if_app_flow_source_and_id_are_the_same(one: Any, other: Any) -> None:
    assert (run_id_of(*one) == run_id_of(*other)) == (one == other)


def test_a_run_id_is_the_same_in_every_process_and_release() -> None:
    assert run_id_of("shop", "fulfil", "/shop", "42") == "c1527909d42b99ba45686b7c93936d8a"
    assert len(bytes.fromhex(run_id_of("", "fulfil", "", ""))) == 16
    assert run_id_of("app", "a", "bc", "d") != run_id_of("app", "ab", "c", "d")


def test_a_task_run_id_names_run_task_and_call() -> None:
    assert task_run_id_of("r", "price", 3) == "r/price/3"


def test_the_record_key_is_the_ordering_key_else_the_run_id() -> None:
    assert FlowRun(change(State.SCHEDULED, 0), 5).record_key == RUN_ID.encode()
    assert FlowRun(change(State.SCHEDULED, 0, key="Zoë"), 5).record_key == "Zoë".encode()
    assert FlowRun(change(State.SCHEDULED, 0, key=""), 5).record_key == b""


def test_a_run_takes_its_parameters_and_place_from_its_scheduled() -> None:
    run = FlowRun(change(State.SCHEDULED, 0, parameters=msgspec.Raw(b'{"n":1}')), 5)
    assert (run.parameters, run.offset, run.state, run.seq) == (b'{"n":1}', 5, State.SCHEDULED, 0)
    assert FlowRun(change(State.SCHEDULED, 0), 5).parameters == b"{}"


def test_changes_are_numbered_without_a_gap_tasks_included() -> None:
    run = FlowRun(change(State.SCHEDULED, 0), 5)
    made = [
        run.advance(State.RUNNING, 1.0, 9),
        run.advance_task("price", f"{RUN_ID}/price/0", State.SCHEDULED, 0, 1.0, 9),
        run.advance_task("price", f"{RUN_ID}/price/0", State.RUNNING, 1, 2.0, 9, worker="w"),
        run.advance_task("price", f"{RUN_ID}/price/0", State.COMPLETED, 1, 3.0, 9),
        run.advance(State.COMPLETED, 4.0, 9),
    ]
    assert [change.seq for change in made] == [1, 2, 3, 4, 5]
    assert {change.epoch for change in made} == {9}
    assert [change.attempt for change in made] == [1, 0, 1, 1, 1]
    assert made[2].worker == "w"


def test_a_change_read_twice_is_taken_in_once() -> None:
    run = FlowRun(change(State.SCHEDULED, 0), 5)
    running = change(State.RUNNING, 1, attempt=1)
    assert run.apply(running)
    assert not run.apply(running)
    assert not run.apply(change(State.SCHEDULED, 0))
    assert (run.state, run.attempt, run.seq) == (State.RUNNING, 1, 1)


def test_a_change_that_is_no_row_of_the_table_is_refused_and_changes_nothing() -> None:
    run = FlowRun(change(State.SCHEDULED, 0), 5)
    with pytest.raises(IllegalTransition, match=f"{RUN_ID} cannot"):
        run.apply(change(State.COMPLETED, 1))
    with pytest.raises(IllegalTransition, match=f"{RUN_ID}/price/0 cannot"):
        run.apply(task_change(State.COMPLETED, 1))
    assert (run.state, run.seq) == (State.SCHEDULED, 0)


def test_the_first_task_that_ends_badly_decides_the_run() -> None:
    run = FlowRun(change(State.SCHEDULED, 0), 5)
    first, second = Failure("ValueError", "one"), Failure("KeyError", "two")
    run.apply(task_change(State.SCHEDULED, 1))
    run.apply(task_change(State.RUNNING, 2, attempt=1))
    run.apply(task_change(State.RETRYING, 3, attempt=1, error=second))
    assert run.failure is None  # an attempt is left
    run.apply(task_change(State.RUNNING, 4, attempt=2))
    run.apply(task_change(State.FAILED, 5, attempt=2, error=first))
    assert run.failure == (State.FAILED, first)
