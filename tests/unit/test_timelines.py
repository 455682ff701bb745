"""A run's timeline splits queueing, running and waiting, nests children, and bears what clocks and topics say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.history_schema import Attempt, RunRow, TaskRow
from engine.states import State
from engine.task_rows import _encode
from engine.timelines import WIDTH, natural, nested, timeline_of


def run(**more: Any) -> RunRow:
    known: dict[str, Any] = {
        "place": 1, "run_id": "r", "flow": "f", "state": "COMPLETED", "seq": 9, "epoch": 0, "attempt": 1, "scheduled_at": 100.0,
        "changed_at": 110.0, "started_at": 102.0, "ended_at": 110.0,
    }  # fmt: skip
    return RunRow(**(known | more))


def task(name: str, *attempts: Attempt, **more: Any) -> TaskRow:
    known: dict[str, Any] = {
        "state": "COMPLETED",
        "attempt": len(attempts),
        "scheduled_at": attempts[0].queued_at if attempts else 0.0,
    }
    return TaskRow(place=1, name=name, task=name.partition("/")[0], **(known | more), attempts=_encode(list(attempts)))


def test_the_runs_own_row_splits_waiting_from_running() -> None:
    [row] = timeline_of(run(), [], 500.0).rows
    assert [(s.kind, s.x, s.width) for s in row.segments] == [("queued", 0.0, 200.0), ("ran", 200.0, 800.0)]
    assert (row.queued_seconds, row.ran_seconds) == (2.0, 8.0)


def test_a_retried_task_shows_each_attempt_and_the_wait_between() -> None:
    tried = task(
        "price/0",
        Attempt(1, 102.0, 103.0, 104.0, "w", "RETRYING", "E: bad"),
        Attempt(2, 106.0, 107.0, 109.0, "w", "COMPLETED"),
    )
    row = timeline_of(run(), [tried], 500.0).rows[1]
    assert [segment.kind for segment in row.segments] == ["queued", "failed", "waited", "queued", "ran"]
    assert [segment.x for segment in row.segments] == [200.0, 300.0, 400.0, 600.0, 700.0]
    assert (row.queued_seconds, row.ran_seconds, row.attempts) == (2.0, 3.0, 2)
    assert row.segments[2].text == "waited to be tried again 2.00 s"


def test_what_has_not_ended_goes_on_until_now() -> None:
    open_run = run(state="RUNNING", ended_at=None)
    row = timeline_of(open_run, [task("a/0", Attempt(1, 103.0, 104.0), state="RUNNING")], 120.0).rows[1]
    assert row.segments[-1].text == "ran 16.0 s so far"
    assert row.segments[-1].x + row.segments[-1].width == WIDTH
    waits = task("b/0", Attempt(1, 103.0, 104.0, 105.0, "w", "RETRYING"), Attempt(2, 500.0), state="RETRYING")
    assert [s.kind for s in timeline_of(open_run, [waits], 120.0).rows[1].segments] == ["queued", "failed", "waited"]


def test_a_worker_whose_clock_is_behind_does_no_harm() -> None:
    odd = task("a/0", Attempt(1, 103.0, 99.0, 98.0, "w", "COMPLETED"))
    made = timeline_of(run(), [odd], 500.0)
    assert made.begin == 98.0
    for segment in made.rows[1].segments:
        assert 0 <= segment.x <= segment.x + segment.width <= WIDTH
    assert made.rows[1].ran_seconds == 0.0


def test_children_stand_under_who_spawned_them_and_in_natural_order() -> None:
    tasks = [
        task("walk/10", Attempt(1, 103.0), spawned_by="walk/0"),
        task("walk/2", Attempt(1, 103.0), spawned_by="walk/0"),
        task("other/1", Attempt(1, 102.5)),
        task("walk/0", Attempt(1, 102.0)),
        task("walk/2.1", Attempt(1, 104.0), spawned_by="walk/2"),
        task("lost/9", Attempt(1, 105.0), spawned_by="gone/1"),
    ]
    found = [(row.name, depth, children) for row, depth, children in nested(tasks)]
    assert found == [
        ("walk/0", 0, 2),
        ("walk/2", 1, 1),
        ("walk/2.1", 2, 0),
        ("walk/10", 1, 0),
        ("other/1", 0, 0),
        ("lost/9", 0, 0),
    ]


def test_tasks_that_spawn_each_other_in_a_circle_are_all_shown() -> None:
    tasks = [task("a/0", spawned_by="b/0"), task("b/0", spawned_by="a/0"), task("c/0", spawned_by="c/0")]
    assert sorted(row.name for row, _, _ in nested(tasks)) == ["a/0", "b/0", "c/0"]


times = st.one_of(st.none(), st.floats(-1e12, 1e12))
attempts = st.builds(
    Attempt, st.integers(1, 9), times, times, times, st.none(), st.one_of(st.none(), st.sampled_from([s.value for s in State]))
)


@given(st.lists(st.tuples(st.lists(attempts, max_size=4), st.sampled_from(list(State))), max_size=5), times, times)
def test_any_times_stay_on_the_scale(
    given: list[tuple[list[Attempt], State]], started: float | None, ended: float | None
) -> None:
    tasks = [task(f"t/{n}", *tried, state=state.value) for n, (tried, state) in enumerate(given)]
    made = timeline_of(run(started_at=started, ended_at=ended), tasks, 200.0)
    assert len(made.rows) == len(tasks) + 1
    for row in made.rows:
        for segment in row.segments:
            assert segment.x >= 0
            assert segment.x + segment.width <= WIDTH + 0.11
    assert len(made.ticks) <= 12


@given(st.lists(st.text(max_size=8)))
def test_names_of_any_kind_can_be_ordered(names: list[str]) -> None:
    assert len(sorted(names, key=natural)) == len(names)
