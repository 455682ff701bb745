"""engine.driven: when a run is submitted, with calls and without."""

from __future__ import annotations

import pytest

from engine.driven import Driven
from engine.ledger import Ledger
from engine.progress import Progress
from engine.retries import Retry
from engine.states import State
from tests.unit.recorded import run_of
from tests.unit.samples.orders import double
from tests.unit.test_worker import call_of


def driven(retry: Retry | None = None, *states: State) -> Driven:
    run = run_of()
    for state in states:
        run.advance(state, 2.0, 9)
    return Driven(Progress(run, 9, retry=retry), Ledger(3, 9, 60.0), "shop", "00-x")


def test_a_run_without_a_call_is_submitted_once_because_its_final_future_is_made_with_that() -> None:
    waits = driven(None, State.RUNNING)
    first = waits.submission(())
    assert first is not None
    assert (first.partition, first.epoch, first.calls, first.is_anew, first.is_tried_again) == (3, 9, (), True, False)
    assert waits.submission(()) is None
    call = call_of(double, 1)
    later = waits.submission([call])
    assert later is not None
    assert (later.calls, later.is_anew) == ((call,), False)


def test_when_the_cluster_has_lost_all_it_is_submitted_again() -> None:
    waits = driven(Retry(2), State.RUNNING, State.RETRYING)
    for _ in range(2):
        submitted = waits.submission(())
        assert submitted is not None
        assert (submitted.is_anew, submitted.is_tried_again) == (True, True)
        waits.begin_anew()


@pytest.mark.parametrize("end", [State.COMPLETED, State.FAILED, State.CANCELLED])
def test_a_run_that_is_over_is_not_submitted(end: State) -> None:
    assert driven(None, State.RUNNING, end).submission(()) is None


def test_what_follows_from_a_decision_waits_until_that_is_told_also_where_it_is_no_call() -> None:
    waits = driven(None, State.RUNNING)
    waits.decide()
    assert waits.submission(()) is None
    call = call_of(double, 1)
    assert waits.submission([call]) is None
    submitted = waits.decided()
    assert submitted is not None
    assert (submitted.calls, submitted.is_anew) == ((call,), True)
