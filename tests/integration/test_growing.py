"""Graphs that grow while they run, on real Kafka and real workers: maps of unknown length, tasks that start tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Scheduler

from engine.executor import run_of
from engine.states import State
from tests.app_under_test import Run
from tests.integration import flows_growing as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import SharedDask, child_environment, dask_of_ones_own
from tests.integration.otlp_under_test import Receiver
from tests.integration.test_takeover import notes
from tests.waiting import eventually

S = State
ENDED = {S.COMPLETED, S.FAILED, S.CRASHED, S.CANCELLED}


def assert_whole(run: Run) -> None:
    """Gapless, every task run at its end, and the run's own end the last."""
    assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    assert run.end.is_flow_run
    latest = {change.task_run_id: change.state for change in run.changes}
    assert {id: state for id, state in latest.items() if state not in ENDED} == {}


class TestMaps:
    async def test_chained_over_an_unknown_length_go_element_by_element(self, apps: Apps, tmp_path: Path) -> None:
        (tmp_path / "hold 3").touch()
        app = await apps.start(flows.stages)
        id = await app.send("stages", {"number": 8, "folder": str(tmp_path)})
        others = [n for n in range(8) if n != 3]
        await eventually(lambda: {f"third {n + 100}" for n in others} <= set(notes(tmp_path)))
        assert "first 3" not in notes(tmp_path), "one is in its first stage while the others have left their third"
        (tmp_path / "go").touch()
        run = await app.run("stages", id)
        assert run.result == sum(range(8)) + 8 * 1_100
        assert_whole(run)
        assert sorted(c.map_index for c in run.of("third_stage") if c.state is S.COMPLETED) == list(range(8))
        assert set(Counter(notes(tmp_path)).values()) == {1}

    async def test_of_nothing_are_reduced_to_what_nothing_gives(self, apps: Apps) -> None:
        app = await apps.start(flows.empty)
        run = await app.do("empty", {"number": 0}, "empty")
        assert run.result == {"known": 0, "unknown": 0}
        assert_whole(run)

    async def test_zipped_of_unequal_length_fail_and_both_are_named(self, apps: Apps) -> None:
        app = await apps.start(flows.unequal, flows.unequal_at_once)
        id = await app.send("unequal", {"left": 2, "right": 3})
        run = await app.run("unequal", id)
        assert (run.end.state, run.end.error and run.end.error.type) == (S.FAILED, "WiringError")
        message = run.end.error.message if run.end.error else ""
        assert [part for part in ("count_to", "of 2", "double", "of 3") if part not in message] == []
        assert_whole(run)
        run = await app.run("unequal_at_once", id)
        message = run.end.error.message if run.end.error else ""
        assert [part for part in ("range(0, 2) of 2", "range(0, 3) of 3") if part not in message] == []

    async def test_take_a_generator(self, apps: Apps) -> None:
        app = await apps.start(flows.generated)
        assert (await app.do("generated", {"number": 5}, "generated")).result == 20

    async def test_over_what_has_no_length_fail_and_say_whose_result_it_was(self, apps: Apps) -> None:
        app = await apps.start(flows.without_length)
        run = await app.do("without", {"number": 5}, "without_length")
        assert run.end.state is S.FAILED
        assert "result of one (call 0), which has no length" in (run.end.error.message if run.end.error else "")
        assert_whole(run)

    async def test_of_two_thousand_never_have_more_than_a_window_on_the_cluster(self, apps: Apps) -> None:
        window = 400
        app = await apps.start(flows.wide, map_window=window)
        id = await app.send("wide", {"number": 2_000})
        run_id = app.run_id("wide", id)
        most = 0
        async with Client(apps.dask, asynchronous=True, set_as_default=False) as client:

            def open_calls(dask_scheduler: Scheduler) -> int:
                ours = (task for task in dask_scheduler.tasks.values() if run_of(str(task.key)) == run_id)
                return sum(task.state not in ("memory", "erred") for task in ours)

            while not app.ends(run_id):
                most = max(most, await client.run_on_scheduler(open_calls))
        run = await app.run("wide", id)
        assert run.result == 2 * sum(range(2_000))
        assert 0 < most <= window + 50
        assert len(run.of("double")) == 6_000
        assert_whole(run)


@pytest.fixture(scope="module")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Dask of one worker with one thread."""
    shared = SharedDask(tmp_path_factory.mktemp("one-thread"), child_environment(), workers=1, threads=1)
    yield shared.address
    shared.stop()


class TestOnOneThread:
    @pytest.mark.parametrize("how", ["returned", "waited for", "awaited"])
    async def test_fibonacci_to_depth_twelve_ends(self, apps: Apps, one_thread: str, how: str) -> None:
        app = await apps.start(flows.fibonacci, dask=one_thread)
        run = await app.do("fibonacci", {"number": 12, "how": how}, "fibonacci")
        assert run.result == 144
        assert_whole(run)

    async def test_a_quicksort_sorts(self, apps: Apps, one_thread: str) -> None:
        app = await apps.start(flows.quicksort, dask=one_thread)
        values = [(n * 7_919) % 101 for n in range(60)]
        run = await app.do("quicksort", {"values": values}, "quicksort")
        assert run.result == sorted(values)
        assert_whole(run)


class TestChildren:
    async def test_returned_anywhere_in_a_value_are_replaced_by_theirs(self, apps: Apps) -> None:
        app = await apps.start(flows.nest)
        run = await app.do("nested", {"number": 5}, "nest")
        assert run.result == {"list": [10, 11], "map": [2, 4], "plain": 5}
        assert_whole(run)
        parent = f"{run.id}/nested/0"
        assert {c.spawned_by for c in run.changes if c.state is S.SCHEDULED and c.task in ("double", "add")} == {parent}

    async def test_that_are_a_map_over_another_childs_result(self, apps: Apps) -> None:
        app = await apps.start(flows.map_inside)
        run = await app.do("inside", {"number": 6}, "map_inside")
        assert run.result == 30
        assert_whole(run)

    @pytest.mark.parametrize("waits", [False, True])
    async def test_two_thousand_of_one_task(self, apps: Apps, waits: bool) -> None:
        app = await apps.start(flows.children)
        run = await app.do("children", {"number": 2_000, "waits": waits}, "children")
        assert run.result == 2 * sum(range(2_000))
        assert len({c.task_run_id for c in run.of("double")}) == 2_000
        assert_whole(run)

    async def test_that_outlive_their_parent_are_waited_for_by_the_run(self, apps: Apps, tmp_path: Path) -> None:
        app = await apps.start(flows.outlive)
        id = await app.send("outlive", {"folder": str(tmp_path)})
        await app.heard(task="leave_behind", state=S.COMPLETED)
        assert not app.ends()
        (tmp_path / "go").touch()
        run = await app.run("outlive", id)
        assert run.result == "gone"
        assert notes(tmp_path) == ["child dropped"]
        assert run.changes[-2].task == "child_when"
        assert_whole(run)

    @pytest.mark.parametrize("is_async", [False, True])
    async def test_whose_failure_the_parent_deals_with_fail_no_run(self, apps: Apps, is_async: bool) -> None:
        app = await apps.start(flows.break_below)
        run = await app.do("broken", {"how": "handled", "is_async": is_async}, "break_below")
        assert run.end.state is S.COMPLETED, run.end.error
        assert run.result == "handled: a broken child"
        assert run.states("broken")[-1] is S.FAILED
        assert_whole(run)

    @pytest.mark.parametrize("is_async", [False, True])
    async def test_whose_failure_the_parent_lets_through_fail_it_too(self, apps: Apps, is_async: bool) -> None:
        app = await apps.start(flows.break_below)
        run = await app.do("broken", {"how": "waits", "is_async": is_async}, "break_below")
        parent = "async_parent_of_broken" if is_async else "parent_of_broken"
        assert (run.end.state, run.states("broken")[-1], run.states(parent)[-1]) == (S.FAILED, S.FAILED, S.FAILED)
        assert "a broken child" in (run.end.error.message if run.end.error else "")
        assert run.states("look_at")[-1] is S.CANCELLED
        assert_whole(run)

    @pytest.mark.parametrize("how", ["dropped", "returned", "below"])
    async def test_that_fail_while_nobody_waits_fail_the_run_with_their_own_error(self, apps: Apps, how: str) -> None:
        app = await apps.start(flows.break_below)
        run = await app.do("broken", {"how": how}, "break_below")
        assert run.end.state is S.FAILED
        assert run.end.error is not None
        assert (run.end.error.type, run.end.error.message) == ("ValueError", "a broken child")
        assert run.states("broken")[-1] is S.FAILED
        assert run.states("look_at")[-1] is (S.COMPLETED if how == "dropped" else S.CANCELLED)
        assert_whole(run)

    @pytest.mark.parametrize("waits", [False, True])
    async def test_take_no_handles_of_another_run(self, apps: Apps, waits: bool) -> None:
        app = await apps.start(flows.foreign)
        run = await app.do("foreign", {"run_id": "f" * 32, "waits": waits}, "foreign")
        assert run.end.state is S.FAILED
        assert run.end.error is not None
        assert run.end.error.type.endswith("WiringError")
        assert "of another run" in run.end.error.message or "to another run" in run.end.error.message
        assert "engine.attach(run_id)" in run.end.error.message
        assert_whole(run)

    @pytest.mark.parametrize("waits", [False, True])
    async def test_are_tried_again(self, apps: Apps, tmp_path: Path, waits: bool) -> None:
        app = await apps.start(flows.persevere_below)
        run = await app.do("flaky", {"folder": str(tmp_path), "waits": waits}, "persevere_below")
        assert run.result == 6
        assert Counter(notes(tmp_path)) == Counter(f"{name} {n}" for name in "ab" for n in (1, 2, 3))
        assert Counter(run.states("flaky"))[S.RETRYING] == 4
        assert_whole(run)

    @pytest.mark.parametrize("bursts", [False, True])
    async def test_without_end_are_stopped_by_a_limit(self, apps: Apps, bursts: bool) -> None:
        app = await apps.start(flows.endless, max_run_tasks=200)
        run = await app.do("endless", {"number": 0, "bursts": bursts}, "endless")
        assert run.end.state is S.FAILED
        assert run.end.error is not None
        assert run.end.error.type.endswith("TooManyTasks"), run.end.error
        assert "200" in run.end.error.message
        assert len({c.task_run_id for c in run.changes if c.task}) < 300
        assert_whole(run)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
async def traced(kafka: str, tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Apps]:
    """Apps and workers that export to the receiver."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    environment = child_environment(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.address, OTEL_BSP_SCHEDULE_DELAY="50")
    async with dask_of_ones_own(tmp_path / "traced-dask", environment, workers=1) as dask:
        apps = Apps(kafka, dask.address)
        yield apps
        await apps.close()


async def test_children_are_in_the_trace_under_the_attempt_that_started_them(
    traced: Apps, receiver: Receiver, tmp_path: Path
) -> None:
    app = await traced.start(flows.persevere_below)
    sampled = f"00-{'7' * 32}-{'8' * 16}-01"
    run = await app.do("flaky", {"folder": str(tmp_path), "waits": False}, "persevere_below", traceparent=sampled)
    assert run.result == 6

    def spans(name: str) -> list[Any]:
        return [span for span in receiver.spans("7" * 32) if span.name == f"task {name}"]

    await eventually(lambda: (len(spans("flaky")), len(spans("total")), len(spans("parent_of_flaky"))) == (6, 1, 1))
    [parent] = spans("parent_of_flaky")
    assert {span.parent_id for span in [*spans("flaky"), *spans("total")]} == {parent.span_id}
    assert sorted(span.attributes["engine.attempt"] for span in spans("flaky")) == [1, 1, 2, 2, 3, 3]
