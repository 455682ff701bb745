"""The packed lane on real Kafka and Dask processes: failures, deaths, takeovers and results touch one run alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from distributed import Client, Variable

from engine.states import State
from tests.integration import flows_packed as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import child_environment, dask_of_ones_own, scheduler_holds
from tests.integration.test_takeover import engine_process, notes
from tests.waiting import eventually

S = State


async def test_a_run_that_kills_its_worker_is_found_and_all_others_complete(apps: Apps, tmp_path: Path) -> None:
    async with dask_of_ones_own(tmp_path / "dask", child_environment()) as dask:
        app = await apps.start(flows.small, dask=dask.address)
        how = {13: "dies", 7: "fails"}
        events = [(f"e{n}", {"number": n, "how": how.get(n, ""), "folder": str(tmp_path)}) for n in range(40)]
        await app.send_many("small", events)
        await eventually(lambda: len(app.ends()) == 40, 90.0)
        ends = {n: (await app.run("small", f"e{n}")).end for n in range(40)}
        assert ends.pop(13).state is S.CRASHED
        failed = ends.pop(7)
        assert (failed.state, failed.error and failed.error.message) == (S.FAILED, "no")
        assert {n: msgspec.json.decode(end.result) for n, end in ends.items()} == {n: 2 * n + 2 for n in ends}
        # Three deaths of its own, and those of the parcels that had to be split before it was alone.
        assert 3 <= notes(tmp_path).count("13") <= 3 + 6
        await app.stop()


async def test_only_the_runs_own_changes_are_told_and_the_result_is_that_of_the_unpacked_flow(
    apps: Apps, tmp_path: Path
) -> None:
    app = await apps.start(flows.small, flows.unpacked)
    data = {"number": 4, "how": "", "folder": str(tmp_path)}
    packed, unpacked = await app.do("small", data, "small"), await app.do("plain", data, "unpacked")
    assert packed.story == [(None, S.SCHEDULED), (None, S.RUNNING), (None, S.COMPLETED)]
    assert packed.result == unpacked.result == 10
    tasks = msgspec.json.decode(packed.end.tasks)
    assert [(task["task"], task["state"], task["attempt"]) for task in tasks] == [
        ("act", "COMPLETED", 1),
        ("double", "COMPLETED", 1),
    ]


async def test_nobody_waits_on_a_worker_for_the_next_attempt(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.tries)
    run = await app.do("tries", {"folder": str(tmp_path), "name": "n"}, "tries")
    assert [(change.state, change.attempt) for change in run.changes[1:]] == [
        (S.RUNNING, 1),
        (S.RETRYING, 1),
        (S.RUNNING, 2),
        (S.RETRYING, 2),
        (S.RUNNING, 3),
        (S.COMPLETED, 3),
    ]
    assert run.result == 6


async def test_killed_over_a_parcel_another_engine_hears_of_its_runs_and_none_runs_again(apps: Apps, tmp_path: Path) -> None:
    watching = apps.make(flows.small)
    async with engine_process(watching.settings, tmp_path / "first.log", "tests.integration.flows_packed") as first:
        await watching.follow_only()
        events = [(f"e{n}", {"number": n, "how": "waits" if n == 0 else "", "folder": str(tmp_path)}) for n in range(20)]
        await watching.send_many("small", events)
        await eventually(lambda: "0" in notes(tmp_path))
        first.kill()
        await first.wait()
    (tmp_path / "go").touch()  # what was under way ends while nobody owns it
    await apps.start(flows.small, settings=watching.settings)
    for n in range(20):
        assert (await watching.run("small", f"e{n}")).result == 2 * n + 2
    assert Counter(notes(tmp_path)) == Counter(str(n) for n in range(20))


async def test_code_that_cannot_be_stopped_fails_as_its_policy_says_and_no_other_run_is_blamed(
    apps: Apps, tmp_path: Path
) -> None:
    async with dask_of_ones_own(tmp_path / "dask", child_environment(), workers=1) as dask:
        app = await apps.start(flows.small, flows.stuck, flows.hung, dask=dask.address)
        beside = [(f"b{n}", {"number": n, "how": "waits" if n == 1 else "", "folder": str(tmp_path)}) for n in range(3)]
        await app.send_many("small", beside)
        await eventually(lambda: len(app.ends()) == 2 and len(notes(tmp_path)) == 3)
        id = await app.send("stuck", {"seconds": 60})
        await app.send_many("stuck", [(f"e{n}", {"seconds": 0}) for n in range(10)])
        run = await app.run("stuck", id)
        assert (run.end.state, run.end.error and run.end.error.type) == (S.FAILED, "TaskTimeout")
        assert run.end.error is not None
        assert "its code could not be stopped: the worker process was restarted" in run.end.error.message
        assert "time.sleep(seconds)" in run.end.error.traceback, "it says where"
        assert [(task["task"], task["attempt"]) for task in msgspec.json.decode(run.end.tasks)] == [("sleep_on", 1)]
        await eventually(lambda: len(app.ends()) == 2 + 11, 60.0)
        await eventually(lambda: notes(tmp_path).count("1") == 2)
        # One that holds the interpreter: nothing in its process gets on, so that others have to tell.
        run = await app.do("hung", {"number": 7, "how": "hangs", "folder": str(tmp_path)}, "hung")
        assert [(change.state, change.attempt) for change in run.changes[1:]] == [
            (S.RUNNING, 1),
            (S.RETRYING, 1),
            (S.RUNNING, 2),
            (S.COMPLETED, 2),
        ]
        failed = run.changes[2].error
        assert failed is not None
        assert failed.type == "TaskTimeout"
        assert "while code held the interpreter: its worker process was ended" in failed.message
        assert notes(tmp_path).count("search 7") == 2, "once an attempt"
        (tmp_path / "go").touch()
        assert (await app.run("small", "b1")).story == [(None, S.SCHEDULED), (None, S.RUNNING), (None, S.COMPLETED)]
        assert [notes(tmp_path).count(str(n)) for n in range(3)] == [1, 3, 1], (
            "what ran beside ran again, what had ended did not"
        )
        await app.stop()


@pytest.mark.parametrize("stored", [False, True])
async def test_a_result_that_does_not_travel_is_had_by_its_reference(apps: Apps, tmp_path: Path, stored: bool) -> None:
    results = f"file://{tmp_path}" if stored else ""
    app = await apps.start(flows.large, results=results, result_ttl_seconds=600.0)
    run = await app.do("large", {"size": 50_000}, "large")
    assert run.end.reason == "too large: 50,002 bytes"
    if stored:
        assert run.end.result_ref == f"file://{tmp_path}/{app.settings.app}/{run.id}/result-result.json"
        return
    assert run.end.result_ref == f"dask:variable/run-{run.id}"
    async with Client(apps.dask, asynchronous=True, set_as_default=False) as client:
        assert len(await (await Variable(f"run-{run.id}", client=client).get(timeout=5))) == 50_000


async def test_a_result_is_there_also_where_its_run_was_over_long_before_its_parcel(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.large_or_held, results="", result_ttl_seconds=600.0)
    names = {f"e{n}": ("held" if n % 10 == 9 else "large") for n in range(200)}
    await app.send_many("held", [(id, {"folder": str(tmp_path), "name": name}) for id, name in names.items()])
    large = {app.run_id("large_or_held", id) for id, name in names.items() if name == "large"}
    # Those that lie before a held one in their parcel end; the parcel does not.
    await eventually(lambda: len(app.ends()) >= 9)
    await eventually(lambda: app.open_runs == len(names) - len(app.ends()))
    early = {end.run_id for end in app.ends()} & large
    (tmp_path / "go").touch()
    await eventually(lambda: len(app.ends()) == len(names))
    async with Client(apps.dask, asynchronous=True, set_as_default=False) as client:
        for run_id in sorted(early)[:20]:
            assert len(await (await Variable(f"run-{run_id}", client=client).get(timeout=30))) == 100_000


async def test_a_result_on_the_cluster_goes_when_its_time_is_over(apps: Apps) -> None:
    app = await apps.start(flows.large, results="", result_ttl_seconds=0.5)
    run = await app.do("large", {"size": 50_000}, "large")
    assert run.end.result_ref == f"dask:variable/run-{run.id}"
    while any(run.id in name for names in (await scheduler_holds(apps.dask)).values() for name in names):
        pass  # each look is a round trip to the scheduler
