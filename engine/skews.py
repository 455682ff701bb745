"""Skews: brings the times that workers tell onto the scheduler's clock, where a worker's own is wrong; pure.

Without it a worker whose clock is hours ahead has others wait for hours: sleeps, retries after a takeover, and the clock of a
flow all follow from the times that workers tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import msgspec

from engine.executor import Report
from engine.parcels import Outcome, TaskEntry, decode_tasks, encode_entries

#: Less is left as it is: how far a clock is off is only known as exactly as a busy scheduler hears of it.
LEAST_SECONDS = 5.0


def report_in_step(report: Report, off_seconds: float, now: float) -> Report:
    """A report of a worker whose clock is so much behind (ahead: below 0), by the clock that says ``now``."""
    if abs(off_seconds) < LEAST_SECONDS:
        return report
    moved = _move(report.at, off_seconds, now)
    # By the same: how long it ran was measured right.
    started_at = report.started_at + moved - report.at if report.started_at else 0.0
    return msgspec.structs.replace(report, started_at=started_at, at=moved)


def outcomes_in_step(outcomes: Sequence[Outcome], off_seconds: float, now: float) -> list[Outcome]:
    """The same for what became of packed runs."""
    if abs(off_seconds) < LEAST_SECONDS:
        return list(outcomes)
    return [_outcome_in_step(outcome, off_seconds, now) for outcome in outcomes]


def _outcome_in_step(outcome: Outcome, off_seconds: float, now: float) -> Outcome:
    ended_at = _move(outcome.ended_at, off_seconds, now)
    by = ended_at - outcome.ended_at
    tasks = encode_entries([_entry_in_step(entry, timedelta(seconds=by)) for entry in decode_tasks(outcome.tasks)])
    return msgspec.structs.replace(outcome, started_at=outcome.started_at + by, ended_at=ended_at, tasks=tasks)


def _entry_in_step(entry: TaskEntry, by: timedelta) -> TaskEntry:
    if entry.started_at is None or entry.ended_at is None:
        return entry
    return msgspec.structs.replace(entry, started_at=entry.started_at + by, ended_at=entry.ended_at + by)


def _move(at: float, off_seconds: float, now: float) -> float:
    """Nothing that was told lies in the future."""
    return min(at + off_seconds, now)
