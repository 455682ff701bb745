"""The whole engine on real Kafka and a Dask of several processes: from the event to the end of the run."""

from __future__ import annotations

import asyncio
import gc
import re
import warnings
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from distributed import Client, Variable

import engine
from engine.states import Ownership, State, StateChange, read
from engine.subscriber import Subscription
from tests.integration import flows_graphs as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import scheduler_holds
from tests.waiting import eventually

S = State


async def test_one_event_of_three_flows_makes_three_runs(apps: Apps) -> None:
    app = await apps.start(flows.one, flows.two, flows.three)
    await app.send("numbers", {"value": 21}, id="e", type="number.new")
    runs = [await app.run(name, "e") for name in ("one", "two", "three")]
    assert [run.result for run in runs] == [42, 43, 22]
    assert len({run.id for run in runs}) == 3
    assert len(app.ends()) == 3


async def test_the_same_event_twice_makes_one_run_per_flow(apps: Apps) -> None:
    app = await apps.start(flows.one, flows.two)
    for _ in range(3):  # without a record key they go to partitions by chance: other offsets, same identity
        await app.send("numbers", {"value": 1}, id="same")
    await app.run("one", "same")
    await app.run("two", "same")
    await app.do("numbers", {"value": 2}, "one", id="after")
    await app.run("two", "after")
    accepted = [c for c in app.changes if c.state is S.SCHEDULED and c.is_flow_run]
    assert len(accepted) == 4
    assert len(app.ends()) == 4


async def test_a_diamond_tells_every_step_in_order(apps: Apps) -> None:
    app = await apps.start(flows.diamond)
    run = await app.do("diamonds", {"value": 5}, "diamond")
    assert run.result == 23
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    assert run.story[:6] == [(None, S.SCHEDULED), (None, S.RUNNING), ("double", S.SCHEDULED)] + [("add", S.SCHEDULED)] * 3
    assert run.story[-1] == (None, S.COMPLETED)
    assert sorted(run.story[6:-1]) == sorted(
        [("double", S.RUNNING), ("double", S.COMPLETED)] + [("add", S.RUNNING), ("add", S.COMPLETED)] * 3
    )
    scheduled = {change.task_run_id: change.parents for change in run.changes if change.task and change.state is S.SCHEDULED}
    top, left, right, bottom = (f"{run.id}/{task}/{n}" for n, task in enumerate(["double", "add", "add", "add"]))
    assert scheduled == {top: (), left: (top,), right: (top,), bottom: (left, right)}


async def test_results_travel_inside_lists_dicts_and_structs(apps: Apps) -> None:
    app = await apps.start(flows.carry, flows.composite, flows.spread)
    await app.send("baskets", {"skus": ["a", "bb", "ccc"]}, id="b")
    assert (await app.run("carry", "b")).result == {"first": 1, "rest": 5, "named": {"doubled": 8}}
    priced = [{"sku": sku, "cents": len(sku)} for sku in ("a", "bb", "ccc")]
    run = await app.run("composite", "b")
    assert run.result == {"priced": priced, "count": 3, "deep": [{"later": 2}]}
    assert {change.task for change in run.changes} == {None, "price", "later"}, "putting it together is no task run"
    spread = await app.do("maps", {"values": list(range(50))}, "spread")
    assert spread.result == 2450
    assert sorted({c.map_index for c in spread.of("double") if c.state is S.SCHEDULED}) == list(range(50))


async def test_a_failing_task_ends_what_needs_it_and_nothing_else(apps: Apps) -> None:
    app = await apps.start(flows.break_down)
    run = await app.do("failures", {"value": 3}, "break_down")
    failed = run.of("fail")[-1]
    assert failed.state is S.FAILED
    assert failed.error is not None
    assert (failed.error.type, failed.error.message) == ("ValueError", "no 3 here")
    assert "flows_graphs.py" in failed.error.traceback
    [cancelled] = [change for change in run.of("add") if change.state.is_end]
    assert (cancelled.state, cancelled.reason) == (S.CANCELLED, "upstream")
    doubles = {c.task_run_id: (c.state, c.reason) for c in run.of("double") if c.state.is_end}
    assert doubles == {f"{run.id}/double/2": (S.COMPLETED, None), f"{run.id}/double/3": (S.CANCELLED, "upstream")}
    assert (run.end.state, run.end.error) == (S.FAILED, failed.error)
    assert (run.end.is_flow_run, run.end.seq) == (True, len(run.changes) - 1)


async def test_a_flow_without_tasks_completes_at_once(apps: Apps) -> None:
    app = await apps.start(flows.plain)
    run = await app.do("plain", {"value": 7}, "plain")
    assert run.story == [(None, S.SCHEDULED), (None, S.RUNNING), (None, S.COMPLETED)]
    assert run.result == {"value": 7}


class TestOuterContract:
    """Byte for byte what clients in other languages rely on."""

    async def test_headers_and_data_of_state_changes(self, apps: Apps) -> None:
        app = await apps.start(flows.two)
        run = await app.do("numbers", {"value": 1}, "two", id="e")
        records = await app.records(f"{app.settings.app}.states")
        ours = [record for record in records if isinstance(read(record.value, record.headers), StateChange)]
        assert {record.key for record in ours} == {run.id.encode()}
        assert len({record.partition for record in ours}) == 1
        owners = [r for r in records if isinstance(read(r.value, r.headers), Ownership)]
        epochs = [r.offset for r in owners if r.partition == ours[0].partition]
        data = [msgspec.json.decode(record.value or b"") for record in ours]
        for seq, (record, change) in enumerate(zip(ours, data, strict=True)):
            headers = dict(record.headers)
            assert len(headers) == len(record.headers)
            kind = "task_run" if "task_run_id" in change else "flow_run"
            assert headers.pop("traceparent").startswith(b"00-")
            assert headers.pop("ce_time").decode() == change["at"]
            assert headers == {
                "ce_specversion": b"1.0",
                "ce_id": f"{run.id}/{change['epoch']}/{seq}".encode(),
                "ce_source": f"/engine/{app.settings.app}".encode(),
                "ce_type": f"engine.{kind}.{change['state'].lower()}".encode(),
                "ce_subject": run.id.encode(),
                "ce_sequence": str(seq).encode(),
                "content-type": b"application/json",
            }
            assert {"run_id", "flow", "state", "seq", "epoch", "attempt", "at"} <= set(change)
            assert (change["run_id"], change["flow"], change["seq"]) == (run.id, "two", seq)
            assert change["epoch"] == (0 if seq == 0 else epochs[-1])
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", change["at"])
            if kind == "task_run":
                assert change["task_run_id"].startswith(f"{run.id}/{change['task']}/")
            if change["state"] == "RUNNING" and kind == "task_run":
                assert change["worker"].startswith("tcp://127.0.0.1:")
        scheduled, end = data[0], data[-1]
        assert scheduled["parameters"] == {"value": 1}
        origin = scheduled["event"]
        [event] = await app.records(app.topic("numbers"))
        assert origin == {
            "source": app.source,
            "id": "e",
            "type": "test",
            "topic": event.topic,
            "partition": event.partition,
            "offset": event.offset,
            "at": origin["at"],
        }
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", origin["at"])
        assert (end["state"], end["result"]) == ("COMPLETED", 3)

    async def test_the_end_of_a_failed_run_carries_its_error(self, apps: Apps) -> None:
        app = await apps.start(flows.break_down)
        run = await app.do("failures", {"value": 3}, "break_down")
        records = await app.records(app.settings.states_topic)
        [end] = [r for r in records if ("ce_type", b"engine.flow_run.failed") in r.headers]
        error = msgspec.json.decode(end.value or b"")["error"]
        assert set(error) == {"type", "message", "traceback"}
        assert end.key == run.id.encode()

    async def test_the_key_of_a_keyed_run_is_its_ordering_key(self, apps: Apps, tmp_path: Path) -> None:
        app = await apps.start(flows.in_turn)
        (tmp_path / "go").touch()
        await app.do("keyed", {"customer": "Ada", "folder": str(tmp_path), "name": "go"}, "in_turn")
        records = await app.records(app.settings.states_topic)
        assert {r.key for r in records if isinstance(read(r.value, r.headers), StateChange)} == {b"Ada"}

    async def test_topics_are_made_as_the_settings_say(self, apps: Apps) -> None:
        app = await apps.start(flows.one, state_partitions=3, event_partitions=1)
        assert await app.log.partitions(app.settings.states_topic) == 3
        assert await app.log.partitions(app.settings.dead_letters_topic) == 1
        assert await app.log.partitions(app.topic("numbers")) == 1


class TestResultsThatStay:
    @pytest.mark.parametrize(
        ("flow", "topic", "data", "value", "reason"),
        [
            (flows.outgrow, "large", {"size": 100_000}, "x" * 100_000, "too large: 100,002 bytes"),
            (flows.keep, "complex", {}, 1 + 2j, "not encodable: Encoding objects of type complex is unsupported"),
        ],
    )
    async def test_are_had_from_the_cluster_by_any_client(
        self, apps: Apps, flow: object, topic: str, data: object, value: object, reason: str
    ) -> None:
        app = await apps.start(flow)
        run = await app.do(topic, data, flow.name)
        assert run.end.state is S.COMPLETED
        assert run.end.result_ref == f"dask:variable/run-{run.id}"
        assert run.end.reason == reason
        async with Client(apps.dask, asynchronous=True, set_as_default=False) as client:
            future = await Variable(f"run-{run.id}", client=client).get(timeout=5)
            assert await future == value

    async def test_go_when_their_time_is_over(self, apps: Apps) -> None:
        app = await apps.start(flows.outgrow, result_ttl_seconds=0.05)
        run = await app.do("large", {"size": 100_000}, "outgrow")
        while any(run.id in name for names in (await scheduler_holds(apps.dask)).values() for name in names):
            pass  # each look is a round trip to the scheduler


async def test_a_retried_task_says_when_it_goes_on(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.persevere)
    run = await app.do("retries", {"attempt": 3, "folder": str(tmp_path)}, "persevere")
    assert run.result == 6
    changes = run.of("succeed_at")
    assert [c.state for c in changes] == [S.SCHEDULED, S.RUNNING, S.RETRYING, S.RUNNING, S.RETRYING, S.RUNNING, S.COMPLETED]
    assert [c.attempt for c in changes] == [0, 1, 1, 2, 2, 3, 3]
    for before, after in ((changes[2], changes[3]), (changes[4], changes[5])):
        assert before.next_attempt_at == before.at + timedelta(seconds=0.05)
        assert after.at >= before.next_attempt_at
        assert before.error is not None
    assert (tmp_path / "notes").read_text() == "attempt\n" * 3


async def test_a_task_out_of_attempts_fails_with_its_last_error(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.persevere)
    run = await app.do("retries", {"attempt": 9, "folder": str(tmp_path)}, "persevere")
    assert run.end.state is S.FAILED
    assert run.end.error is not None
    assert run.end.error.message == "attempt 3"
    assert run.states("double") == [S.SCHEDULED, S.CANCELLED]


@pytest.mark.parametrize("kind", ["spin", "wait"])
async def test_a_task_over_its_time_fails(apps: Apps, kind: str) -> None:
    app = await apps.start(flows.overrun)
    run = await app.do("timeouts", {"kind": kind}, "overrun")
    assert run.end.state is S.FAILED
    assert run.end.error is not None
    assert run.end.error.type == "TaskTimeout"


async def test_runs_of_one_key_go_one_after_the_other_and_others_pass_by(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.in_turn, event_partitions=1)

    async def order(customer: str, name: str) -> str:
        return await app.send("keyed", {"customer": customer, "folder": str(tmp_path), "name": name})

    first, second, third = [await order("Ada", name) for name in ("1", "2", "3")]
    (tmp_path / "4").touch()
    await app.run("in_turn", await order("Bob", "4"))
    assert not app.ends(app.run_id("in_turn", first))
    for name in ("3", "2", "1"):  # the later ones might go, if they had begun
        (tmp_path / name).touch()
    runs = [await app.run("in_turn", id) for id in (first, second, third)]
    lines = [line for line in (tmp_path / "notes").read_text().splitlines() if "4" not in line]
    assert lines == ["begin 1", "end 1", "begin 2", "end 2", "begin 3", "end 3"]
    for before, after in pairwise(runs):
        assert before.end.at <= after.changes[1].at


class TestSubscribe:
    async def test_left_by_break_it_is_closed(self, apps: Apps) -> None:
        """Else Kafka's client says at the program's end that it was not, and its tasks are left behind."""
        app = await apps.start(flows.one)
        await app.do("numbers", {"value": 1}, "one")
        async for change in engine.subscribe(app=app.settings.app, kafka=app.settings.kafka, from_beginning=True):
            assert change.state is S.SCHEDULED
            break

    async def test_left_by_break_right_before_the_programs_end_it_is_closed(self, apps: Apps) -> None:
        app = await apps.start(flows.one)
        await app.do("numbers", {"value": 1}, "one")

        async def program() -> None:
            async for _ in engine.subscribe(app=app.settings.app, kafka=app.settings.kafka, from_beginning=True):
                break

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            await asyncio.to_thread(asyncio.run, program())
            gc.collect()
        assert [str(warning.message) for warning in told] == []

    async def test_filters_by_flow_state_and_run(self, apps: Apps) -> None:
        app = await apps.start(flows.one, flows.two)
        for n in range(3):
            await app.send("numbers", {"value": n}, id=str(n))
        for n in range(3):
            await app.run("one", str(n))
            await app.run("two", str(n))
        topic, wanted = app.settings.states_topic, app.run_id("two", "1")

        async def first(count: int, **filters: object) -> list[object]:
            async with Subscription(app.log, topic, from_beginning=True, **filters) as subscription:
                return [await anext(subscription) for _ in range(count)]

        ends = await first(3, flows=["one"], states=[S.COMPLETED])
        assert len(ends) >= 3
        assert {change.flow for change in ends} == {"one"}
        assert {change.state for change in ends} == {S.COMPLETED}
        whole = await first(len([c for c in app.changes if c.run_id == wanted]), run_id=wanted)
        assert [change.seq for change in whole] == list(range(len(whole)))

    async def test_a_group_goes_on_where_it_was(self, apps: Apps) -> None:
        app = await apps.start(flows.one, state_partitions=1)
        run = await app.do("numbers", {"value": 1}, "one")
        topic, group = app.settings.states_topic, f"{app.settings.app}.reader"
        async with Subscription(app.log, topic, group=group, from_beginning=True) as first:
            before = [await anext(first) for _ in range(3)]
        async with Subscription(app.log, topic, group=group, from_beginning=True) as second:
            after = [await anext(second) for _ in range(len(run.changes) - 2)]
        # The third was not delivered for good: nobody asked for a fourth.
        assert [c.seq for c in before + after] == [0, 1, 2, *range(2, len(run.changes))]


async def test_many_runs_all_complete_and_leave_nothing_on_the_scheduler(apps: Apps) -> None:
    app = await apps.start(flows.diamond, flows.break_down, state_partitions=4)
    before = await scheduler_holds(apps.dask)
    await app.send_many("diamonds", [(f"d{n}", {"value": n}) for n in range(280)])
    await app.send_many("failures", [(f"f{n}", {"value": n}) for n in range(20)])
    await eventually(lambda: len(app.ends()) == 300, 60.0)
    for n in range(280):
        assert (await app.run("diamond", f"d{n}")).result == 4 * n + 3
    for run_id in {change.run_id for change in app.changes}:
        run = await app.run_of(run_id)
        assert [change.seq for change in run.changes] == list(range(len(run.changes)))
        assert all(states_end(run.changes, task) for task in {c.task_run_id for c in run.changes})
    await app.stop()
    ours = {change.run_id for change in app.changes}
    await eventually_on_scheduler(apps.dask, ours)
    after = await scheduler_holds(apps.dask)
    assert set(after["clients"]) <= set(before["clients"])


def states_end(changes: list[object], task_run_id: str | None) -> bool:
    """Whether a task run's last change, or the run's, is an end."""
    return [c for c in changes if c.task_run_id == task_run_id][-1].state.is_end


async def eventually_on_scheduler(address: str, run_ids: set[str]) -> None:
    """Wait until the scheduler knows nothing of these runs any more."""
    async with asyncio.timeout(10):
        while True:
            held = await scheduler_holds(address)
            if not any(
                run_id in name
                for kind in ("tasks", "clients", "variables", "runs")
                for name in held[kind]
                for run_id in run_ids
            ):
                return


async def test_times_are_those_of_what_happened(apps: Apps) -> None:
    app = await apps.start(flows.two)
    run = await app.do("numbers", {"value": 1}, "two")
    times: list[datetime] = [change.at for change in run.changes if change.task == "double"]
    assert times == sorted(times)
    assert run.changes[0].at <= times[0] <= times[-1] <= run.end.at
