"""engine.spawning: what a running task may start and wait for, and how a child's failure reaches it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest

from engine.arguments import load
from engine.errors import EngineError, TaskCrashed, TaskFailed, TooManyTasks, WiringError
from engine.executor import Call, Report, key_of, values_at
from engine.handles import Handle, MapHandle, recorder, unmapped
from engine.spawning import ChildFailed, Spawner, lose, refuse, resolved, walk
from engine.states import Failure, State
from engine.trace_contexts import attempt_context
from tests.unit.recorded import BAD, RUN_ID, Gone
from tests.unit.samples import orders
from tests.unit.samples.orders import add, double, later, listing, total
from tests.waiting import eventually

CONTEXT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


class Nursery:
    """Keeps what is started; tests say what becomes of it."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.ends: dict[str, Future[Any]] = {}
        self.seceded = 0

    @property
    def children(self) -> list[Call]:
        return [call for report in self.reports for call in report.spawned]

    def spawn(self, report: Report) -> None:
        self.reports.append(report)

    def ended(self, call: Call, key: str) -> Future[Any]:
        return self.ends.setdefault(key, Future())

    def secede(self, call: Call) -> None:
        self.seceded += 1

    def end(self, handle: Handle, value: Any = None, *, failure: Report | None = None) -> None:
        future = self.ended(parent(), key_of(handle.task, RUN_ID, handle.index))
        if failure is not None:
            future.set_exception(ChildFailed(failure))
        else:
            future.set_result(value)


def parent(**fields: Any) -> Call:
    def body() -> Any:
        return add(1, 2)

    call = Gone(body).graph.nodes["0"].call
    return msgspec.structs.replace(call, **({"traceparent": CONTEXT, "depth": 3} | fields))


def spawner(**fields: Any) -> tuple[Spawner, Nursery]:
    nursery = Nursery()
    return Spawner(parent(**fields), nursery, "tcp://w", 5.0), nursery


def failed(state: State = State.FAILED, error: Failure | None = BAD) -> Report:
    return Report(RUN_ID, "x", state, 1, 1.0, 2.0, "w", error)


class TestStarting:
    def test_a_child_is_submitted_at_once_under_its_parent(self) -> None:
        spawned, nursery = spawner()
        assert not spawned.has_children
        handle = spawned.call(double, (21,), {})
        [report] = nursery.reports
        [child] = report.spawned
        assert (report.state, report.index, report.attempt, report.worker) == (State.RUNNING, "0", 1, "tcp://w")
        assert (child.index, child.task, child.function) == (handle.index, "double", double.reference)
        assert (child.spawned_by, child.depth, child.run_id, child.flow) == ("0", 4, RUN_ID, "body")
        assert load(child.arguments, ()) == ((21,), {})
        assert child.traceparent == attempt_context(CONTEXT, f"{RUN_ID}/add/0", 1)
        assert spawned.has_children
        assert not child.is_final, "its parent's value is the flow's result, not its own"

    def test_what_its_task_declares_is_on_a_child(self) -> None:
        spawned, nursery = spawner()
        spawned.call(later, (1,), {})
        spawned.call(total, ([1],), {})
        assert [(child.is_async, child.timeout_seconds) for child in nursery.children] == [(True, None), (False, 30)]

    def test_a_child_may_take_the_result_of_another(self) -> None:
        spawned, nursery = spawner()
        first = spawned.call(double, (1,), {})
        spawned.call(add, (first, first), {})
        child = nursery.children[1]
        assert child.dependencies == (key_of("double", RUN_ID, first.index),)
        assert load(child.arguments, values_at(child.places, [2])) == ((2, 2), {})

    def test_a_parent_run_again_starts_the_same_children_and_another_attempt_others(self) -> None:
        def started(attempt: int) -> list[str]:
            spawned, nursery = spawner(attempt=attempt)
            spawned.call(double, (1,), {})
            spawned.call(double, (1,), {})
            return [child.index for child in nursery.children]

        assert started(1) == started(1)
        assert len(set(started(1))) == 2, "the same call twice is two children"
        assert set(started(1)).isdisjoint(started(2))

    def test_a_map_over_a_sequence_is_a_child_for_each_element_in_one_report(self) -> None:
        spawned, nursery = spawner()
        handles = spawned.map(add, [[1, 2], unmapped(9)], {})
        [report] = nursery.reports
        assert [handle.index for handle in handles] == [child.index for child in report.spawned]
        assert [load(child.arguments, ()) for child in report.spawned] == [((1, 9), {}), ((2, 9), {})]
        assert [child.map_index for child in report.spawned] == [0, 1]

    def test_a_map_over_results_to_come_is_a_step_of_its_own(self) -> None:
        spawned, nursery = spawner()
        handle = spawned.map(double, [spawned.call(listing, (3,), {})], {})
        assert isinstance(handle, Handle)
        step = nursery.children[1]
        assert (step.task, step.function, step.index) == ("", "engine.spawning:walk", handle.index)
        args, kwargs = load(step.arguments, [[0, 1, 2]])
        assert args == (double, [[0, 1, 2]], {})
        assert kwargs == {}

    def test_that_step_maps_when_all_is_there_and_its_children_are_its_parents(self) -> None:
        spawned, nursery = spawner(task="", index="a" * 16, spawned_by="0")
        token = recorder.set(spawned)
        try:
            handles = walk(double, [[1, 2]], {})
        finally:
            recorder.reset(token)
        assert len(handles) == 2
        assert {child.spawned_by for child in nursery.children} == {"0"}, "for the user the step does not exist"
        assert {child.traceparent for child in nursery.children} == {CONTEXT}

    def test_a_wrong_call_in_a_map_names_the_signature(self) -> None:
        spawned, nursery = spawner()
        with pytest.raises(WiringError, match=r"double\(value: 'int'\)"):
            spawned.map(double, [[1]], {"no": 2})
        assert nursery.reports == []

    def test_a_handle_of_another_run_cannot_be_handed_on(self) -> None:
        with pytest.raises(WiringError, match="belongs to another run"):
            spawner()[0].call(double, (Handle("t", "0", "f" * 32),), {})

    def test_a_flows_map_has_no_way_into_a_task(self) -> None:
        with pytest.raises(WiringError, match="cannot be taken inside a task"):
            resolved([MapHandle("t", "0", RUN_ID, None)])


class TestWaiting:
    def test_a_result_that_is_there_is_answered_without_giving_way(self) -> None:
        spawned, nursery = spawner()
        handle = spawned.call(double, (1,), {})
        nursery.end(handle, 2)
        assert spawned.result(handle) == 2
        assert nursery.seceded == 0

    async def test_who_waits_gives_its_place_up_once(self) -> None:
        spawned, nursery = spawner()
        handles = [spawned.call(double, (number,), {}) for number in range(2)]
        waiting = asyncio.create_task(asyncio.to_thread(lambda: [spawned.result(handle) for handle in handles]))
        for number, handle in enumerate(handles):
            # It has given its place up once it has found the first one missing; the second is only asked for.
            key = key_of("double", RUN_ID, handle.index)
            await eventually(lambda key=key: nursery.seceded and key in nursery.ends)
            nursery.end(handle, number)
        assert await waiting == [0, 1]
        assert nursery.seceded == 1

    async def test_an_async_task_awaits_its_children(self) -> None:
        spawned, nursery = spawner(is_async=True)
        handle = spawned.call(double, (1,), {})
        waiting = asyncio.ensure_future(spawned.wait(handle))
        await asyncio.sleep(0)
        nursery.end(handle, 2)
        assert await waiting == 2

    @pytest.mark.parametrize(
        ("state", "kind"), [(State.FAILED, TaskFailed), (State.CRASHED, TaskCrashed)], ids=["failed", "crashed"]
    )
    async def test_a_childs_failure_is_raised_as_it_was_told_and_counts_as_dealt_with(
        self, state: State, kind: type[EngineError]
    ) -> None:
        for is_async in (False, True):
            spawned, nursery = spawner(is_async=is_async)
            handle = spawned.call(double, (1,), {})
            nursery.end(handle, failure=failed(state))
            with pytest.raises(kind, match="ValueError: bad") as caught:
                await spawned.wait(handle) if is_async else spawned.result(handle)
            assert caught.value.args[2] == "Traceback …"
            assert spawned.handled == [handle.index]

    def test_a_failure_that_says_nothing_names_the_child(self) -> None:
        spawned, nursery = spawner()
        handle = spawned.call(double, (1,), {})
        nursery.end(handle, failure=failed(error=None))
        with pytest.raises(TaskFailed, match=r"handle of double.* has failed"):
            spawned.result(handle)

    def test_a_task_with_a_timeout_waits_in_small_steps_and_learns_the_same(self) -> None:
        spawned, nursery = spawner(timeout_seconds=30.0)
        good, wrong = spawned.call(double, (1,), {}), spawned.call(double, (2,), {})
        nursery.end(good, 2)
        nursery.end(wrong, failure=failed())
        assert spawned.result(good) == 2
        with pytest.raises(TaskFailed, match="bad"):
            spawned.result(wrong)

    def test_each_way_of_waiting_belongs_to_one_kind_of_task(self) -> None:
        handle = Handle("double", "0", RUN_ID)
        with pytest.raises(WiringError, match=r"Ask for \.result\(\), or use async def"):
            spawner()[0].wait(handle)
        with pytest.raises(WiringError, match=r"would block the worker's event loop\. Await the handle"):
            spawner(is_async=True)[0].result(handle)

    def test_a_handle_of_another_run_cannot_be_waited_for(self) -> None:
        with pytest.raises(WiringError, match=r"of another run was waited for.*engine\.attach"):
            spawner()[0].result(Handle("double", "0", "f" * 32))


def test_what_stands_in_for_a_lost_value_crashes() -> None:
    with pytest.raises(TaskCrashed, match="a child that its value waits for has failed"):
        lose()


def test_what_stands_in_for_a_child_too_many_names_run_and_limit() -> None:
    token = recorder.set(spawner()[0])
    try:
        with pytest.raises(TooManyTasks, match=rf"run {RUN_ID} has made 100 tasks"):
            refuse(100)
    finally:
        recorder.reset(token)


def test_a_running_task_calls_other_tasks_as_functions() -> None:
    token = recorder.set(spawner()[0])
    try:
        assert orders.double(2) == 4
    finally:
        recorder.reset(token)
