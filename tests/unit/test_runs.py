"""engine.runs: ids that follow from what they name, and changes applied once and in order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import IllegalTransition
from engine.runs import FlowRun, logical, run_id_of, task_run_id_of
from engine.states import Failure, State, StateChange
from engine.trace_contexts import child_of, run_context, start_context

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
    assert task_run_id_of("r", "price", "3") == "r/price/3"


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


SCHEDULED_IN = f"00-{'1' * 32}-{'a' * 16}-01"
BEGUN_IN = f"00-{'2' * 32}-{'b' * 16}-01"


def test_a_run_stays_in_the_trace_in_which_it_has_begun_whichever_repeat_was_read_first() -> None:
    run = FlowRun(change(State.SCHEDULED, 0, traceparent=SCHEDULED_IN), 5)

    run.apply(change(State.RUNNING, 1, attempt=1, traceparent=BEGUN_IN))
    run.apply(change(State.RETRYING, 2, attempt=1, traceparent=BEGUN_IN))
    stayed = run.traceparent
    run.apply(change(State.RUNNING, 3, attempt=2, traceparent=BEGUN_IN))

    assert stayed == run.traceparent == start_context(run_context(BEGUN_IN, RUN_ID), RUN_ID, 1)


def test_a_run_that_has_begun_in_its_own_trace_stays_below_what_scheduled_it() -> None:
    run = FlowRun(change(State.SCHEDULED, 0, traceparent=SCHEDULED_IN), 5)
    run.apply(change(State.RUNNING, 1, attempt=1, traceparent=child_of(SCHEDULED_IN, "send")))
    assert run.traceparent == SCHEDULED_IN


def test_a_change_that_is_no_row_of_the_table_is_refused_and_changes_nothing() -> None:
    run = FlowRun(change(State.SCHEDULED, 0), 5)
    with pytest.raises(IllegalTransition, match=f"{RUN_ID} cannot"):
        run.apply(change(State.COMPLETED, 1))
    with pytest.raises(IllegalTransition, match=f"{RUN_ID}/price/0 cannot"):
        run.apply(task_change(State.COMPLETED, 1))
    assert (run.state, run.seq) == (State.SCHEDULED, 0)


def test_how_a_task_has_ended_is_kept_for_the_next_owner_in_the_order_of_the_ends() -> None:
    run = FlowRun(change(State.SCHEDULED, 0), 5)
    last, lost = Failure("ValueError", "one"), Failure("KeyError", "two")
    run.apply(task_change(State.SCHEDULED, 1))
    run.apply(task_change(State.RUNNING, 2, attempt=1))
    run.apply(task_change(State.RETRYING, 3, attempt=1, error=lost))
    assert run.ended == []  # an attempt is left
    run.advance_task("pay", f"{RUN_ID}/pay/1", State.SCHEDULED, 0, 1.0, 9)
    run.advance_task("pay", f"{RUN_ID}/pay/1", State.RUNNING, 1, 2.0, 9)
    run.advance_task("pay", f"{RUN_ID}/pay/1", State.COMPLETED, 1, 3.0, 9, result=msgspec.Raw(b"[7]"), length=1)
    run.apply(task_change(State.RUNNING, 7, attempt=2))
    run.apply(task_change(State.FAILED, 8, attempt=2, error=last))
    assert [task_run_id for task_run_id, _ in run.ended] == [f"{RUN_ID}/pay/1", f"{RUN_ID}/price/0"]
    failed, paid = run.tasks[f"{RUN_ID}/price/0"], run.tasks[f"{RUN_ID}/pay/1"]
    assert (failed.state, failed.error, failed.attempt) == (State.FAILED, last, 2)
    assert (paid.state, paid.result, paid.length) == (State.COMPLETED, b"[7]", 1)


def test_what_the_flow_has_called_is_known_by_index_and_a_map_counts_once() -> None:
    run = FlowRun(change(State.SCHEDULED, 0), 5)
    run.advance(State.RUNNING, 1.0, 9)
    for task, index, by in [("a", "0", None), ("b", "1.0", None), ("b", "1.1", None), ("c", "f" * 16, f"{RUN_ID}/a/0")]:
        run.advance_task(task, f"{RUN_ID}/{task}/{index}", State.SCHEDULED, 0, 1.0, 9, spawned_by=by)
    assert run.called == {"0": "a", "1": "b"}  # what tasks have started is no call of the flow


def test_a_later_attempt_of_the_flow_keeps_what_has_completed_and_makes_the_rest_anew() -> None:
    run = FlowRun(change(State.SCHEDULED, 0), 5)
    run.advance(State.RUNNING, 1.0, 9)
    for index, end in [("0", State.COMPLETED), ("1", State.FAILED)]:
        for state in (State.SCHEDULED, State.RUNNING, end):
            run.advance_task("t", f"{RUN_ID}/t/{index}", state, 1, 1.0, 9)
    assert [run.actual_index("t", index) for index in ("0", "1", "2")] == ["0", "1", "2"]
    run.advance(State.RETRYING, 2.0, 9)
    run.advance(State.RUNNING, 3.0, 9)
    assert [run.actual_index("t", index) for index in ("0", "1", "2")] == ["0", "1~2", "2~2"]
    assert (logical("1~2"), run.generation(f"{RUN_ID}/t/1~2"), run.generation(f"{RUN_ID}/t/0")) == ("1", 2, 1)
    assert run.called == {}  # it is gone through anew
