"""A short soak: real Kafka, real Dask, engines as processes, and everything that the nemesis can do; longer ones by hand."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from engine.command_errors import ApacheError
from tests.chaos.checker import check
from tests.chaos.figures import figures, text
from tests.chaos.histories import Histories
from tests.chaos.soak import Plan, soak

#: Everything else waits for conditions, so a slow machine only takes longer. The session is longer than by hand, so that no
#: machine is too slow for a heartbeat.
PLAN = Plan(seconds=45.0, seed=7, events_per_second=8.0, gap_seconds=0.8, session_seconds=4.0)


async def soaked(directory: Path) -> Histories:
    try:
        return await soak(PLAN, directory)
    except ApacheError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.timeout(1800)
async def test_nothing_is_lost_or_doubled_whatever_is_killed_paused_or_added(tmp_path: Path) -> None:
    histories = await soaked(tmp_path)
    violations = check(histories)
    print(text(figures(histories, violations)))
    assert violations == []
    done = Counter((fault.what, fault.whom) for fault in histories.faults)
    assert sum(count for (what, _), count in done.items() if what in ("kill", "stop", "leave")) >= 3, "nothing was done"
    assert any(one.is_acknowledged for one in histories.sent)
