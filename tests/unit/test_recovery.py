"""engine.recovery: what the log says of a run that another owner, or an earlier attempt of its flow, has begun."""

from __future__ import annotations

from engine.recovery import above_open_children, failures, heard
from engine.runs import FlowRun
from engine.states import State
from tests.unit.recorded import BAD, RUN_ID, run_of


def begun() -> FlowRun:
    run = run_of()
    run.advance(State.RUNNING, 1.0, 9)
    return run


def tell(run: FlowRun, index: str, *states: State, task: str = "t", by: str | None = None, at: float = 2.5) -> None:
    task_run_id = f"{RUN_ID}/{task}/{index}"
    run.advance_task(task, task_run_id, State.SCHEDULED, 0, at, 9, spawned_by=by)
    for state in states:
        error = BAD if state in (State.FAILED, State.CRASHED) else None
        run.advance_task(task, task_run_id, state, 1, at, 9, error=error)


def test_what_was_heard_is_in_the_order_of_the_ends_without_what_tasks_have_started() -> None:
    run = begun()
    tell(run, "1", State.RUNNING, State.COMPLETED)
    tell(run, "0", State.RUNNING, State.FAILED, at=3.5)
    tell(run, "a" * 16, State.RUNNING, State.COMPLETED, by=f"{RUN_ID}/t/1")
    tell(run, "2", State.RUNNING)
    feeds = heard(run)
    assert [(feed.index, feed.state, feed.at, feed.failure) for feed in feeds] == [
        ("1", State.COMPLETED, 2.5, None),
        ("0", State.FAILED, 3.5, BAD),
    ]


def test_what_failed_in_an_earlier_attempt_of_the_flow_is_not_heard_again() -> None:
    run = begun()
    tell(run, "0", State.RUNNING, State.COMPLETED)
    tell(run, "1", State.RUNNING, State.FAILED)
    tell(run, "2", State.RUNNING, State.CANCELLED, task="engine.sleep")
    assert [index for index, _, _ in failures(run)] == ["1"]
    run.advance(State.RETRYING, 3.0, 9)
    run.advance(State.RUNNING, 4.0, 9)
    assert [feed.index for feed in heard(run)] == ["0", "2"]
    assert list(failures(run)) == []


def test_failures_of_children_count_in_the_order_of_the_ends() -> None:
    run = begun()
    tell(run, "a" * 16, State.RUNNING, State.CRASHED, by=f"{RUN_ID}/t/0")
    tell(run, "0", State.RUNNING, State.FAILED)
    assert list(failures(run)) == [("a" * 16, State.CRASHED, BAD), ("0", State.FAILED, BAD)]


def test_what_is_above_open_children_has_to_be_heard_of_again() -> None:
    run = begun()
    tell(run, "0")
    tell(run, "a" * 16, by=f"{RUN_ID}/t/0")
    tell(run, "b" * 16, by=f"{RUN_ID}/t/{'a' * 16}")
    tell(run, "c" * 16, State.CANCELLED, by=f"{RUN_ID}/t/0")
    assert above_open_children(run) == {"0", "a" * 16}
    tell(run, "1")
    tell(run, "d" * 16, State.RUNNING, State.COMPLETED, by=f"{RUN_ID}/t/1")
    assert "1" not in above_open_children(run)
