"""engine.skews: times of a clock that is wrong are moved, and how long something took stays as it was measured."""

from __future__ import annotations

import msgspec
import pytest

from engine.executor import Report
from engine.parcels import Outcome, TaskOutcome, decode_tasks, encode_tasks
from engine.skews import LEAST_SECONDS, outcomes_in_step, report_in_step
from engine.states import State

NOW = 1_700_000_000.0
HOURS = 3 * 3600.0
REPORT = Report("r", "0", State.COMPLETED, 1, NOW - 1.5, NOW - 0.5, "tcp://w")


@pytest.mark.parametrize("off_seconds", [HOURS, -HOURS])
def test_a_clock_that_is_hours_off_is_put_right(off_seconds: float) -> None:
    told = msgspec.structs.replace(REPORT, started_at=REPORT.started_at - off_seconds, at=REPORT.at - off_seconds)
    assert report_in_step(told, off_seconds, NOW) == REPORT
    never = msgspec.structs.replace(told, started_at=0.0)
    assert report_in_step(never, off_seconds, NOW).started_at == 0.0

    tasks = encode_tasks([TaskOutcome("t", "0", State.COMPLETED, 1, told.started_at, told.at)])
    outcome = Outcome("r", 1, State.COMPLETED, told.started_at, told.at, tasks=tasks)
    [moved] = outcomes_in_step([outcome], off_seconds, NOW)
    assert (moved.started_at, moved.ended_at) == (NOW - 1.5, NOW - 0.5)
    [entry] = decode_tasks(moved.tasks)
    assert entry.started_at is not None
    assert entry.ended_at is not None
    assert (entry.started_at.timestamp(), entry.ended_at.timestamp()) == (NOW - 1.5, NOW - 0.5)


def test_nothing_lies_in_the_future_and_small_differences_stay() -> None:
    late = report_in_step(REPORT, 60.0, NOW)  # a heartbeat that was heard late: the clock is right
    assert (late.started_at, late.at) == (NOW - 1.0, NOW)
    assert report_in_step(REPORT, LEAST_SECONDS - 0.1, NOW) is REPORT
    assert outcomes_in_step([], HOURS, NOW) == []
