"""engine.inline: calls run when what they need is there, and everything they do is reported."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from engine.executor import Call, Report, Submission
from engine.flows import Flow
from engine.graph import wire
from engine.inline import InlineExecutor
from engine.runs import FlowRun
from engine.states import State, StateChange, utc
from tests.integration import flows_graphs as flows
from tests.waiting import eventually

RUN_ID = "0123456789abcdef" * 2


class Under:
    """An executor and what it reported."""

    def __init__(self, executor: InlineExecutor) -> None:
        self.executor = executor
        self.reports: list[Report] = []

    def take(self, reports: Sequence[Report]) -> None:
        self.reports += reports

    def submit(self, *calls: Call) -> None:
        self.executor.submit([Submission(RUN_ID, 0, 1, calls)])

    def ended(self) -> dict[int, State]:
        return {report.index: report.state for report in self.reports if report.state is not State.RUNNING}


@pytest.fixture
async def under() -> AsyncIterator[Under]:
    under = Under(InlineExecutor())
    await under.executor.start(under.take, lambda: None)
    yield under
    await under.executor.close()


def calls_of(flow: Flow[..., object], parameters: bytes) -> tuple[Call, ...]:
    scheduled = StateChange(
        run_id=RUN_ID,
        flow=flow.name,
        state=State.SCHEDULED,
        seq=0,
        epoch=0,
        attempt=0,
        at=utc(1.5),
        parameters=msgspec.Raw(parameters),
    )
    run = FlowRun(scheduled, 0)
    trace = f"00-{'1' * 32}-{'2' * 16}-00"
    return wire(flow, run, traceparent=trace, now=1.0, inline_result_bytes=1_000).calls


async def test_calls_wait_for_what_they_need_and_the_result_comes_with_its_report(under: Under) -> None:
    under.submit(*calls_of(flows.diamond, b'{"value": 5}'))
    await eventually(lambda: len(under.ended()) == 4)
    assert set(under.ended().values()) == {State.COMPLETED}
    [result] = [report.result for report in under.reports if report.result is not None]
    assert result == b"23"
    order = [(report.index, report.state) for report in under.reports]
    for index in range(4):
        assert order.index((index, State.RUNNING)) < order.index((index, State.COMPLETED))
    assert order.index((0, State.COMPLETED)) < min(order.index((1, State.RUNNING)), order.index((2, State.RUNNING)))
    assert {report.worker for report in under.reports} == {"inline"}


async def test_async_tasks_and_composite_results(under: Under) -> None:
    calls = calls_of(flows.composite, b'{"skus": ["a"]}')
    under.submit(*calls)
    await eventually(lambda: len(under.ended()) == len(calls))
    [result] = [report.result for report in under.reports if report.result is not None]
    assert msgspec.json.decode(result)["deep"] == [{"later": 2}]


async def test_what_needs_a_failed_call_does_not_run_and_says_nothing(under: Under) -> None:
    under.submit(*calls_of(flows.break_down, b'{"value": 1}'))
    await eventually(lambda: len(under.ended()) == 2)
    await under.executor.close()
    assert under.ended() == {0: State.FAILED, 2: State.COMPLETED}


async def test_the_same_submission_again_runs_nothing_but_tells_again(under: Under) -> None:
    calls = calls_of(flows.one, b'{"value": 1}')
    under.submit(*calls)
    await eventually(under.ended)
    before = list(under.reports)
    under.submit(*calls)
    await eventually(lambda: len(under.reports) > len(before))
    assert under.reports == [*before, before[-1]]


async def test_a_forgotten_call_runs_anew(under: Under) -> None:
    [call] = calls_of(flows.one, b'{"value": 1}')
    under.submit(call)
    await eventually(under.ended)
    under.executor.forget(RUN_ID, [call.key])
    under.submit(msgspec.structs.replace(call, attempt=2))
    await eventually(lambda: under.reports[-1].attempt == 2 and under.reports[-1].state is State.COMPLETED)


async def test_a_released_run_leaves_nothing_and_may_come_again(under: Under) -> None:
    calls = calls_of(flows.diamond, b'{"value": 1}')
    under.submit(*calls)
    await eventually(lambda: len(under.ended()) == 4)
    under.executor.release(RUN_ID, 60.0)
    under.executor.release(RUN_ID, 60.0)
    under.reports.clear()
    under.submit(*calls)
    await eventually(lambda: len(under.ended()) == 4)


async def test_close_waits_for_the_thread_that_runs_and_leaves_none(under: Under, tmp_path: object) -> None:
    parameters = msgspec.json.encode({"customer": "Ada", "folder": str(tmp_path), "name": "notes"})
    under.submit(*calls_of(flows.in_turn, parameters))  # it waits for the file that it writes itself
    await eventually(lambda: under.reports)
    await under.executor.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-inline")]
