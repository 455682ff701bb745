"""Workers whose clocks are hours ahead and hours behind: what the states, and so pages and metrics, say of time is right."""

from __future__ import annotations

import time
from pathlib import Path

from engine.parcels import decode_tasks
from engine.states import State
from tests.integration import flows_skew as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import child_environment, dask_of_ones_own
from tests.waiting import eventually

S = State
HOURS = {"worker-0": 3, "worker-1": -3}
#: Imported by each Python process of the cluster when it starts.
SHIFT = f"""
import sys, time
for name, hours in {HOURS!r}.items():
    if name in sys.orig_argv:
        time.time = lambda right=time.time, seconds=3600.0 * hours: right() + seconds
"""
#: Clocks are known as exactly as a busy scheduler hears heartbeats.
SLACK_SECONDS = 2.0


async def test_times_are_those_of_the_engine_and_nobody_waits_for_a_clock(apps: Apps, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SHIFT)
    environment = child_environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    async with dask_of_ones_own(tmp_path / "dask", environment) as dask:
        app = await apps.start(flows.skewed, flows.packed, dask=dask.address)
        begin = time.time()
        run = await app.do("skews", {"count": 8}, "skewed")
        packs = [(f"p-{number}", {"number": number}) for number in range(8)]
        await app.send_many("packs", packs)
        await eventually(lambda: len(app.ends()) == 9)
        end = time.time()
        assert run.end.state is S.COMPLETED, run.end.error
        assert run.result["values"] == list(range(9))
        assert run.result["error"] == "TaskTimeout"
        assert 0.3 <= run.result["took"] <= end - begin + SLACK_SECONDS

        used = {change.worker for change in run.changes if change.worker}
        assert len(used) == 2, "both clocks have told times"
        for change in app.changes:
            times = [change.at, *([change.next_attempt_at] if change.next_attempt_at else [])]
            times += [at for task in decode_tasks(change.tasks or b"[]") for at in (task.started_at, task.ended_at) if at]
            for at in times:
                assert begin - SLACK_SECONDS <= at.timestamp() <= end + SLACK_SECONDS, change
        started: dict[tuple[str | None, int], float] = {}
        for change in run.changes:
            if change.task is None or change.task.startswith("engine."):
                continue
            if change.state is S.RUNNING:
                started[change.task_run_id, change.attempt] = change.at.timestamp()
            elif change.state in (S.RETRYING, S.COMPLETED, S.FAILED):
                took = change.at.timestamp() - started[change.task_run_id, change.attempt]
                assert 0.0 <= took <= end - begin, change
