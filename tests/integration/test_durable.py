"""Async flows on real Kafka and Dask: they outlive their engine, wait for events, and say when they have changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from engine.flows import Flow
from engine.states import State
from tests.integration import flows_durable as flows
from tests.integration.conftest import Apps
from tests.integration.test_takeover import engine_process, notes
from tests.waiting import eventually

S = State


async def test_killed_while_it_waits_and_while_a_task_runs_a_flow_goes_on(apps: Apps, tmp_path: Path) -> None:
    watching = apps.make(flows.checkout)
    settings = watching.settings
    topic = watching.topic("orders")
    async with engine_process(settings, tmp_path / "first.log", "tests.integration.flows_durable") as first:
        await watching.follow_only()
        data = {"order": "o-1", "folder": str(tmp_path), "topic": topic}
        id = await watching.send("orders", data, type="order.created")
        run_id = watching.run_id("checkout", id)
        await eventually(lambda: any(c.task == "engine.wait_for_event" and c.run_id == run_id for c in watching.changes))
        first.kill()
        await first.wait()
    # While nobody runs: found all the same.
    await watching.send("orders", {"order": "o-1", "amount": 5}, type="order.paid")
    async with engine_process(settings, tmp_path / "second.log", "tests.integration.flows_durable") as second:
        await eventually(lambda: "last" in notes(tmp_path))
        second.kill()
        await second.wait()
    (tmp_path / "go").touch()  # the task ends while nobody owns it
    await apps.start(flows.checkout, settings=settings)
    run = await watching.run_of(run_id)
    result = run.result
    then = result.pop("then")
    assert result == {"first": ["one", "two", "ValueError"], "paid": 5, "last": "last", "rows": 300, "slept": True}
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    assert Counter(notes(tmp_path)) == Counter({"one": 1, "two": 1, "fail": 1, then: 1, "last": 1}), (
        "nothing ran again, time and chance"
    )
    assert len({change.epoch for change in run.changes[1:]}) == 3, "three owners"


async def test_a_thousand_waiting_flows_take_no_place_and_all_go_on(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.wait_only, max_open_runs=50)
    topic = app.topic("orders")
    count = 1_000
    for n in range(count):
        data = {"order": str(n), "folder": str(tmp_path), "topic": topic}
        await app.send("orders", data, id=f"c{n}", type="order.created")

    def waiting() -> int:
        return sum(change.task == "engine.wait_for_event" and change.state is S.RUNNING for change in app.changes)

    await eventually(lambda: waiting() == count, 60.0)
    for n in range(count):
        await app.send("orders", {"order": str(n), "amount": n}, id=f"p{n}", type="order.paid")
    await eventually(lambda: len(app.ends()) == count, 60.0)
    assert (await app.run("wait_only", "c7")).result == 7


async def test_a_flow_that_has_changed_ends_with_both_sequences_of_calls(apps: Apps, tmp_path: Path) -> None:
    first = await apps.start(flows.before)
    id = await first.send("changes", {"folder": str(tmp_path)})
    await eventually(lambda: "b" in notes(tmp_path))
    await first.stop()
    changed: Flow[..., Any] = Flow(flows.after.function, flows.after.triggers, "changing")
    second = await apps.start(changed, settings=first.settings)
    run = await second.run("changing", id)
    (tmp_path / "go").touch()
    assert (run.end.state, run.end.error and run.end.error.type) == (S.CRASHED, "FlowChanged")
    message = run.end.error.message if run.end.error else ""
    assert "Recorded: step/0, step/1" in message
    assert "Now: step/0, large/1" in message


async def test_a_flow_that_blocks_is_stopped_and_the_others_go_on(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.block, flows.wait_only, flow_timeout_seconds=0.5)
    id = await app.send("blocks", {"folder": str(tmp_path)})
    run = await app.run("block", id)
    assert (run.end.state, run.end.error and run.end.error.type) == (S.FAILED, "FlowBlocked")
    topic = app.topic("orders")
    data = {"order": "o", "folder": str(tmp_path), "topic": topic}
    other = await app.send("orders", data, type="order.created")
    await app.send("orders", {"order": "o", "amount": 3}, type="order.paid")
    assert (await app.run("wait_only", other)).result == 3
