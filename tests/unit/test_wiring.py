"""engine.wiring: flows are gone through in a thread of their own, and none may keep the others waiting."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog

from engine.planning import Advance
from engine.run_logs import decode_batch
from engine.states import State
from engine.wiring import UNKNOWN_FLOW, Start, Wirer
from tests.unit.recorded import LIMITS, Gone, declared, done, run_of, short
from tests.unit.samples import talk
from tests.unit.samples.orders import add, double
from tests.waiting import eventually


async def patient() -> Any:
    return await add(await double(1), 1)


def plain() -> Any:
    return double(1)


def bound() -> Any:
    """What log lines of the flow carry, and the thread it runs in."""
    structlog.contextvars.bind_contextvars(left_over=1)
    return {**structlog.contextvars.get_contextvars(), "thread": threading.current_thread().name}


class Blocking:
    """A flow that goes on until it is let go, or stopped."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.ends = threading.Event()

    def flow(self) -> Callable[[], Any]:
        def blocking() -> Any:
            self.has_begun.set()
            while not self.ends.is_set():
                with contextlib.suppress(Exception):  # as users do; it is stopped all the same
                    self.ends.wait(0.005)
            return "let go"

        return blocking


@pytest.fixture
def blocking() -> Blocking:
    return Blocking()


@pytest.fixture
async def wirer(blocking: Blocking) -> AsyncIterator[Wirer]:
    flows = {body.__name__: declared(body) for body in (patient, plain, bound, blocking.flow())}
    made = Wirer(flows, LIMITS, flow_timeout_seconds=0.2)
    yield made
    blocking.ends.set()
    made.close()


def start(flow: str) -> Start:
    return Start(run_of(flow), (), 2.0)


def called(advance: Advance) -> list[str]:
    return [short(one) for one in advance.planned]


async def test_each_flow_says_what_it_calls(wirer: Wirer) -> None:
    first, second = await wirer.start([start("plain"), start("patient")])
    assert called(first) == ["double/0"]
    assert first.outcome is not None
    assert called(second) == ["double/0"]
    assert second.outcome is None


async def test_an_async_flow_goes_on_when_it_is_fed_and_is_gone_when_it_has_ended(wirer: Wirer) -> None:
    [begun] = await wirer.start([start("patient")])
    run_id = run_of().run_id
    [second] = await wirer.feed([(run_id, [done("0", 2)])])
    assert called(second) == ["add/1"]
    [third] = await wirer.feed([(run_id, [done("1", 3)])])
    assert third.outcome is not None
    assert third.outcome.result == b"3"
    assert await wirer.feed([(run_id, [done("1", 3)])]) == [Advance()]
    assert begun.outcome is None


async def test_what_was_heard_before_is_gone_through_at_once(wirer: Wirer) -> None:
    [advance] = await wirer.start([Start(run_of("patient"), [done("0", 2)], 2.0)])
    assert called(advance) == ["double/0", "add/1"]


async def test_a_run_that_is_somebody_elses_is_not_gone_on_with(wirer: Wirer) -> None:
    await wirer.start([start("patient")])
    wirer.forget(run_of().run_id)
    assert await wirer.feed([(run_of().run_id, [done("0", 2)])]) == [Advance()]


async def test_a_flow_that_nobody_declares_crashes_and_names_those_there_are(wirer: Wirer) -> None:
    [advance] = await wirer.start([start("gone")])
    assert advance.outcome is not None
    assert advance.outcome.state is State.CRASHED
    failure = advance.outcome.failure
    assert failure is not None
    assert failure.type == UNKNOWN_FLOW
    assert failure.message == "no handler declares the flow 'gone'; loaded: blocking, bound, patient, plain"


async def test_flows_run_in_one_thread_and_their_log_lines_carry_the_run(wirer: Wirer) -> None:
    first, second = await wirer.start([start("bound"), start("bound")])
    assert first.outcome is not None
    assert first.outcome == second.outcome, "nothing of the first is left"
    assert b'"flow":"bound"' in (first.outcome.result or b"")
    assert b'"thread":"engine-wiring_0"' in (first.outcome.result or b"")


async def test_a_flow_that_blocks_is_named_with_its_line_and_stopped(wirer: Wirer, blocking: Blocking) -> None:
    running = asyncio.create_task(wirer.start([start("blocking"), start("plain")]))
    await asyncio.to_thread(blocking.has_begun.wait, 30)

    def is_over() -> bool:
        wirer.watch()
        return running.done()

    with structlog.testing.capture_logs() as logs:
        await eventually(is_over)
    blocked, beside = await running
    assert blocked.outcome is not None
    assert blocked.outcome.failure is not None
    assert (blocked.outcome.state, blocked.outcome.failure.type) == (State.FAILED, "FlowBlocked")
    assert "the flow blocking ran for 0." in blocked.outcome.failure.message
    assert called(beside) == ["double/0"], "the next flow is not hit"
    [named] = logs
    assert (named["flow"], named["log_level"]) == ("blocking", "warning")
    assert named["run_id"] == run_of().run_id
    # Where it was at that moment: in itself or in what it called.
    assert ".py:" in named["at"]


async def test_a_flow_that_is_quick_enough_is_left_alone(wirer: Wirer, blocking: Blocking) -> None:
    running = asyncio.create_task(wirer.start([start("blocking")]))
    await asyncio.to_thread(blocking.has_begun.wait, 30)
    wirer.watch()
    blocking.ends.set()
    [advance] = await running
    assert advance.outcome is not None
    assert advance.outcome.result == b'"let go"'
    wirer.watch()


def test_samples_do_what_they_say() -> None:
    assert Gone(plain).called == ["double/0"]


def said(wirer: Wirer) -> list[tuple[str, str | None, str]]:
    batches = [decode_batch(mail.value) for mail in wirer.logs.take_all()]
    return [(batch.flow, batch.task, line.message) for batch in batches for line in batch.lines]


async def test_what_flows_log_is_said_by_the_run_wherever_it_goes_on() -> None:
    wirer = Wirer({"wired": talk.wired, "awaits": talk.awaits}, LIMITS, flow_timeout_seconds=5.0)
    try:
        await wirer.start([Start(run_of("wired", sku="tea"), (), 2.0)])
        assert said(wirer) == [("wired", None, "wired sku='tea'")]
        run = run_of("awaits", sku="tea")
        await wirer.start([Start(run, (), 2.0)])
        assert said(wirer) == [("awaits", None, "begun")]
        await wirer.feed([(run.run_id, [done("0", "tea")])])
        assert said(wirer) == [("awaits", None, "went on first='tea'")]
    finally:
        wirer.close()


async def test_a_flow_that_is_taken_up_again_says_nothing_twice() -> None:
    wirer = Wirer({"awaits": talk.awaits}, LIMITS, flow_timeout_seconds=5.0)
    try:
        run = run_of("awaits", sku="tea")
        await wirer.start([Start(run, [done("0", "tea")], 2.0)])
        assert said(wirer) == []
    finally:
        wirer.close()


async def careless() -> Any:
    """Its asyncio task fails, and it holds it to the end without a look."""

    async def go_wrong() -> None:
        raise LookupError("nobody knows")

    left = asyncio.create_task(go_wrong())
    first = await double(1)
    return [first, left.done()]


async def test_the_error_of_an_asyncio_task_that_a_flow_drops_is_in_the_log_of_its_run_once() -> None:
    wirer = Wirer({"careless": declared(careless)}, LIMITS, flow_timeout_seconds=5.0)
    try:
        with structlog.testing.capture_logs() as lines:
            run = run_of("careless")
            await wirer.start([Start(run, (), 2.0)])
            [advance] = await wirer.feed([(run.run_id, [done("0", 2)])])
            assert advance.outcome is not None
            assert advance.outcome.result == b"[2,true]", "it fails nothing"
            [(flow, task, text)] = said(wirer)
            assert (flow, task) == ("careless", None)
            first, *others = text.splitlines()
            assert first == "an asyncio task of the flow careless failed, and nobody awaited it: LookupError: nobody knows"
            assert any("in go_wrong" in line for line in others)
            assert others[-1] == "LookupError: nobody knows"
            # Another engine takes the run over when all of this is in the log already.
            await wirer.start([Start(run_of("careless"), [done("0", 2)], 2.0)])
            assert said(wirer) == []
        told = [line for line in lines if "nobody awaited it" in line["event"]]
        assert [(line["flow"], line["run_id"], line["log_level"]) for line in told] == [("careless", run.run_id, "warning")] * 2
    finally:
        wirer.close()
