"""What workers tell, decoded, with times by the scheduler's clock, which knows by their heartbeats how far theirs are off."""

from __future__ import annotations

import time

from distributed import Scheduler

from engine.executor import Report, decode_reports
from engine.parcels import Outcome, decode_outcomes
from engine.skews import outcomes_in_step, report_in_step


def reports_of(scheduler: Scheduler, worker: str, reports: bytes) -> list[Report]:
    """Reports as a worker sent them."""
    off_seconds, now = _off_seconds(scheduler, worker), time.time()
    return [report_in_step(report, off_seconds, now) for report in decode_reports(reports)]


def outcomes_of(scheduler: Scheduler, worker: str, outcomes: bytes) -> list[Outcome]:
    """Outcomes of packed runs as a worker sent them."""
    return outcomes_in_step(decode_outcomes(outcomes), _off_seconds(scheduler, worker), time.time())


def _off_seconds(scheduler: Scheduler, worker: str) -> float:
    """How much a worker's clock is behind; 0 where the worker has gone meanwhile."""
    state = scheduler.workers.get(worker)
    return 0.0 if state is None else float(state.time_delay)
