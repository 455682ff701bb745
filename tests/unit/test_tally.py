"""engine.tally: what a demo has seen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from engine.broker import Outgoing
from engine.nycflights import SOURCE, DemoEvent, Fate
from engine.states import Failure, Origin, State, StateChange
from engine.tally import Tally

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def demo_event(id: str, fate: Fate = Fate.RUN) -> DemoEvent:
    return DemoEvent(Outgoing("flights", None, b"{}"), id, fate, START)


def after(milliseconds: float) -> datetime:
    return START + timedelta(milliseconds=milliseconds)


def run_change(run_id: str, state: State, milliseconds: float, **fields: Any) -> StateChange:
    values: dict[str, Any] = {"flow": "delay_report", "seq": 0, "epoch": 0, "attempt": 1} | fields
    return StateChange(run_id=run_id, state=state, at=after(milliseconds), **values)


def scheduled(run_id: str, event_id: str, *, source: str = SOURCE) -> StateChange:
    origin = Origin(source, event_id, "flight.departed", "flights", 0, 0)
    return run_change(run_id, State.SCHEDULED, 5, event=origin)


def task_change(run_id: str, task: str, state: State, milliseconds: float) -> StateChange:
    return run_change(run_id, state, milliseconds, task=task, task_run_id=f"{run_id}/{task}")


@pytest.fixture
def tally() -> Tally:
    """One good event, one that no flow wants and one broken, all sent at START."""
    events = [demo_event("UA1"), demo_event("UA2", Fate.NOTHING), demo_event("no-id", Fate.DEAD_LETTER)]
    tally = Tally(events)
    tally.observe_sent(events, START)
    return tally


DEAD_LETTER = (
    ("x-engine-reason", b"malformed-event"),
    ("x-engine-error", b"the required attribute id is missing"),
    ("x-engine-origin", b"flights/0/7"),
)


def test_a_run_is_followed_from_its_event_to_its_end(tally: Tally) -> None:
    tally.observe(scheduled("r", "UA1"))
    tally.observe(run_change("r", State.RUNNING, 8))
    assert tally.running == {"r"}
    tally.observe(task_change("r", "look_up", State.SCHEDULED, 8))
    tally.observe(task_change("r", "look_up", State.RUNNING, 12))
    tally.observe(task_change("r", "look_up", State.COMPLETED, 15))
    tally.observe(run_change("r", State.COMPLETED, 20, result=msgspec.Raw(b"null")))
    assert (tally.running, tally.completed, tally.failures) == (set(), 1, [])
    assert tally.first_task_seconds == [pytest.approx(0.012)]
    assert tally.end_seconds == [pytest.approx(0.020)]
    assert tally.tasks["look_up"].waited == [pytest.approx(0.004)]
    assert tally.tasks["look_up"].ran == [pytest.approx(0.003)]


def test_only_the_first_task_of_a_run_counts_as_its_start(tally: Tally) -> None:
    tally.observe(scheduled("r", "UA1"))
    tally.observe(task_change("r", "first", State.RUNNING, 10))
    tally.observe(task_change("r", "second", State.RUNNING, 30))
    assert len(tally.first_task_seconds) == 1


def test_a_retried_task_counts_each_attempt(tally: Tally) -> None:
    tally.observe(scheduled("r", "UA1"))
    for state, at in (("RUNNING", 10), ("RETRYING", 11), ("RUNNING", 111), ("COMPLETED", 113)):
        tally.observe(task_change("r", "look_up", State(state), at))
    times = tally.tasks["look_up"]
    assert (len(times.ran), times.retries, times.waited) == (2, 1, [])


def test_runs_of_other_events_are_passed_over(tally: Tally) -> None:
    tally.observe(scheduled("x", "UA9"))
    tally.observe(scheduled("y", "UA1", source="/elsewhere"))
    for run_id in ("x", "y", "z"):
        tally.observe(task_change(run_id, "look_up", State.RUNNING, 9))
        tally.observe(run_change(run_id, State.COMPLETED, 10))
    assert (tally.completed, tally.tasks, tally.first_task_seconds) == (0, {}, [])


def test_it_is_finished_when_all_was_sent_and_every_end_was_seen(tally: Tally) -> None:
    assert not tally.finished
    tally.observe(scheduled("r", "UA1"))
    tally.observe(run_change("r", State.COMPLETED, 20))
    assert tally.missing() == ["dead letters: 1"]
    tally.observe_dead_letter(DEAD_LETTER)
    tally.observe_dead_letter(DEAD_LETTER)
    assert len(tally.dead_letters) == 1
    assert tally.finished
    assert tally.passed


def test_what_is_missing_is_said_in_words(tally: Tally) -> None:
    assert tally.missing() == ["ends of runs: 1, for example that of UA1", "dead letters: 1"]
    assert Tally([demo_event("UA1"), demo_event("UA2")]).missing() == ["events not sent: 2"]


@pytest.mark.parametrize("state", [State.FAILED, State.CRASHED, State.CANCELLED])
def test_a_run_that_does_not_complete_is_named_with_its_reason(tally: Tally, state: State) -> None:
    tally.observe(scheduled("r", "UA1"))
    tally.observe(run_change("r", state, 20, error=Failure("ValueError", "no such airport")))
    tally.observe_dead_letter(DEAD_LETTER)
    assert tally.failures == [("delay_report of UA1", "ValueError: no such airport")]
    assert tally.finished
    assert not tally.passed


def test_a_good_event_among_the_dead_letters_is_awaited_no_longer_and_fails_the_demo(tally: Tally) -> None:
    tally.observe_dead_letter(DEAD_LETTER)
    tally.observe_dead_letter(((("ce_id"), b"UA1"), ("x-engine-origin", b"flights/0/0")))
    assert tally.finished
    assert not tally.passed


def test_results_of_the_two_flows_are_kept_and_others_only_counted(tally: Tally) -> None:
    tally.observe(scheduled("r", "UA1"))
    report = {
        "flight": "UA1",
        "origin": "EWR",
        "destination": "ORD",
        "scheduled_at": START,
        "delay_minutes": 5,
        "causes": [],
        "category": "on time",
    }
    tally.observe(run_change("r", State.COMPLETED, 20, result=msgspec.Raw(msgspec.json.encode(report))))
    assert [row.flight for row in tally.delays] == ["UA1"]

    other = Tally([demo_event("UA1")])
    other.observe_sent([demo_event("UA1")], START)
    other.observe(scheduled("r", "UA1"))
    other.observe(run_change("r", State.COMPLETED, 20, result_ref="elsewhere"))
    assert (other.completed, other.delays) == (1, [])


def test_runs_per_second_are_those_of_the_last_three_seconds(tally: Tally) -> None:
    tally.observe(scheduled("r", "UA1"))
    tally.observe(run_change("r", State.COMPLETED, 0))
    assert tally.runs_per_second(after(2_999)) == pytest.approx(1 / 3)
    assert tally.runs_per_second(after(3_001)) == 0
