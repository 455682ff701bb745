"""Engines that are killed while graphs grow, and what a thousand runs of all shapes leave on the scheduler: nothing."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from engine.states import State
from tests.integration import flows_growing as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import child_environment, dask_of_ones_own, scheduler_holds
from tests.integration.test_takeover import engine_process, notes
from tests.waiting import eventually

S = State


async def test_killed_while_children_and_a_map_are_under_way_another_engine_goes_on(apps: Apps, tmp_path: Path) -> None:
    trees, lists = tmp_path / "trees", tmp_path / "lists"
    trees.mkdir()
    lists.mkdir()
    # Three of its tasks wait: where those had all threads of a worker, what Dask has given to that one would wait, too.
    async with dask_of_ones_own(tmp_path / "dask", child_environment(), threads=4) as dask:
        watching = apps.make(flows.tree, flows.unknown_map, dask=dask.address)
        async with engine_process(watching.settings, tmp_path / "first.log", "tests.integration.flows_growing") as first:
            await watching.follow_only()
            tree = await watching.send("trees", {"folder": str(trees), "depth": 3})
            listed = await watching.send("lists", {"folder": str(lists), "number": 10})
            await eventually(lambda: sum(line.startswith("leaf") for line in notes(trees)) == 6)
            await eventually(lambda: sum(line.startswith("after") for line in notes(lists)) == 9)
            first.kill()
            await first.wait()
        for folder in (trees, lists):
            (folder / "go").touch()
        second = await apps.start(flows.tree, flows.unknown_map, settings=watching.settings)
        for name, id, result in (("tree", tree, 8), ("unknown_map", listed, sum(range(10)))):
            run = await watching.run(name, id)
            assert run.result == result
            assert [change.seq for change in run.changes] == list(range(len(run.changes)))
        for folder in (trees, lists):
            assert max(Counter(notes(folder)).values()) == 1, "nothing finished ran again"
        await second.stop()


async def test_a_thousand_runs_of_all_shapes_leave_nothing_behind(apps: Apps, tmp_path: Path) -> None:
    """A worker dies and the engine changes in between."""
    shapes = ["map", "children", "waits", "fails", "child fails", "retries", "plain"]
    async with dask_of_ones_own(tmp_path / "dask", child_environment()) as dask:
        first = await apps.start(flows.mixed, dask=dask.address, result_ttl_seconds=0.1)
        await first.send("mixed", {"shape": "large"})
        await first.send("mixed", {"shape": "kills", "folder": str(tmp_path)})
        await first.send_many("mixed", [(f"a{n}", {"shape": shapes[n % len(shapes)]}) for n in range(500)])
        await eventually(lambda: len(first.ends()) >= 200, 60.0)
        await first.stop()
        second = await apps.start(flows.mixed, settings=first.settings)
        await second.send_many("mixed", [(f"b{n}", {"shape": shapes[n % len(shapes)]}) for n in range(498)])
        await eventually(lambda: len(second.ends()) == 1_000, 90.0)
        failing = sum("fails" in shapes[n % len(shapes)] for n in (*range(500), *range(498)))
        assert Counter(change.state for change in second.ends()) == {S.COMPLETED: 1_000 - failing, S.FAILED: failing}
        await eventually(lambda: second.open_runs == 0)
        await second.stop()
        deadline = time.monotonic() + 60.0
        # Each look is a round trip to the scheduler.
        while (left := left_by_runs(await scheduler_holds(dask.address))) != [] and time.monotonic() < deadline:
            pass
        assert left == []


def left_by_runs(held: dict[str, list[str]]) -> list[str]:
    """What the scheduler still has of any run; the gate, behind which attempts wait, is of none."""
    names = [name for kind in ("variables", "queues", "runs", "awaited") for name in held[kind]]
    clients = [client for client in held["clients"] if client.startswith(("variable-", "queue-"))]
    return [*names, *clients, *(key for key in held["tasks"] if key != "engine-gate")]
