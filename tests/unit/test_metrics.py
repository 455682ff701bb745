"""engine.metrics: the names and meanings that others build on, what is counted, and that labels are bounded."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest

from engine.events import Reason
from engine.metrics import BOUNDS, LABELS, METRICS, OTHER, Counts, Histogram, Kind
from engine.runs import FlowRun
from engine.states import Origin, Replayed, State, StateChange, utc

AT = utc(time.time())

#: Dashboards and alerts of others are made of these: whoever changes one breaks them, and says so in the changelog.
PINNED = """
engine_events_total counter topic,outcome
engine_dead_letters_total counter topic,reason
engine_flow_runs_total counter flow,state
engine_task_runs_total counter flow,state
engine_event_to_start_seconds histogram flow
engine_flow_run_duration_seconds histogram flow
engine_open_runs gauge flow
engine_parked_runs gauge flow
engine_waiting_runs gauge
engine_untold_changes gauge
engine_part_ready gauge part
engine_reachable gauge service
engine_consumer_lag_records gauge group,topic,partition
engine_dask_workers gauge
engine_dask_threads gauge
engine_dask_tasks gauge state
engine_dask_memory_bytes gauge
engine_dask_memory_limit_bytes gauge
engine_build_info gauge version,python
engine_projector_lag_records gauge topic,partition
engine_history_readable gauge
"""


def a_run(flow: str = "bill", *, event_at: Any = AT, replay: Replayed | None = None) -> FlowRun:
    event = Origin("/shop", "e-1", "order", "orders", 0, 0, event_at, replay)
    details: dict[str, Any] = {"run_id": "a" * 32, "flow": flow, "seq": 0, "epoch": 0, "attempt": 0, "event": event}
    return FlowRun(StateChange(state=State.SCHEDULED, at=AT, **details), 0)


def seconds(histogram: Histogram) -> tuple[int, float]:
    """How many observations, and their sum."""
    return histogram.cumulative()[-1], round(histogram.sum, 3)


def test_names_kinds_and_labels_stay_as_they_are() -> None:
    found = [f"{m.name} {m.kind.value} {','.join(m.labels)}".strip() for m in METRICS]
    assert found == PINNED.split("\n")[1:-1]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_keep_to_the_conventions_and_say_what_they_are(metric: Any) -> None:
    assert metric.help.endswith(".") or metric.help.startswith("1;")
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.kind is not Kind.HISTOGRAM or metric.name.endswith("_seconds")


def test_a_run_is_counted_by_flow_and_state_and_timed_from_its_event_on() -> None:
    counts, run = Counts(["bill", "ship"], ["orders"]), a_run()
    started_at = AT.timestamp() + 0.25
    counts.took("orders", ["bill"], [])
    counts.told(run, run.advance(State.RUNNING, started_at, 1))
    counts.told(run, run.advance_task("price", "x/price/0", State.SCHEDULED, 0, started_at, 1))
    counts.told(run, run.advance(State.COMPLETED, started_at + 2, 1))
    bill = counts.flows["bill"]
    assert {state: n for state, n in bill.flow_runs.items() if n} == dict.fromkeys(
        [State.SCHEDULED, State.RUNNING, State.COMPLETED], 1
    )
    assert {state: n for state, n in bill.task_runs.items() if n} == {State.SCHEDULED: 1}
    assert (seconds(bill.start), seconds(bill.duration)) == ((1, 0.25), (1, 2.0))
    assert counts.events["orders", "started"] == 1
    assert not any(counts.flows["ship"].flow_runs.values()), "a flow that is known is told with zeros"


def test_the_first_start_counts_and_that_of_no_replay() -> None:
    counts, run = Counts(), a_run()
    counts.told(run, run.advance(State.RUNNING, AT.timestamp(), 1))
    counts.told(run, run.advance(State.RETRYING, AT.timestamp(), 1))
    counts.told(run, run.advance(State.RUNNING, AT.timestamp() + 60, 1))
    again = a_run(event_at=AT - timedelta(days=3), replay=Replayed("r", "replays", 0, 0))
    counts.told(again, again.advance(State.RUNNING, AT.timestamp(), 1))
    assert seconds(counts.flows["bill"].start) == (1, 0.0)


def test_a_run_that_never_began_has_no_duration() -> None:
    counts, run = Counts(), a_run()
    counts.told(run, run.advance(State.CANCELLED, AT.timestamp(), 1))
    assert seconds(counts.flows["bill"].duration) == (0, 0.0)


def test_clocks_that_differ_make_nothing_shorter_than_nothing() -> None:
    counts, run = Counts(), a_run(event_at=AT + timedelta(seconds=5))
    counts.told(run, run.advance(State.RUNNING, AT.timestamp(), 1))
    assert counts.flows["bill"].start.cumulative()[0] == 1
    assert seconds(counts.flows["bill"].start) == (1, 0.0)


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram()
    for value in (0.001, 0.002, 0.5, 1e9):
        histogram.observe(value)
    by_bound = dict(zip([*BOUNDS, "more"], histogram.cumulative(), strict=True))
    assert (by_bound[0.001], by_bound[0.0025], by_bound[0.25], by_bound[0.5]) == (1, 2, 2, 3)
    assert (by_bound[86_400], by_bound["more"]) == (3, 4)


def test_records_are_started_refused_or_unmatched_and_letters_have_their_reason() -> None:
    counts = Counts([], ["orders"])
    counts.took("orders", [], [])
    counts.took("orders", [], [Reason.MALFORMED_DATA])
    counts.took("orders", ["bill"], [Reason.INVALID_PARAMETERS])
    assert [counts.events["orders", outcome] for outcome in ("started", "refused", "unmatched")] == [1, 1, 1]
    assert {key: n for key, n in counts.letters.items() if n} == {
        ("orders", "malformed-data"): 1,
        ("orders", "invalid-parameters"): 1,
    }
    assert ("orders", "run-failed") in counts.letters, "what has not happened yet is told as 0, else an alert misses the first"


def test_flows_and_topics_beyond_the_limit_share_a_label() -> None:
    counts = Counts()
    for number in range(LABELS + 50):
        counts.took(f"topic-{number}", [f"flow-{number}"], [])
    assert len(counts.flows) == LABELS + 1
    assert counts.flows[OTHER].flow_runs[State.SCHEDULED] == 50
    assert counts.events[OTHER, "started"] == 50
    assert len({topic for topic, _ in counts.events}) == LABELS + 1
