"""engine.graph: what a flow has called becomes nodes as soon as all is known that they need."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.arguments import collected, load
from engine.executor import Call, key_of
from engine.graph import Graph, Node
from engine.handles import unmapped
from engine.planning import PlannedCall, PlannedMap
from engine.runs import FlowRun
from engine.tasks import Task
from tests.unit.recorded import LIMITS, RUN_ID, Gone, arguments, run_of
from tests.unit.samples import orders
from tests.unit.samples.orders import Line, Order, add, double, later, listing, total


def key(task: str, index: str) -> str:
    return key_of(task, RUN_ID, index)


def planned(body: Any, max_tasks: int = 1_000) -> Graph:
    """The graph of a flow, before any element of a map is admitted."""
    graph = Graph(RUN_ID, max_tasks, run_of().actual_index)
    for one in Gone(body).planned:
        if isinstance(one, PlannedCall):
            graph.plan_call(one)
        elif isinstance(one, PlannedMap):
            graph.plan_map(one)
    return graph


def admitted(graph: Graph, count: int = 1_000) -> list[str]:
    return [node.call.index for node in graph.admit(count)]


def child(task: Task[..., Any], index: str, *dependencies: str, by: str) -> Call:
    call = Gone(lambda_of(task)).graph.nodes["0"].call
    return msgspec.structs.replace(call, index=index, dependencies=dependencies, spawned_by=by)


def lambda_of(task: Task[..., Any]) -> Any:
    def body() -> None:
        task(1)

    return body


class TestCalls:
    def test_a_call_is_one_node_with_everything_a_worker_needs(self) -> None:
        graph = Gone(orders.doubled, value=21).graph
        [node] = graph.nodes.values()
        assert (node.task_run_id, node.parents) == (f"{RUN_ID}/double/0", ())
        call = node.call
        assert (call.key, call.function) == (f"double-{RUN_ID}-0", "tests.unit.samples.orders:double")
        assert (call.flow, call.run_id, call.attempt, call.returns, call.is_final) == ("doubled", RUN_ID, 1, True, True)
        assert (call.traceparent, call.scheduled_at, call.inline_result_bytes) == ("00-x", 2.0, 1_000)
        assert arguments(node) == ((21,), {})
        assert graph.is_whole

    def test_handles_take_the_results_of_other_calls(self) -> None:
        def body() -> None:
            one, two, three = double(1), double(2), double(3)
            add({"a": [one, (two,)]}, right=msgspec.structs.replace(Line("s"), sku=three))  # type: ignore[arg-type, call-overload]

        last = Gone(body).graph.nodes["3"]
        assert last.call.dependencies == (key("double", "0"), key("double", "1"), key("double", "2"))
        assert last.parents == tuple(f"{RUN_ID}/double/{index}" for index in (0, 1, 2))
        assert arguments(last, "x", "y", "z") == (({"a": ["x", ("y",)]},), {"right": Line("z")})

    def test_depth_is_the_longest_way_from_the_beginning(self) -> None:
        def body() -> Any:
            first = double(1)
            left, right = double(double(first)), double(first)
            return add(left, right)

        graph = Gone(body).graph
        assert [node.call.depth for node in graph.nodes.values()] == [0, 1, 2, 1, 3]
        assert [node.call.returns for node in graph.nodes.values()] == [False, False, False, False, True]
        assert [node.call.is_taken for node in graph.nodes.values()] == [True, True, True, True, False]

    def test_downstream_is_all_that_needs_a_call(self) -> None:
        def body() -> Any:
            first = double(1)
            left, right, _ = double(first), double(first), double(9)
            return add(double(left), right)

        graph = Gone(body).graph
        found = [sorted(graph.downstream(index)) for index in "012345"]
        assert found == [["1", "2", "4", "5"], ["4", "5"], ["5"], [], ["5"], []]

    @pytest.mark.parametrize(
        "shape", [lambda a, b: [a, b], lambda a, b: {"a": a, "b": (b, 1)}, lambda a, b: Order("x", [a, b])]
    )
    def test_a_composite_result_is_put_together_by_a_call_of_its_own(self, shape: Any) -> None:
        def body() -> Any:
            return shape(double(1), double(2))

        graph = Gone(body).graph
        collect = graph.nodes["result"]
        assert (collect.call.task, collect.call.key, collect.call.is_final) == ("", f"result-{RUN_ID}-result", True)
        assert collect.call.dependencies == (key("double", "0"), key("double", "1"))
        args, kwargs = arguments(collect, "x", "y")
        assert collected(*args, **kwargs) == shape("x", "y")
        assert not any(graph.nodes[index].call.returns for index in "01")

    def test_a_later_attempt_of_the_flow_takes_what_has_completed_and_makes_the_rest_anew(self) -> None:
        def body() -> Any:
            return add(double(1), double(2))

        class Second(FlowRun):
            def actual_index(self, task: str, index: str) -> str:
                return index if index == "0" else f"{index}~2"

        run = Second.__new__(Second)
        for name in FlowRun.__slots__:
            setattr(run, name, getattr(run_of("body"), name))
        graph = Gone(body, run=run).graph
        assert [node.call.index for node in graph.nodes.values()] == ["0", "1~2", "2~2"]
        assert graph.nodes["2"].call.dependencies == (key("double", "0"), key("double", "1~2"))
        assert graph.nodes["2"].parents == (f"{RUN_ID}/double/0", f"{RUN_ID}/double/1~2")


class TestMaps:
    def test_a_map_takes_one_place_and_its_elements_are_numbered_within_it(self) -> None:
        def body() -> Any:
            return total(double.map(add.map([1, 2], right=3)))

        graph = Gone(body).graph
        assert list(graph.nodes) == ["0.0", "0.1", "1.0", "1.1", "2"]
        assert [node.call.map_index for node in graph.nodes.values()] == [0, 1, 0, 1, None]
        assert arguments(graph.nodes["0.1"]) == ((2,), {"right": 3})

    def test_a_map_of_a_map_is_linked_element_by_element(self) -> None:
        def body() -> Any:
            return double.map(add.map([1, 2], right=3))

        graph = Gone(body).graph
        assert [graph.nodes[index].call.dependencies for index in ("1.0", "1.1")] == [
            (key("add", "0.0"),),
            (key("add", "0.1"),),
        ]
        assert graph.nodes["1.1"].parents == (f"{RUN_ID}/add/0.1",)
        assert graph.nodes["1.1"].call.depth == 1
        assert arguments(graph.nodes["1.1"], 7) == ((7,), {})

    def test_a_map_taken_as_a_whole_is_a_list_and_one_parent(self) -> None:
        def body() -> Any:
            return total(double.map([1, 2, 3]))

        last = Gone(body).graph.nodes["1"]
        assert last.call.dependencies == tuple(key("double", f"0.{place}") for place in range(3))
        assert last.parents == (f"{RUN_ID}/double/0",)
        assert arguments(last, 1, 2, 3) == (([1, 2, 3],), {})

    def test_a_map_over_nothing_is_an_empty_list(self) -> None:
        def body() -> Any:
            return total(double.map([]))

        graph = Gone(body).graph
        assert list(graph.nodes) == ["1"]
        assert arguments(graph.nodes["1"]) == (([],), {})

    def test_elements_of_a_sequence_may_be_handles_and_an_element_can_be_taken_alone(self) -> None:
        def body() -> Any:
            handles = double.map([double(1), 2])
            return add(handles[1], handles[0])

        graph = Gone(body).graph
        assert graph.nodes["1.0"].call.dependencies == (key("double", "0"),)
        assert graph.nodes["2"].call.dependencies == (key("double", "1.1"), key("double", "1.0"))
        assert graph.nodes["2"].parents == (f"{RUN_ID}/double/1.1", f"{RUN_ID}/double/1.0")

    def test_what_is_the_same_in_each_call_is_taken_whole(self) -> None:
        def body() -> Any:
            return add.map([1, 2], unmapped(double(9)))

        graph = Gone(body).graph
        assert all(graph.nodes[f"1.{place}"].call.dependencies == (key("double", "0"),) for place in range(2))
        assert arguments(graph.nodes["1.1"], 18) == ((2, 18), {})

    def test_a_large_constant_travels_once(self) -> None:
        def body() -> Any:
            return add.map([1, 2], unmapped(b"x" * 100_000))

        graph = Gone(body).graph
        shared = graph.nodes["0"].call
        assert (shared.task, shared.is_final, len(shared.arguments) > 100_000) == ("", False, True)
        element = graph.nodes["1.1"]
        assert element.call.dependencies == (shared.key,)
        assert element.parents == (), "it is no task of the user's"
        assert len(element.call.arguments) < 1_000
        args, kwargs = load(shared.arguments, ())
        assert collected(*args, **kwargs) == b"x" * 100_000

    def test_the_same_run_makes_the_same_graph_again(self) -> None:
        def body() -> Any:
            return total(add.map(double.map([1, 2]), unmapped(double(3))))

        assert Gone(body).graph.nodes == Gone(body).graph.nodes


def unknown() -> Any:
    return total(add.map(double.map(listing(3)), right=10))


class TestLengthsNotKnown:
    def test_elements_appear_when_the_length_is_known(self) -> None:
        graph = planned(unknown)
        assert list(graph.nodes) == ["0"]
        assert graph.nodes["0"].call.is_walked, "its report has to say how long it is"
        assert admitted(graph) == []
        assert (graph.is_whole, graph.is_growing) == (False, True)
        graph.set_length("0", 2)
        assert admitted(graph) == ["1.0", "1.1", "2.0", "2.1", "3"]
        assert graph.is_whole
        assert arguments(graph.nodes["1.1"], ["a", "b"]) == (("b",), {})
        assert graph.nodes["1.1"].call.dependencies == (key("listing", "0"),)
        assert graph.nodes["2.1"].call.dependencies == (key("double", "1.1"),)
        assert graph.nodes["3"].call.dependencies == (key("add", "2.0"), key("add", "2.1"))

    def test_no_element_at_all_is_a_length_too(self) -> None:
        graph = planned(unknown)
        graph.set_length("0", 0)
        assert admitted(graph) == ["3"]
        assert arguments(graph.nodes["3"]) == (([],), {})

    def test_columns_of_unequal_length_are_named_both(self) -> None:
        def body() -> Any:
            return total(add.map(listing(1), double.map(listing(2))))

        graph = planned(body)
        graph.set_length("0", 1)
        assert admitted(graph) == []
        assert not graph.broken
        graph.set_length("1", 2)
        admitted(graph)
        text = str(graph.broken["3"])
        assert "the result of listing (call 0) of 1 and the result of double (call 2) of 2" in text
        assert text.startswith("task add: map over columns of unequal length")

    def test_a_sequence_beside_a_result_is_named_too(self) -> None:
        def body() -> Any:
            return add.map([1, 2], listing(3))

        graph = planned(body)
        graph.set_length("0", 3)
        admitted(graph)
        assert "a sequence of 2 and the result of listing (call 0) of 3" in str(graph.broken["1"])

    def test_a_result_that_has_no_length_is_named(self) -> None:
        def body() -> Any:
            return add.map(double(3))

        graph = planned(body)
        graph.set_length("0", None)
        assert str(graph.broken["1"]) == (
            "task add: map over the result of double (call 0), which has no length. Return a list from it."
        )

    def test_a_map_longer_than_a_run_may_be_is_broken_before_it_is_made(self) -> None:
        graph = planned(unknown, max_tasks=50)
        graph.set_length("0", 51)
        assert admitted(graph) == []
        assert "has made 50 tasks" in str(graph.broken["1"])


class TestWindows:
    def test_elements_are_admitted_a_number_at_a_time_with_what_follows_them(self) -> None:
        def body() -> Any:
            return total(add.map(double.map(list(range(5))), right=1))

        graph = planned(body)
        assert admitted(graph, 2) == ["0.0", "0.1", "1.0", "1.1"]
        assert admitted(graph, 2) == ["0.2", "0.3", "1.2", "1.3"]
        assert not graph.is_whole
        assert admitted(graph, 2) == ["0.4", "1.4", "2"]
        assert graph.is_whole

    def test_two_maps_share_the_room(self) -> None:
        def body() -> Any:
            double.map([1, 2, 3])
            add.map([1, 2, 3])

        graph = planned(body)
        assert admitted(graph, 4) == ["0.0", "0.1", "0.2", "1.0"]
        assert admitted(graph, 0) == []

    @given(st.integers(0, 20), st.integers(1, 7), st.booleans())
    def test_at_most_so_many_rows_at_once_and_each_once(self, length: int, window: int, is_known: bool) -> None:
        def known() -> Any:
            return double.map(double.map(list(range(length))))

        def walked() -> Any:
            return double.map(double.map(listing(1)))

        graph = planned(known if is_known else walked)
        first, second = ("0", "1") if is_known else ("1", "2")
        graph.set_length("0", length)
        made: list[str] = []
        while not graph.is_whole:
            new = admitted(graph, window)
            assert len([index for index in new if index.startswith(f"{first}.")]) <= window
            made += [index for index in new if "." in index]
            assert new or length == 0
        assert sorted(made) == sorted(f"{at}.{place}" for at in (first, second) for place in range(length))


class TestDownstreamOfMaps:
    @staticmethod
    def chained() -> Graph:
        def body() -> Any:
            whole = total(add.map(double.map([1, 2]), right=1))
            return double(whole)

        return Gone(body).graph

    def test_an_element_leads_to_its_own_row_and_to_who_takes_all(self) -> None:
        assert sorted(self.chained().downstream("0.1")) == ["1.1", "2", "3"]

    def test_a_map_that_is_broken_leads_to_all_its_rows(self) -> None:
        assert sorted(self.chained().downstream("0")) == ["0.0", "0.1", "1", "1.0", "1.1", "2", "3"]

    def test_a_constant_of_a_map_leads_to_all_its_elements(self) -> None:
        def body() -> Any:
            add.map([1, 2], unmapped(double(1)))

        assert {"1.0", "1.1"} <= set(Gone(body).graph.downstream("0"))

    def test_the_result_that_is_walked_leads_to_the_map(self) -> None:
        graph = planned(unknown)
        assert set(graph.downstream("0")) >= {"1", "2", "3"}
        graph.set_length("0", 2)
        graph.admit(10)
        assert set(graph.downstream("0")) >= {"1.0", "1.1", "2.0", "2.1", "3"}

    def test_what_is_cancelled_grows_no_more_and_who_needs_it_is_known(self) -> None:
        graph = planned(unknown)
        for index in ("1", "2"):
            assert graph.cancel(index) is None
        cancelled = graph.cancel("3")
        assert cancelled is not None
        assert cancelled.call.task == "billing.total"
        assert graph.is_whole
        assert admitted(graph) == []


class TestChildren:
    def test_a_child_is_a_node_with_the_parents_it_takes_from(self) -> None:
        graph = Gone(lambda_of(double)).graph
        node = graph.add_child(child(add, "a" * 16, key("double", "0"), by="0"))
        assert node == Node(node.call, f"{RUN_ID}/add/{'a' * 16}", (f"{RUN_ID}/double/0",))
        assert graph.downstream("0") == ["a" * 16]

    def test_what_waits_for_its_children_is_downstream_of_them(self) -> None:
        def body() -> Any:
            return add(double(1), double(2))

        graph = Gone(body).graph
        graph.add_child(child(double, "a" * 16, by="0"))
        assert graph.downstream("a" * 16) == []
        graph.add_tail("0", ["a" * 16])
        graph.add_tail("0", ["a" * 16])
        assert sorted(graph.downstream("a" * 16)) == ["0", "2"]


def test_more_calls_than_a_run_may_have_are_refused_while_it_is_gone_through() -> None:
    def body() -> Any:
        while True:
            double(1)

    gone = Gone(body, limits=msgspec.structs.replace(LIMITS, max_tasks=5))
    assert gone.failure.type == "TooManyTasks"
    assert gone.planned == []


def test_an_async_task_is_told_apart() -> None:
    def body() -> Any:
        total([later(1)])

    graph = Gone(body).graph
    assert (graph.nodes["0"].call.is_async, graph.nodes["1"].call.is_async) == (True, False)
    assert graph.nodes["1"].call.timeout_seconds == 30
