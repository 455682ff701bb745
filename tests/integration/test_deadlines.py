"""Tasks that no exception stops: they end, on real workers, and nobody else's results are lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Scheduler

from engine.restarter import EXIT_CODE
from engine.states import State
from tests.integration import flows_deadlines as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import Dask, child_environment, dask_of_ones_own
from tests.waiting import eventually

S = State


class Workers:
    """The cluster's workers, as its scheduler and their parent see them."""

    def __init__(self, dask: Dask) -> None:
        self.dask = dask
        self.first = self.pids()

    def pids(self) -> dict[str, int]:
        return {name: pid for name, pid in self.dask.children.pids.items() if name.startswith("worker-")}

    def restarted(self) -> set[str]:
        return {name for name, pid in self.pids().items() if pid != self.first[name]}

    async def are_back(self) -> None:
        """Return when one at least has ended and the scheduler has two that run."""
        await eventually(lambda: len(self.restarted()) >= 1)
        await self.dask.restarts()
        async with Client(self.dask.address, asynchronous=True, set_as_default=False) as client:
            await client.wait_for_workers(2, timeout=20)
            known: int = await client.run_on_scheduler(_count_workers)
            assert known == 2


def _count_workers(dask_scheduler: Scheduler) -> int:
    return len(dask_scheduler.workers)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    # A task whose worker dies twice is given up: Dask's own number, four, would only take longer.
    environment = child_environment(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1")
    async with dask_of_ones_own(tmp_path / "dask", environment) as dask:
        yield Workers(dask)


def notes(folder: Path) -> Counter[str]:
    file = folder / "notes"
    return Counter(file.read_text().splitlines()) if file.exists() else Counter()


async def test_a_task_that_cannot_be_stopped_fails_once_and_its_neighbours_run_again(
    apps: Apps, workers: Workers, tmp_path: Path
) -> None:
    codes: list[int | None] = []
    workers.dask.on_end = lambda child: codes.append(child.exit_code)
    app = await apps.start(*FLOWS, dask=workers.dask.address)
    folder = {"folder": str(tmp_path)}
    beside = await app.send("beside", {**folder, "count": 3})  # with the stuck one all four threads are taken
    await eventually(lambda: sum(notes(tmp_path).values()) == 3)
    began = time.monotonic()
    run = await app.do("stuck", folder, "oversleep")
    assert time.monotonic() - began < 6
    assert (run.end.state, run.states("sleep_long")) == (S.FAILED, [S.SCHEDULED, S.RUNNING, S.FAILED])
    assert run.end.error is not None
    assert run.end.error.type == "TaskTimeout"
    assert "could not be stopped: the worker process was restarted" in run.end.error.message
    assert "time.sleep(60)" in run.end.error.traceback, "it says where"
    await workers.are_back()
    assert len(workers.restarted()) == 1
    assert codes == [EXIT_CODE], "it has ended in order"
    assert sum(notes(tmp_path)[line] for line in notes(tmp_path) if line.startswith("sleep")) == 1
    (tmp_path / "go").touch()
    other = await app.run("beside", beside)
    assert (other.end.state, other.result) == (S.COMPLETED, 0 + 1 + 2)
    begun = [notes(tmp_path)[f"begin {number}"] for number in range(3)]
    assert sorted(begun)[0] >= 1
    assert sum(begun) > 3, "what ran beside it ran again"


async def test_an_async_task_that_stays_when_it_is_cancelled_is_given_up_and_its_process_ends_in_order(
    apps: Apps, workers: Workers, tmp_path: Path
) -> None:
    codes: list[int | None] = []
    workers.dask.on_end = lambda child: codes.append(child.exit_code)
    app = await apps.start(*FLOWS, flows.overstay, dask=workers.dask.address)
    (tmp_path / "go").touch()
    done = await app.do("beside", {"folder": str(tmp_path), "count": 40}, "beside")
    assert done.end.state is S.COMPLETED
    run = await app.do("stays", {"folder": str(tmp_path)}, "overstay")
    assert (run.end.state, run.states("stay")) == (S.FAILED, [S.SCHEDULED, S.RUNNING, S.FAILED])
    assert run.end.error is not None
    assert "could not be stopped: the worker process was restarted" in run.end.error.message
    assert "await asyncio.sleep(60)" in run.end.error.traceback, "it says where"
    await workers.are_back()
    assert codes == [EXIT_CODE]
    assert notes(tmp_path)["stay"] == 1


async def test_a_task_that_holds_the_interpreter_fails_once_and_its_neighbours_run_again(
    apps: Apps, workers: Workers, tmp_path: Path
) -> None:
    """No Python runs in its process any more, not even to say that it has begun: the kernel ends it, and others tell."""
    app = await apps.start(*FLOWS, dask=workers.dask.address)
    folder = {"folder": str(tmp_path)}
    beside = await app.send("beside", {**folder, "count": 3})  # with the hung one all four threads are taken
    await eventually(lambda: sum(c.task == "keep_busy" and c.state is S.RUNNING for c in app.changes) == 3)
    run = await app.do("hung", folder, "hang")
    assert (run.end.state, run.states("backtrack")) == (S.FAILED, [S.SCHEDULED, S.RUNNING, S.FAILED])
    assert run.end.error is not None
    assert run.end.error.type == "TaskTimeout"
    assert "while code held the interpreter: its worker process was ended" in run.end.error.message
    begun, failed = run.of("backtrack")[1:]
    assert failed.reason == "worker restarted"
    assert failed.at - begun.at >= timedelta(seconds=0.3)
    await workers.are_back()
    [restarted] = workers.restarted()
    assert notes(tmp_path)["backtrack"] == 1
    assert "in backtrack" in (tmp_path / "dask" / "logs" / f"{restarted}.log").read_text(), "a traceback says where"
    (tmp_path / "go").touch()
    other = await app.run("beside", beside)
    assert (other.end.state, other.result) == (S.COMPLETED, 0 + 1 + 2)
    assert S.RETRYING in other.states("keep_busy"), "what ran beside it ran again"


async def test_a_task_that_holds_the_event_loop_is_tried_again_as_its_policy_says(
    apps: Apps, workers: Workers, tmp_path: Path
) -> None:
    app = await apps.start(flows.hang_once, dask=workers.dask.address)
    run = await app.do("hung", {"folder": str(tmp_path)}, "hang_once")
    assert (run.end.state, run.result) == (S.COMPLETED, 2)
    told = run.of("backtrack_once")
    assert [change.state for change in told] == [S.SCHEDULED, S.RUNNING, S.RETRYING, S.RUNNING, S.COMPLETED]
    assert (told[2].error and told[2].error.type, told[2].reason) == ("TaskTimeout", "worker restarted")
    assert notes(tmp_path) == {"backtrack": 2}


async def test_what_user_code_says_of_retries_is_done(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(*FLOWS)
    folders = {name: tmp_path / name for name in ("terminal", "retryable", "chosen")}
    runs: dict[str, Any] = {}
    for name, folder in folders.items():
        folder.mkdir()
        runs[name] = await app.do(name, {"folder": str(folder)}, name)
    assert (runs["terminal"].end.state, runs["terminal"].end.error.type) == (S.FAILED, "TerminalError")
    assert notes(folders["terminal"]) == {"give up": 1}
    assert runs["retryable"].end.state is S.COMPLETED
    key = f"{runs['retryable'].id}/come_back/0"
    assert runs["retryable"].result == {"number": 3, "key": key}
    assert notes(folders["retryable"]) == {key: 3}
    assert (runs["chosen"].end.state, runs["chosen"].end.error.type) == (S.FAILED, "FileNotFoundError")
    assert notes(folders["chosen"]) == {"choose": 2}


FLOWS = (flows.oversleep, flows.beside, flows.hang, flows.terminal, flows.retryable, flows.chosen)
