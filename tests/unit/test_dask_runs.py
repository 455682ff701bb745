"""engine.dask_runs: what is kept of a run's calls."""

from __future__ import annotations

from engine.dask_runs import HeldRun
from engine.executor import Report
from engine.states import State
from tests.unit.samples.orders import double
from tests.unit.test_worker import call_of

RUN_ID = "0123456789abcdef" * 2


def report(index: str, state: State, attempt: int = 1, *, starts: bool = False) -> Report:
    spawned = (call_of(double, 2),) if starts else ()
    return Report(RUN_ID, index, state, attempt, 1.0, 1.0, "tcp://worker:1", spawned=spawned)


def test_a_task_that_has_started_another_has_begun_even_where_no_report_has_said_so_alone() -> None:
    held = HeldRun(("shop", 0), "client")
    held.hear(report("0", State.RUNNING, starts=True))
    assert held.reports["0"] == report("0", State.RUNNING)
    held.hear(report("0", State.RETRYING))
    held.hear(report("0", State.RUNNING, 2, starts=True))
    assert (held.reports["0"].state, held.reports["0"].attempt) == (State.RUNNING, 2)


def test_what_a_call_has_come_to_is_not_undone_by_what_it_had_started_and_the_order_is_that_of_the_ends() -> None:
    held = HeldRun(("shop", 0), "client")
    for index in "01":
        held.hear(report(index, State.RUNNING))
    for index in "10":
        held.hear(report(index, State.COMPLETED))
    held.hear(report("1", State.RUNNING, starts=True))
    assert [(one.index, one.state) for one in held.reports.values()] == [("1", State.COMPLETED), ("0", State.COMPLETED)]
