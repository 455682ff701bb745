"""engine.graph: what a flow's function wires, and arguments on their way to a worker and back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import EventError, WiringError
from engine.flows import Flow, flow, on
from engine.graph import Graph, collected, dump, load, wire
from engine.runs import FlowRun
from engine.states import State, StateChange, utc
from engine.tasks import Handle, recorder
from tests.unit.samples import orders
from tests.unit.samples.orders import Line, Order, add, double, later, total

RUN_ID = "0123456789abcdef" * 2


def wire_flow(declared: Flow[..., Any], **parameters: Any) -> Graph:
    scheduled = StateChange(
        run_id=RUN_ID,
        flow=declared.name,
        state=State.SCHEDULED,
        seq=0,
        epoch=0,
        attempt=0,
        at=utc(1.0),
        parameters=msgspec.Raw(json.dumps(parameters).encode()),
    )
    return wire(declared, FlowRun(scheduled, 0), traceparent="00-x", now=2.0, inline_result_bytes=100)


def wire_body(function: Any) -> Graph:
    """The graph of a flow of that function."""
    function.__qualname__ = function.__name__  # as if it stood at the top of a module
    return wire_flow(flow(on("orders"))(function))


def arguments(graph: Graph, index: int, *results: Any) -> Any:
    """The arguments a worker gives to a call."""
    call = graph.calls[index]
    return load(call.arguments, results)


def test_a_call_is_one_node_with_everything_a_worker_needs() -> None:
    graph = wire_flow(orders.doubled, value=21)
    [node] = graph.nodes
    assert (node.task_run_id, node.parents, node.map_index, node.retry) == (f"{RUN_ID}/double/0", (), None, None)
    call = node.call
    assert (call.key, call.function) == (f"double-{RUN_ID}-0", "tests.unit.samples.orders:double")
    assert (call.flow, call.run_id, call.attempt, call.returns) == ("doubled", RUN_ID, 1, True)
    assert (call.traceparent, call.scheduled_at, call.inline_result_bytes) == ("00-x", 2.0, 100)
    assert load(call.arguments, ()) == ((21,), {})
    assert (graph.collect, graph.result) == (None, None)
    assert recorder.get() is None


def test_what_a_task_declares_is_on_its_calls() -> None:
    def body() -> Any:
        total([later(1)])

    graph = wire_body(body)
    assert (graph.nodes[0].call.is_async, graph.nodes[1].call.is_async) == (True, False)
    assert (graph.nodes[1].call.timeout_seconds, graph.nodes[1].retry) == (30, total.retry)


def test_handles_are_found_in_lists_dicts_structs_and_keywords() -> None:
    def body() -> None:
        one, two, three = double(1), double(2), double(3)
        add({"a": [one, (two,)]}, right=msgspec.structs.replace(Line("s"), sku=three))  # type: ignore[arg-type]

    graph = wire_body(body)
    last = graph.nodes[3]
    assert last.call.dependencies == (0, 1, 2)
    assert last.parents == tuple(f"{RUN_ID}/double/{index}" for index in (0, 1, 2))
    assert arguments(graph, 3, "x", "y", "z") == (({"a": ["x", ("y",)]},), {"right": Line("z")})  # type: ignore[arg-type]


def test_results_come_in_the_order_of_their_first_places() -> None:
    def body() -> None:
        one, two = double(1), double(2)
        total([two, one, two])

    graph = wire_body(body)
    assert graph.nodes[2].call.dependencies == (1, 0)
    assert arguments(graph, 2, "b", "a") == ((["b", "a", "b"],), {})


def test_depth_is_the_longest_way_from_the_beginning() -> None:
    def body() -> Any:
        first = double(1)
        left, right = double(double(first)), double(first)
        return add(left, right)

    graph = wire_body(body)
    assert [node.call.depth for node in graph.nodes] == [0, 1, 2, 1, 3]
    assert [node.call.returns for node in graph.nodes] == [False, False, False, False, True]


def test_downstream_is_all_that_needs_a_call() -> None:
    def body() -> Any:
        first = double(1)
        left, right, _ = double(first), double(first), double(9)
        return add(double(left), right)

    graph = wire_body(body)
    assert [graph.downstream(index) for index in range(6)] == [[1, 2, 4, 5], [4, 5], [5], [], [5], []]


def test_a_map_numbers_its_calls() -> None:
    def body() -> Any:
        return total(double.map(add.map([1, 2], right=3)))

    graph = wire_body(body)
    assert [node.map_index for node in graph.nodes] == [0, 1, 0, 1, None]
    assert [node.call.dependencies for node in graph.nodes] == [(), (), (0,), (1,), (2, 3)]
    assert arguments(graph, 1) == ((2,), {"right": 3})


@pytest.mark.parametrize("shape", [lambda a, b: [a, b], lambda a, b: {"a": a, "b": (b, 1)}, lambda a, b: Order("x", [a, b])])
def test_a_composite_result_is_put_together_by_a_call_of_its_own(shape: Any) -> None:
    def body() -> Any:
        return shape(double(1), double(2))

    graph = wire_body(body)
    collect = graph.collect
    assert collect is not None
    assert graph.calls == (graph.nodes[0].call, graph.nodes[1].call, collect)
    assert (collect.task, collect.key, collect.dependencies, collect.returns) == ("", f"result-{RUN_ID}-2", (0, 1), True)
    args, kwargs = load(collect.arguments, ("x", "y"))
    assert collected(*args, **kwargs) == shape("x", "y")
    assert not any(node.call.returns for node in graph.nodes)


@pytest.mark.parametrize(("value", "result"), [(None, b"null"), (7, b"7"), ([1, {"a": 2}], b'[1,{"a":2}]'), (Line("s"), None)])
def test_a_plain_result_needs_no_call(value: Any, result: bytes | None) -> None:
    def body() -> Any:
        double(1)
        return value

    graph = wire_body(body)
    assert graph.collect is None
    assert graph.result == (result or b'{"sku":"s","count":1}')
    assert len(graph.calls) == 1


@pytest.mark.parametrize("argument", [lambda: 0, (value for value in ())], ids=["lambda", "generator"])
def test_an_argument_that_cannot_travel_names_the_task(argument: Any) -> None:
    def body() -> Any:
        double(argument)

    with pytest.raises(WiringError, match="task double: an argument cannot travel to a worker") as caught:
        wire_body(body)
    assert caught.value.remedy


def test_what_a_flow_raises_comes_out_and_leaves_nothing_behind() -> None:
    def body() -> Any:
        double(1)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        wire_body(body)
    assert recorder.get() is None
    assert double(2) == 4


def test_parameters_that_do_not_fit_any_more_are_an_event_error() -> None:
    with pytest.raises(EventError, match=r"\$\.value"):
        wire_flow(orders.doubled, value="x")


def test_the_same_run_wires_the_same_graph_again() -> None:
    assert wire_flow(orders.doubled, value=1) == wire_flow(orders.doubled, value=1)


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.integers(0, 4).map(lambda i: Handle("t", i))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3), st.tuples(inner)
    ),
    max_leaves=8,
)


def replaced(value: Any) -> Any:
    """``value`` with the text of its index in the place of each handle."""
    match value:
        case Handle():
            return f"result {value.index}"
        case list():
            return [replaced(each) for each in value]
        case tuple():
            return tuple(replaced(each) for each in value)
        case dict():
            return {key: replaced(each) for key, each in value.items()}
    return value


@given(plain)
def test_any_arguments_arrive_with_results_in_the_places_of_handles(value: Any) -> None:
    data, dependencies = dump(value)
    assert len(set(dependencies)) == len(dependencies)
    assert load(data, [f"result {index}" for index in dependencies]) == replaced(value)
