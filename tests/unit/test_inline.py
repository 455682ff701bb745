"""engine.inline: calls run when what they need is there, and everything they do is reported."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import flow, on, task
from engine.executor import Call, Report, Submission
from engine.flows import Flow
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker
from engine.parcels import Outcome
from engine.results import ResultStore
from engine.states import State
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.integration import flows_cancel as cancelled
from tests.integration import flows_graphs as flows
from tests.unit.recorded import RUN_ID, Gone
from tests.unit.samples import orders
from tests.waiting import eventually


class Under:
    """An executor and what it reported."""

    def __init__(self, executor: InlineExecutor) -> None:
        self.executor = executor
        self.reports: list[Report] = []

    def on_reports(self, reports: Sequence[Report]) -> None:
        self.reports += reports

    def on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        raise NotImplementedError

    def on_deaths(self, run_ids: Sequence[str], reason: str) -> None:
        raise NotImplementedError

    def on_refused(self, parcel_id: str) -> None:
        raise NotImplementedError

    def on_reset(self) -> None:
        raise NotImplementedError

    def submit(self, *calls: Call) -> None:
        self.executor.submit([Submission(RUN_ID, 0, 1, calls)])

    def ended(self) -> dict[str, State]:
        return {report.index: report.state for report in self.reports if report.state is not State.RUNNING}


@pytest.fixture
async def under() -> AsyncIterator[Under]:
    under = Under(InlineExecutor())
    await under.executor.start(under)
    yield under
    await under.executor.close()


def calls_of(flow: Flow[..., Any], **parameters: Any) -> tuple[Call, ...]:
    nodes = Gone(flow, **parameters).graph.nodes.values()
    return tuple(node.call for node in nodes)


async def test_calls_wait_for_what_they_need_and_the_result_comes_with_its_report(under: Under) -> None:
    under.submit(*calls_of(flows.diamond, value=5))
    await eventually(lambda: len(under.ended()) == 4)
    assert set(under.ended().values()) == {State.COMPLETED}
    [result] = [report.result for report in under.reports if report.result is not None]
    assert result == b"23"
    order = [(report.index, report.state) for report in under.reports]
    for index in "0123":
        assert order.index((index, State.RUNNING)) < order.index((index, State.COMPLETED))
    assert order.index(("0", State.COMPLETED)) < min(order.index(("1", State.RUNNING)), order.index(("2", State.RUNNING)))
    assert {report.worker for report in under.reports} == {"inline"}


async def test_async_tasks_and_composite_results(under: Under) -> None:
    calls = calls_of(flows.composite, skus=["a"])
    under.submit(*calls)
    await eventually(lambda: len(under.ended()) == len(calls))
    [result] = [report.result for report in under.reports if report.result is not None]
    assert msgspec.json.decode(result)["deep"] == [{"later": 2}]


async def test_what_needs_a_failed_call_does_not_run_and_says_nothing(under: Under) -> None:
    under.submit(*calls_of(flows.break_down, value=1))
    await eventually(lambda: len(under.ended()) == 2)
    await under.executor.close()
    assert under.ended() == {"0": State.FAILED, "2": State.COMPLETED}


async def test_the_same_submission_again_runs_nothing_but_tells_again(under: Under) -> None:
    calls = calls_of(flows.one, value=1)
    under.submit(*calls)
    await eventually(under.ended)
    before = list(under.reports)
    under.submit(*calls)
    await eventually(lambda: len(under.reports) > len(before))
    assert under.reports == [*before, before[-1]]


async def test_a_call_that_failed_waits_for_its_next_attempt_and_what_needs_it_waits_too(under: Under, tmp_path: Path) -> None:
    calls = calls_of(flows.persevere, attempt=2, folder=str(tmp_path))
    under.submit(*calls)
    await eventually(lambda: under.ended() == {"0": State.FAILED})
    assert under.reports[-1].retry_in_seconds == 0.05
    under.submit(calls[0])  # attached to, as by another owner: it is not yet time
    await eventually(lambda: under.reports[-1] == under.reports[-2])
    under.submit(msgspec.structs.replace(calls[0], attempt=2))
    await eventually(lambda: under.ended() == {"0": State.COMPLETED, "1": State.COMPLETED})
    assert [report.result for report in under.reports if report.result is not None] == [b"4"]
    assert (tmp_path / "notes").read_text().splitlines() == ["attempt"] * 2


async def test_children_run_at_once_and_what_their_parent_returned_is_put_together(under: Under) -> None:
    under.submit(*calls_of(orders.split, value=5))
    await eventually(lambda: any(report.result is not None for report in under.reports))
    [result] = [report for report in under.reports if report.result is not None]
    assert msgspec.json.decode(result.result or b"") == {"halves": [10, 12], "of": 5}
    children = [call for report in under.reports for call in report.spawned]
    assert result.tail == tuple(child.index for child in children)
    assert set(under.ended()) == {"0", *result.tail}


async def test_a_task_that_waits_for_its_child_gives_its_place_up(tmp_path: Path) -> None:
    under = Under(InlineExecutor(threads=1))  # the child could not run beside its parent
    await under.executor.start(under)
    under.submit(*calls_of(orders.asked, value=5))
    await eventually(lambda: any(report.result is not None for report in under.reports))
    [result] = [report.result for report in under.reports if report.result is not None]
    assert result == b'[11,"dealt with ValueError: bad value"]'
    [dealt_with] = [report.handled for report in under.reports if report.handled]
    assert under.ended()[dealt_with[0]] is State.FAILED
    await under.executor.close()


async def test_a_value_that_stays_can_be_fetched_and_one_that_is_not_there_cannot(under: Under) -> None:
    [call] = calls_of(flows.one, value=21)
    under.submit(call)
    assert await under.executor.fetch(call) == 42
    with pytest.raises(LookupError):
        await under.executor.fetch(msgspec.structs.replace(call, index="9"))


async def test_a_released_run_leaves_nothing_and_may_come_again(under: Under) -> None:
    calls = calls_of(flows.diamond, value=1)
    under.submit(*calls)
    await eventually(lambda: len(under.ended()) == 4)
    under.executor.release(RUN_ID, 60.0)
    under.executor.release(RUN_ID, 60.0)
    under.reports.clear()
    under.submit(*calls)
    await eventually(lambda: len(under.ended()) == 4)


async def test_close_waits_for_the_thread_that_runs_and_leaves_none(under: Under, tmp_path: object) -> None:
    # It waits for the file that it writes itself.
    under.submit(*calls_of(flows.in_turn, customer="Ada", folder=str(tmp_path), name="notes"))
    await eventually(lambda: under.reports)
    await under.executor.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-inline")]


async def test_a_cancelled_run_stops_and_nothing_more_is_heard_of_it(under: Under, tmp_path: Path) -> None:
    under.submit(*calls_of(cancelled.everything, folder=str(tmp_path)))
    notes = tmp_path / "notes"
    await eventually(lambda: notes.exists() and sorted(notes.read_text().split()) == ["parent", "spin", "spin", "wait"])
    under.executor.cancel(RUN_ID)
    await eventually(lambda: notes.read_text().count("left") == 4)
    assert {index: state for index, state in under.ended().items() if state is not State.FAILED} == {}
    assert "after" not in notes.read_text()


@task
def long_list(number: int) -> list[int]:
    return list(range(number))


@task(persist=True)
def kept(number: int) -> int:
    return number


@task
def start_kept(number: int) -> Any:
    return kept.spawn(number)


@flow(on("numbers"))
def large(number: int) -> Any:
    return long_list(number)


@flow(on("numbers"))
def kept_child(number: int) -> Any:
    return start_kept(number)


def files_of(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.json")]


class TestTheResultStore:
    @pytest.fixture
    async def app(self, tmp_path: Path) -> AsyncIterator[AppUnderTest]:
        broker = MemoryBroker()
        settings = fresh_settings(results=f"file://{tmp_path}", inline_result_bytes=1_000)
        store = ResultStore(settings.results, settings.app, 10_000)
        app = AppUnderTest(settings, [large, kept_child], broker, InlineExecutor(results=store), broker)
        await app.start()
        yield app
        await app.close()

    async def test_takes_what_a_flows_last_task_returns_and_does_not_travel(self, app: AppUnderTest) -> None:
        run = await app.do("numbers", {"number": 1_000}, "large")
        assert run.end.result_ref == f"{app.settings.results}/{app.settings.app}/{run.id}/long_list-0.json"
        assert run.end.reason == "too large: 3,891 bytes"

    async def test_says_so_where_that_is_too_large_for_it(self, app: AppUnderTest) -> None:
        run = await app.do("numbers", {"number": 10_000}, "large")
        assert run.end.state is State.FAILED
        assert run.end.error is not None
        assert (run.end.error.type, "max_result_bytes" in run.end.error.message) == ("ResultTooLarge", True)

    async def test_keeps_what_a_task_returns_that_another_one_has_started(self, app: AppUnderTest, tmp_path: Path) -> None:
        run = await app.do("numbers", {"number": 7}, "kept_child")
        assert (run.end.state, run.end.error) == (State.COMPLETED, None)
        assert [name.split("-")[0] for name in files_of(tmp_path)] == ["kept"]
