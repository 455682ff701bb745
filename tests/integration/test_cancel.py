"""Cancelling on real Kafka and Dask processes: what runs is stopped, nothing more begins, all that is open ends CANCELLED."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from engine.planning import SLEEP
from engine.states import State
from tests.app_under_test import AppUnderTest, Run
from tests.integration import flows_cancel as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import scheduler_holds
from tests.integration.test_takeover import engine_process
from tests.waiting import eventually

S = State


def notes(folder: Path) -> Counter[str]:
    file = folder / "notes"
    return Counter(file.read_text().split("\n")[:-1] if file.exists() else [])


def assert_cancelled(run: Run, reason: str = "enough") -> None:
    """Gapless, all open tasks CANCELLED, the run last, with the reason."""
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    assert (run.end.is_flow_run, run.end.state, run.end.reason) == (True, S.CANCELLED, reason)
    ends = {change.task_run_id: change for change in run.changes if change.task_run_id and change.state.is_end}
    assert ends.keys() == {change.task_run_id for change in run.changes if change.task_run_id}
    assert all(end.state is not S.CANCELLED or end.reason == "cancelled" for end in ends.values())


async def until_nothing_is_held(dask: str, run_id: str) -> None:
    while any(run_id in name for names in (await scheduler_holds(dask)).values() for name in names):
        pass  # each look is a round trip to the scheduler


async def begin_everything(app: AppUnderTest, folder: Path) -> str:
    """A run of which a task is in every condition; answers its id."""
    run_id = app.run_id("everything", await app.send("all", {"folder": str(folder)}))
    await app.heard(task="fail", state=S.RETRYING)
    await eventually(lambda: notes(folder) == Counter({"spin": 2, "wait": 1, "parent": 1}))
    return run_id


async def test_running_tasks_are_stopped_and_nothing_more_begins(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.everything)
    run_id = await begin_everything(app, tmp_path)
    await app.cancel(run_id)
    run = await app.run_of(run_id)
    assert_cancelled(run)
    left = Counter({"spin": 2, "left spin": 2, "wait": 1, "left wait": 1, "parent": 1, "left parent": 1})
    await eventually(lambda: notes(tmp_path) == left)
    await until_nothing_is_held(apps.dask, run_id)
    await app.cancel(run_id)  # it has ended: nobody minds
    assert not [change for change in app.changes if change.run_id == run_id and change.seq > run.end.seq]


async def test_a_cancellation_outlives_the_engine_that_should_have_heard_it(apps: Apps, tmp_path: Path) -> None:
    app = apps.make(flows.everything)
    async with engine_process(app.settings, tmp_path / "first.log", "tests.integration.flows_cancel") as first:
        await app.follow_only()
        run_id = await begin_everything(app, tmp_path)
        first.kill()
        await first.wait()
        await app.cancel(run_id)
        async with engine_process(app.settings, tmp_path / "second.log", "tests.integration.flows_cancel"):
            assert_cancelled(await app.run_of(run_id))
            await eventually(lambda: notes(tmp_path)["left spin"] == 2)
            await until_nothing_is_held(apps.dask, run_id)


async def test_what_waits_ends_at_once(apps: Apps, tmp_path: Path) -> None:
    """For time, for its key, for its next attempt."""
    app = await apps.start(flows.sleepy, flows.again, flows.keyed)
    folder = str(tmp_path)
    sleeping = app.run_id("sleepy", await app.send("sleepy", {"folder": folder}))
    retrying = app.run_id("again", await app.send("again", {"folder": folder}))
    first = app.run_id("keyed", await app.send("keyed", {"folder": folder, "name": "first"}))
    await eventually(lambda: notes(tmp_path)["spin"] == 1)
    second = app.run_id("keyed", await app.send("keyed", {"folder": folder, "name": "second"}))
    last = app.run_id("keyed", await app.send("keyed", {"folder": folder, "name": "last"}))
    await app.heard(task=SLEEP, state=S.RUNNING)
    await app.heard(task=None, state=S.RETRYING)
    await eventually(lambda: any(change.run_id == last for change in app.changes))
    for run_id in (sleeping, retrying, second):
        await app.cancel(run_id)
        assert_cancelled(await app.run_of(run_id))
    assert not app.ends(last)
    await app.cancel(first)
    assert_cancelled(await app.run_of(first))
    assert (await app.run_of(last)).end.state is S.COMPLETED, "the next of its key goes on"
    assert notes(tmp_path)["spin"] == 1, "the second never began"


async def test_packed_runs_that_have_not_begun_do_not(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.packed)
    folder, names = str(tmp_path), [f"held {number}" for number in range(20)]
    await app.send_many("packed", [(name, {"folder": folder, "name": name}) for name in names])
    await eventually(lambda: notes(tmp_path))
    for name in names:
        await app.cancel(app.run_id("packed", name))
        assert_cancelled(await app.run("packed", name))
    (tmp_path / "go").touch()
    assert (await app.do("packed", {"folder": folder, "name": "free"}, "packed")).end.state is S.COMPLETED
    await eventually(lambda: app.open_runs == 0)
    assert len(app.ends()) == len(names) + 1
    assert sum(notes(tmp_path).values()) < len(names), "those behind the ones that workers were at"


async def test_a_packed_run_of_an_engine_that_died_is_cancelled_by_the_next(apps: Apps, tmp_path: Path) -> None:
    app = apps.make(flows.packed)
    folder = str(tmp_path)
    async with engine_process(app.settings, tmp_path / "first.log", "tests.integration.flows_cancel") as first:
        await app.follow_only()
        await app.send("packed", {"folder": folder, "name": "held"}, id="held")
        await eventually(lambda: notes(tmp_path))
        await eventually(lambda: any(change.state is S.RUNNING for change in app.changes))
        first.kill()
        await first.wait()
    await app.cancel(app.run_id("packed", "held"))
    async with engine_process(app.settings, tmp_path / "second.log", "tests.integration.flows_cancel"):
        assert_cancelled(await app.run("packed", "held"))
        (tmp_path / "go").touch()
        assert (await app.do("packed", {"folder": folder, "name": "free"}, "packed")).end.state is S.COMPLETED
        while (await scheduler_holds(apps.dask))["packed"] != []:
            pass  # each look is a round trip to the scheduler
    assert len(app.ends()) == 2
