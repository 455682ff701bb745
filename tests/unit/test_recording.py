"""engine.recording: a flow gone through calls what it says, and the same again when it is told the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

import engine
from engine.arguments import load
from engine.errors import EngineError, EventTimeout, TaskCrashed, WiringError
from engine.events import Event
from engine.handles import Handle, recorder, unmapped
from engine.planning import Feed, Outcome, PlannedCall, PlannedMap, PlannedSleep, PlannedWait
from engine.states import State, encode
from engine.tasks import Task
from tests.unit.recorded import LIMITS, RUN_ID, Gone, bad, done, run_of
from tests.unit.samples import orders
from tests.unit.samples.orders import Line, add, double, listing, total


class TestPlainFlows:
    @pytest.mark.parametrize(
        ("value", "result"),
        [(None, b"null"), (7, b"7"), ([1, {"a": 2}], b'[1,{"a":2}]'), (Line("s"), b'{"sku":"s","count":1}')],
    )
    def test_a_plain_result_needs_no_call(self, value: Any, result: bytes) -> None:
        def body() -> Any:
            double(1)
            return value

        gone = Gone(body)
        assert gone.called == ["double/0"]
        assert gone.outcome is not None
        assert gone.outcome.result == result

    def test_a_plain_result_that_is_large_stays_on_the_cluster_as_a_tasks_would(self) -> None:
        gone = Gone(lambda_of("x" * 2_000))
        assert gone.called == ["result/result"]
        assert gone.outcome is not None
        assert (gone.outcome.state, gone.outcome.result) == (State.COMPLETED, None)

    def test_a_call_alone_is_the_result_itself(self) -> None:
        def body() -> Any:
            return add(double(1), 2)

        calls = [one.call for one in Gone(body).planned if isinstance(one, PlannedCall)]
        assert [(call.task, call.is_final, call.returns) for call in calls] == [("double", False, False), ("add", True, True)]

    def test_what_a_flow_raises_ends_the_run_and_leaves_nothing_behind(self) -> None:
        def body() -> Any:
            double(1)
            raise LookupError("mine")

        gone = Gone(body)
        assert (gone.failure.type, gone.failure.message) == ("LookupError", "mine")
        assert "test_recording.py" in gone.failure.traceback
        assert "engine/recording.py" not in gone.failure.traceback
        assert gone.planned == []
        assert recorder.get() is None
        assert double(2) == 4

    def test_sys_exit_ends_the_run_not_the_engine(self) -> None:
        def body() -> Any:
            raise SystemExit(3)

        assert Gone(body).failure.type == "SystemExit"

    def test_parameters_that_do_not_fit_any_more_fail_the_run(self) -> None:
        failure = Gone(orders.doubled, value="x").failure
        assert failure.type == "InvalidParameters"
        assert "$.value" in failure.message

    def test_result_is_refused_and_says_what_else_to_do(self) -> None:
        def body() -> Any:
            return double(1).result()  # type: ignore[attr-defined]

        assert "Hand the handle to another task" in Gone(body).failure.message

    def test_awaiting_needs_an_async_flow(self) -> None:
        def body() -> Any:
            return double(1).__await__()  # type: ignore[attr-defined]

        assert "a flow that is a plain function cannot await it. Declare the flow with async def." in Gone(body).failure.message

    def test_a_coroutine_as_a_result_is_refused(self) -> None:
        async def inner() -> int:
            return 1

        made = inner()

        def body() -> Any:
            return made

        assert "returned something to await" in Gone(body).failure.message
        made.close()

    def test_a_foreign_handle_names_the_other_run(self) -> None:
        def body() -> Any:
            return double(Handle("price", "0", "f" * 32))  # type: ignore[arg-type]

        assert "belongs to another run (ffff" in Gone(body).failure.message

    @pytest.mark.parametrize("call", [lambda: double.map([1], no=2), lambda: double.map([1], [2])])
    def test_a_wrong_map_names_the_signature(self, call: Callable[[], Any]) -> None:
        def body() -> Any:
            call()

        assert "double(value: 'int')" in Gone(body).failure.message

    def test_a_map_counts_its_elements_against_the_limit(self) -> None:
        def body() -> Any:
            double.map(list(range(1_001)))

        failure = Gone(body).failure
        assert failure.type == "TooManyTasks"
        assert "1,000 tasks" in failure.message

    def test_what_a_map_walks_reports_its_length(self) -> None:
        def body() -> Any:
            return add.map(listing(3), unmapped(1))

        walked, mapped, result = Gone(body).planned
        assert isinstance(walked, PlannedCall)
        assert walked.call.is_walked
        assert isinstance(mapped, PlannedMap)
        assert mapped.length is None
        assert isinstance(result, PlannedCall)


def lambda_of(value: Any) -> Callable[[], Any]:
    def body() -> Any:
        return value

    return body


async def pipeline() -> Any:
    """Awaits, branches and loops."""
    value = await double(1)
    found = []
    while value < 4:
        value = await add(value, 1)
        found.append(value)
    if found == [3, 4]:
        await total(found)
    return found


PIPELINE = [done("0", 2), done("1", 3), done("2", 4), done("3", 7)]


class TestAwaiting:
    def test_a_flow_goes_on_as_far_as_what_it_has_heard(self) -> None:
        gone = Gone(pipeline)
        assert gone.called == ["double/0"]
        assert gone.outcome is None
        for number, feed in enumerate(PIPELINE, 1):
            gone.feed(feed)
            assert len(gone.called) == min(4, number + 1)
        assert gone.called == ["double/0", "add/1", "add/2", "billing.total/3"]
        assert gone.result == [3, 4]

    def test_values_are_what_the_task_says_it_returns(self) -> None:
        async def body() -> Any:
            return type(await make_line("s")).__name__  # type: ignore[misc]

        gone = Gone(body)
        gone.feed(done("0", Line("s")))
        assert gone.result == "Line"

    def test_a_value_that_is_not_what_the_task_says_is_plain_json(self) -> None:
        async def body() -> Any:
            return await make_line("s")  # type: ignore[misc]

        gone = Gone(body)
        gone.feed(done("0", ["no", "line"]))
        assert gone.result == ["no", "line"]

    def test_a_handle_may_be_awaited_twice_and_is_one_value(self) -> None:
        async def body() -> Any:
            handle: Any = make_line("s")
            return await handle is await handle

        gone = Gone(body)
        gone.feed(done("0", Line("s")))
        assert gone.result is True

    def test_gather_waits_for_all(self) -> None:
        async def body() -> Any:
            return await asyncio.gather(double(1), double(2), double(3))  # type: ignore[call-overload]

        gone = Gone(body)
        assert gone.called == ["double/0", "double/1", "double/2"]
        gone.feed(done("2", 6), done("0", 2))
        assert gone.outcome is None
        gone.feed(done("1", 4))
        assert gone.result == [2, 4, 6]

    def test_a_task_group_cancels_its_siblings_when_one_fails(self) -> None:
        async def step(value: int) -> Any:
            return await add(await double(value), 1)

        async def body() -> Any:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(step(1))
                    group.create_task(step(2))
            except ExceptionGroup as errors:
                return [str(error) for error in errors.exceptions]

        gone = Gone(body)
        gone.feed(bad("0"))
        assert gone.result == ["ValueError: bad"]
        assert gone.handled == ["0"]
        assert gone.called == ["double/0", "double/1"]

    def test_a_failure_can_be_dealt_with(self) -> None:
        async def body() -> Any:
            try:
                await double(1)
            except EngineError as error:
                return f"{error}; {await add(1, 2)}"

        gone = Gone(body)
        gone.feed(bad("0"))
        assert gone.handled == ["0"]
        gone.feed(done("1", 3))
        assert gone.result == "ValueError: bad; 3"

    def test_a_failure_further_up_is_dealt_with_as_a_whole(self) -> None:
        async def body() -> Any:
            try:
                await add(double(1), 1)
            except EngineError:
                return "dealt with"

        gone = Gone(body)
        gone.feed(bad("1", cause="0"))
        assert gone.handled == ["1", "0"]

    def test_a_failure_that_is_let_through_is_the_runs_with_the_tasks_traceback(self) -> None:
        async def body() -> Any:
            await double(1)

        gone = Gone(body)
        gone.feed(bad("0"))
        assert (gone.failure.type, gone.failure.message, gone.failure.traceback) == ("ValueError", "bad", "Traceback …")
        assert gone.outcome is not None
        assert gone.outcome.state is State.FAILED

    def test_a_crash_is_told_apart(self) -> None:
        async def body() -> Any:
            try:
                await double(1)
            except TaskCrashed:
                await double(2)

        gone = Gone(body)
        gone.feed(bad("0", state=State.CRASHED))
        assert gone.called == ["double/0", "double/1"]
        gone.feed(bad("1", state=State.CRASHED))
        assert gone.outcome is not None
        assert gone.outcome.state is State.CRASHED

    def test_a_map_of_unknown_length_can_be_awaited(self) -> None:
        async def body() -> Any:
            return await add.map(double.map(listing(3)), unmapped(1))

        gone = Gone(body)
        assert gone.called == ["listing/0", "double/1[?]", "add/2[?]"]
        gone.feed(Feed("0", 3.0, State.COMPLETED, length=2))
        gone.feed(done("1.0", 0), done("2.1", 3), done("1.1", 2))
        assert gone.outcome is None
        gone.feed(done("2.0", 1))
        assert gone.result == [1, 3]

    def test_awaiting_a_map_raises_what_keeps_it_from_being_made(self) -> None:
        async def body() -> Any:
            try:
                return await double.map(add(1))
            except WiringError as error:
                return str(error)

        gone = Gone(body)
        gone.feed(done("0", 1))
        assert "which has no length" in gone.result
        assert gone.handled == ["1"]

    def test_columns_of_unequal_length_are_told_when_they_are_awaited(self) -> None:
        async def body() -> Any:
            return await add.map(listing(1), listing(2))

        gone = Gone(body)
        gone.feed(done("0", [0], length=1), done("1", [0, 1], length=2))
        assert "unequal length [1, 2]" in gone.failure.message

    def test_a_handle_of_another_run_cannot_be_awaited(self) -> None:
        async def body() -> Any:
            await Handle("price", "0", "f" * 32)

        assert "engine.attach(run_id)" in Gone(body).failure.message

    def test_result_blocks_and_is_refused(self) -> None:
        async def body() -> Any:
            return double(1).result()  # type: ignore[attr-defined]

        assert "Await it." in Gone(body).failure.message

    def test_handles_may_be_returned_unresolved(self) -> None:
        async def body() -> Any:
            return [double(await double(1)), 7]

        gone = Gone(body)
        gone.feed(done("0", 2))
        assert gone.called == ["double/0", "double/1", "result/result"]

    def test_tasks_that_are_left_behind_are_cancelled_with_the_flow(self) -> None:
        ended: list[str] = []

        async def left() -> None:
            try:
                await double(1)
            finally:
                ended.append("left")

        async def body() -> Any:
            task = asyncio.ensure_future(left())
            await double(2)
            return task is not None

        gone = Gone(body)
        # The order of calls is that in which the loop comes to them.
        assert gone.called == ["double/0", "double/1"]
        gone.feed(done("0", 4))
        assert (gone.result, ended) == (True, ["left"])

    @pytest.mark.parametrize(
        "ask", [lambda: asyncio.to_thread(print), lambda: asyncio.get_running_loop().run_in_executor(None, print)]
    )
    def test_threads_are_refused_with_a_clear_error(self, ask: Callable[[], Any]) -> None:
        async def body() -> Any:
            await ask()

        failure = Gone(body).failure
        assert failure.type == "WiringError"
        assert "has asked for a thread, a socket or a process" in failure.message
        assert "do the rest in a task" in failure.message

    async def test_a_flow_goes_on_in_an_engine_that_has_a_loop_of_its_own(self) -> None:
        gone = await asyncio.to_thread(Gone, pipeline)
        await asyncio.to_thread(gone.feed, *PIPELINE)
        assert gone.result == [3, 4]


def make_line_(sku: str) -> Line:
    return Line(sku)


make_line: Task[..., Any] = Task(make_line_, name="make_line")


class TestTime:
    def test_the_clock_is_that_of_what_was_heard(self) -> None:
        async def body() -> Any:
            first = engine.now()
            await double(1)
            return [first.timestamp(), engine.now().timestamp()]

        gone = Gone(body, at=2.5)
        assert gone.last.is_decided, "when it began is not on the topic yet"
        assert not gone.feed(done("0", 2, at=5.5)).is_decided
        assert gone.result == [2.5, 5.5]

    def test_the_clock_never_goes_back(self) -> None:
        async def body() -> Any:
            await asyncio.gather(double(1), double(2))  # type: ignore[call-overload]
            return engine.now().timestamp()

        gone = Gone(body)
        gone.feed(done("1", 2, at=9.5), done("0", 2, at=7.5))
        assert gone.result == 9.5

    def test_chance_is_the_same_when_gone_through_again_and_another_in_another_run(self) -> None:
        async def body() -> Any:
            return [engine.random(), engine.random()]

        first, again = Gone(body).result, Gone(body).result
        assert first == again
        assert first[0] != first[1]
        run = run_of("body")
        run.run_id = "f" * 32
        assert Gone(body, run=run).result != first

    def test_a_sleep_is_planned_and_ends_when_it_is_told(self) -> None:
        async def body() -> Any:
            await engine.sleep(60)
            await engine.sleep(until=datetime.fromtimestamp(100.5, UTC))
            return engine.now().timestamp()

        gone = Gone(body, at=2.5)
        assert gone.planned == [PlannedSleep("0", 62.5)]
        gone.feed(Feed("0", 63.0, State.COMPLETED))
        assert gone.planned[1:] == [PlannedSleep("1", 100.5)]
        gone.feed(Feed("1", 101.5, State.COMPLETED))
        assert gone.result == 101.5

    def test_asyncio_sleep_is_durable_too(self) -> None:
        async def body() -> Any:
            await asyncio.sleep(5)

        gone = Gone(body, at=2.5)
        assert gone.planned == [PlannedSleep("0", 7.5)]
        gone.feed(Feed("0", 7.0, State.COMPLETED))
        assert gone.outcome is not None

    def test_a_timeout_is_a_durable_timer_that_is_dropped_when_all_went_well(self) -> None:
        async def body() -> Any:
            async with asyncio.timeout(10):
                return await double(1)

        gone = Gone(body, at=2.5)
        # The timer's place is the one it was asked for in.
        assert gone.called == ["sleep/0", "double/1"]
        assert gone.planned[0] == PlannedSleep("0", 12.5)
        gone.feed(done("1", 2))
        assert gone.called[2:] == ["end/0"]
        assert gone.result == 2

    def test_a_timeout_that_is_over_cancels_what_was_waited_for(self) -> None:
        async def body() -> Any:
            try:
                async with asyncio.timeout(10):
                    await engine.sleep(60)
            except TimeoutError:
                return "too late"

        gone = Gone(body, at=2.5)
        assert gone.planned == [PlannedSleep("0", 12.5), PlannedSleep("1", 62.5)]
        gone.feed(Feed("0", 12.5, State.COMPLETED))
        assert gone.called[2:] == ["end/1"]
        assert gone.result == "too late"

    def test_wait_with_a_timeout_leaves_the_rest_open(self) -> None:
        async def body() -> Any:
            ready, waiting = await asyncio.wait(
                [asyncio.ensure_future(double(1)), asyncio.ensure_future(double(2))],  # type: ignore[arg-type]
                return_when=asyncio.FIRST_COMPLETED,
            )
            return [len(ready), len(waiting)]

        gone = Gone(body)
        gone.feed(done("1", 4))
        assert gone.result == [1, 1]


class TestEvents:
    @staticmethod
    async def body() -> Any:
        event = await engine.wait_for_event("orders", type="order.paid", data=Line, timeout_seconds=5)
        return event.data.sku

    def test_a_wait_is_planned_with_all_that_it_asks_for(self) -> None:
        [planned] = Gone(self.body, at=2.0).planned
        assert isinstance(planned, PlannedWait)
        assert (planned.index, planned.topic, planned.type, planned.source) == ("0", "orders", "order.paid", None)
        assert (planned.data, planned.timeout_seconds, planned.at) == (Line, 5, 2.0)

    def test_the_event_that_was_found_is_decoded_to_what_was_asked_for(self) -> None:
        gone = Gone(self.body)
        event = Event(id="1", source="/s", type="order.paid", data={"sku": "a"})
        gone.feed(Feed("0", 3.0, State.COMPLETED, encode(event)))
        assert gone.result == "a"

    def test_a_wait_that_is_over_without_one_says_so(self) -> None:
        async def body() -> Any:
            try:
                await self.body()
            except EventTimeout as error:
                return str(error)

        gone = Gone(body)
        gone.feed(Feed("0", 7.0, State.CANCELLED))
        assert gone.result == "no event that matches came on the topic orders within 5 s"

    def test_a_wait_that_cannot_go_on_raises_why(self) -> None:
        gone = Gone(self.body)
        gone.feed(bad("0"))
        assert gone.failure.message == "bad"

    def test_a_wait_that_nobody_waits_for_any_more_is_dropped(self) -> None:
        async def body() -> Any:
            async with asyncio.timeout(1):
                await self.body()

        gone = Gone(body)
        gone.feed(Feed("0", 3.0, State.COMPLETED))
        assert gone.called == ["sleep/0", "wait/1", "end/1"]
        assert gone.failure.type == "TimeoutError"


class TestFetching:
    """A value that is too large to travel is fetched, and nothing else is heard meanwhile."""

    @staticmethod
    async def body() -> Any:
        async def large() -> Any:
            return len(await listing(9)), await double(1)

        async def small() -> Any:
            return await double(await double(2))

        return await asyncio.gather(large(), small())

    def test_other_feeds_are_held_back_until_it_is_there(self) -> None:
        gone = Gone(self.body)
        assert gone.called == ["listing/0", "double/1"]
        advance = gone.feed(Feed("0", 3.0, State.COMPLETED, length=9), done("1", 4))
        assert (advance.fetch, advance.planned) == ("0", [])
        assert gone.feed(done("1", 4)).planned == []
        gone.feed(Feed("0", 0.0, State.COMPLETED, fetched=list(range(9))))
        assert gone.called == ["listing/0", "double/1", "double/2", "double/3"]

    def test_the_order_of_calls_is_the_same_however_long_it_took(self) -> None:
        slow, quick = Gone(self.body), Gone(self.body)
        slow.feed(Feed("0", 3.0, State.COMPLETED, length=9), done("1", 4))
        slow.feed(Feed("0", 0.0, State.COMPLETED, fetched=list(range(9))))
        quick.feed(Feed("0", 3.0, State.COMPLETED, length=9))
        quick.feed(Feed("0", 0.0, State.COMPLETED, fetched=list(range(9))))
        quick.feed(done("1", 4))
        assert slow.called == quick.called

    def test_a_value_that_nobody_looks_at_is_not_fetched(self) -> None:
        async def body() -> Any:
            listing(9)
            return await double(1)

        gone = Gone(body)
        gone.feed(Feed("0", 3.0, State.COMPLETED, length=9))
        assert gone.last.fetch is None


def replayed(body: Any, called: dict[str, str], *history: Feed) -> Gone:
    """A flow gone through again for a run whose log says that it has made these calls."""
    run = run_of("body")
    run.called.update(called)
    return Gone(body, history, run=run)


class TestGoneThroughAgain:
    @pytest.mark.parametrize("known", range(len(PIPELINE) + 1))
    def test_told_the_same_it_calls_the_same(self, known: int) -> None:
        first = Gone(pipeline)
        for feed in PIPELINE[:known]:
            first.feed(feed)
        second = replayed(pipeline, {"0": "double"}, *PIPELINE[:known])
        assert second.called == first.called
        assert [one.call for one in second.planned if isinstance(one, PlannedCall)] == [
            one.call for one in first.planned if isinstance(one, PlannedCall)
        ]
        second.feed(*PIPELINE[known:])
        assert second.result == [3, 4]

    def test_a_changed_name_tells_both_sequences_and_crashes_the_run(self) -> None:
        async def body() -> Any:
            await double(1)
            await add(1)

        gone = replayed(body, {"0": "double", "1": "weigh"}, done("0", 2))
        assert gone.failure.type == "FlowChanged"
        assert "Recorded: double/0, weigh/1. Now: double/0, add/1." in gone.failure.message
        assert gone.outcome is not None
        assert gone.outcome.state is State.CRASHED

    def test_a_missing_call_tells_both_sequences(self) -> None:
        async def body() -> Any:
            await double(1)

        gone = replayed(body, {"0": "double", "1": "add"}, done("0", 2))
        assert "Recorded: double/0, add/1. Now: double/0." in gone.failure.message

    def test_another_order_tells_both_sequences(self) -> None:
        async def body() -> Any:
            await asyncio.gather(add(1), double(1))  # type: ignore[call-overload]

        gone = replayed(body, {"0": "double", "1": "add"})
        assert "Recorded: double/0, add/1. Now: add/0." in gone.failure.message

    def test_a_plain_flow_is_checked_too(self) -> None:
        def body() -> Any:
            return add(1)

        assert replayed(body, {"0": "double"}).failure.type == "FlowChanged"
        assert replayed(body, {"0": "add", "1": "add"}).failure.type == "FlowChanged"
        assert replayed(body, {"0": "add"}).outcome is not None

    def test_more_calls_than_were_told_are_no_change(self) -> None:
        """The owner died before what the flow had called next was on the topic."""

        async def body() -> Any:
            await double(1)
            await add(1)

        assert replayed(body, {"0": "double"}, done("0", 2)).called == ["double/0", "add/1"]

    def test_the_missing_call_is_only_missed_when_all_was_heard_that_is_known(self) -> None:
        async def body() -> Any:
            await listing(1)
            await double(1)

        gone = replayed(body, {"0": "listing", "1": "double"}, Feed("0", 3.0, State.COMPLETED, length=1))
        assert (gone.outcome, gone.last.fetch) == (None, "0")
        gone.feed(Feed("0", 0.0, State.COMPLETED, fetched=[0]))
        assert gone.called == ["listing/0", "double/1"]

    def test_long_sequences_are_cut(self) -> None:
        gone = replayed(lambda_of(None), {f"{index}": "t" for index in range(50)})
        assert "t/39 and 10 more. Now: nothing." in gone.failure.message

    def test_time_and_chance_are_the_same(self) -> None:
        async def body() -> Any:
            start = engine.now()
            await double(1)
            return [start.timestamp(), engine.now().timestamp(), engine.random()]

        first = Gone(body, at=2.0)
        first.feed(done("0", 2, at=5.0))
        assert Gone(body, [done("0", 2, at=5.0)], at=2.0).result == first.result


class TestLimits:
    def test_an_async_flow_that_calls_without_end_is_stopped(self) -> None:
        async def body() -> Any:
            while True:
                double(1)

        gone = Gone(body, limits=msgspec.structs.replace(LIMITS, max_tasks=5))
        assert gone.failure.type == "TooManyTasks"
        assert RUN_ID in gone.failure.message
        assert gone.planned == [], "nothing of it has begun, and nothing will"


def test_a_flow_that_is_let_go_cleans_up() -> None:
    ended: list[int] = []

    async def body() -> Any:
        try:
            await double(1)
        finally:
            ended.append(1)

    gone = Gone(body)
    gone.recording.close()
    assert ended == [1]
    assert gone.feed(done("0", 2)).planned == []


def test_what_a_flow_has_returned_itself_a_call_can_give_to_whoever_asks_the_cluster() -> None:
    async def fulfil() -> Any:
        return {"sum": await add(1, 2)}

    gone = Gone(fulfil)
    gone.feed(done("0", 3))
    assert gone.outcome is not None
    assert gone.outcome.call is not None
    assert (gone.outcome.call.index, gone.outcome.call.is_final) == ("final", False)
    (value,), _ = load(gone.outcome.call.arguments, ())
    assert value == {"sum": 3}
    assert gone.called == ["add/0"], "the run itself has no need of it"

    def at_once() -> Any:
        return 7

    assert Gone(at_once).outcome == Outcome(State.COMPLETED, result=b"7"), "nobody could ask in time"
