"""Dask that dies: what ran is run again and says why, what had finished is not, and until Dask is back the engine says so."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from distributed import Client, Variable

from engine.dask_deaths import WORKER_DIED
from engine.states import State
from tests.app_under_test import AppUnderTest
from tests.integration import flows_mortal as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import SharedDask, child_environment
from tests.waiting import eventually

S = State
PATIENCE_SECONDS = 60.0
FLOWS = (flows.voyage, flows.family, flows.trip, flows.anchor)


@pytest.fixture(scope="module")
def mortal_dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedDask]:
    """A Dask that these tests may kill."""
    shared = SharedDask(tmp_path_factory.mktemp("mortal-dask"), child_environment())
    yield shared
    shared.stop()


@pytest.fixture
async def app(kafka: str, mortal_dask: SharedDask, tmp_path: Path) -> AsyncIterator[AppUnderTest]:
    apps = Apps(kafka, mortal_dask.address)
    app = await apps.start(*FLOWS, http="127.0.0.1:0", results=f"file://{tmp_path}/results")
    yield app
    await apps.close()


def notes(folder: Path) -> list[str]:
    file = folder / "notes"
    return file.read_text().splitlines() if file.exists() else []


def holders(folder: Path) -> list[int]:
    """The processes that have held, in order."""
    return [int(note.split()[1]) for note in notes(folder) if note.startswith("hold")]


async def under_way(app: AppUnderTest, folder: Path) -> str:
    """Start a run and wait until all of it has ended but the task that waits."""
    id = await app.send("voyages", {"folder": str(folder)})
    await app.heard(task="hold", state=S.RUNNING)
    ended = {"quick", "after", "treasure"}
    await eventually(lambda: sum(c.task in ended and c.state is S.COMPLETED for c in app.changes) == 9, PATIENCE_SECONDS)
    return id


def finished_ones(folder: Path) -> Counter[str]:
    return Counter(note for note in notes(folder) if not note.startswith("hold"))


async def test_a_worker_that_dies_has_its_task_tried_again_and_nothing_that_had_finished(
    app: AppUnderTest, tmp_path: Path
) -> None:
    id = await under_way(app, tmp_path)
    before = finished_ones(tmp_path)
    os.kill(holders(tmp_path)[0], signal.SIGKILL)
    retrying = await app.heard(task="hold", state=S.RETRYING)
    await eventually(lambda: len(holders(tmp_path)) == 2, PATIENCE_SECONDS)
    (tmp_path / "go").touch()
    run = await app.run("voyage", id)
    assert (run.end.state, run.result) == (S.COMPLETED, 42)
    first, again = [change for change in run.of("hold") if change.state is S.RUNNING]
    assert (retrying.reason, retrying.error and retrying.error.type) == ("worker died", WORKER_DIED)
    assert first.worker is not None
    assert retrying.error is not None
    assert first.worker in retrying.error.message
    assert again.worker != first.worker
    assert run.states("hold") == [S.SCHEDULED, S.RUNNING, S.RETRYING, S.RUNNING, S.COMPLETED]
    assert [change.attempt for change in run.of("hold")] == [0, 1, 1, 2, 2]
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    assert finished_ones(tmp_path) == before, "what had finished ran again"
    assert set(before.values()) == {1}


async def test_a_parent_whose_worker_dies_finds_its_children_again(app: AppUnderTest, tmp_path: Path) -> None:
    id = await app.send("families", {"folder": str(tmp_path)})
    await eventually(lambda: len(holders(tmp_path)) == 1, PATIENCE_SECONDS)
    await app.heard(task="parent", state=S.RUNNING)
    os.kill(holders(tmp_path)[0], signal.SIGKILL)
    await app.heard(task="parent", state=S.RETRYING)
    await eventually(lambda: len(holders(tmp_path)) == 2, PATIENCE_SECONDS)
    (tmp_path / "go").touch()
    run = await app.run("family", id)
    assert (run.end.state, run.result) == (S.COMPLETED, ["child 0", "child 1", "late child"])
    assert len({change.task_run_id for change in run.of("quick")}) == 3, "two children, and the late one"
    assert Counter(run.states("parent")) == {S.SCHEDULED: 1, S.RUNNING: 2, S.RETRYING: 1, S.COMPLETED: 1}


async def test_a_death_takes_none_of_the_attempts_that_a_retry_policy_gives(app: AppUnderTest, tmp_path: Path) -> None:
    id = await app.send("stumbles", {"folder": str(tmp_path)})
    await eventually(lambda: len(holders(tmp_path)) == 1, PATIENCE_SECONDS)
    await app.heard(task="stumble", state=S.RUNNING)
    os.kill(holders(tmp_path)[0], signal.SIGKILL)
    run = await app.run("trip", id)
    assert (run.end.state, run.result) == (S.COMPLETED, "there")
    assert [(c.state, c.attempt) for c in run.of("stumble") if c.state is not S.SCHEDULED] == [
        *((S.RUNNING, 1), (S.RETRYING, 1), (S.RUNNING, 2), (S.RETRYING, 2), (S.RUNNING, 3), (S.COMPLETED, 3))
    ]


async def test_while_the_scheduler_is_away_readyz_says_so_and_open_runs_go_on_when_it_is_back(
    app: AppUnderTest, mortal_dask: SharedDask, tmp_path: Path
) -> None:
    id = await under_way(app, tmp_path)
    waiting = await app.send("anchors", {"topic": app.topic("anchors")}, type="anchor.dropped")
    await app.heard(task="engine.wait_for_event", state=S.RUNNING)
    mortal_dask.kill()
    async with httpx.AsyncClient(base_url=f"http://{app.app.http}") as client:
        await eventually(lambda: app.app.readiness()["dask"] != "ok", PATIENCE_SECONDS)
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert mortal_dask.address in answer.json()["parts"]["dask"]
        mortal_dask.start()
        await eventually(lambda: len(holders(tmp_path)) == 2, PATIENCE_SECONDS)
        (tmp_path / "go").touch()
        run = await app.run("voyage", id)
        assert (await client.get("/readyz")).status_code == 200
    assert (run.end.state, run.result) == (S.COMPLETED, 42)
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    finished = finished_ones(tmp_path)
    assert finished["treasure"] == 1, "what was kept is read back"
    assert set(finished.values()) == {1}, "what nobody needs is not made again"
    async with Client(mortal_dask.address, asynchronous=True, set_as_default=False) as dask:
        final = await Variable(f"run-{app.run_id('anchor', waiting)}", client=dask).get(timeout=10)
        assert final.status == "pending", "a run that only waits has its final future there as well"
        await app.send("anchors", {}, type="anchor.weighed")
        assert await final == "afloat"
