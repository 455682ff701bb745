"""engine.tasks: plain functions outside a flow, handles inside it, and errors that say what to do."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from engine.errors import WiringError
from engine.handles import Done, Handle, MapHandle, Unmapped, recorder, unmapped
from engine.tasks import Task, resolve, task
from tests.unit.samples import orders
from tests.unit.samples.orders import add, double, later, total


class Noted:
    """A recorder that notes calls."""

    def __init__(self, takes_calls: bool = True) -> None:
        self.takes_calls = takes_calls
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.maps: list[tuple[str, list[Any], dict[str, Any]]] = []

    def call(self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle:
        self.calls.append((task.name, args, kwargs))
        return Handle(task.name, str(len(self.calls) - 1), "r")

    def map(self, task: Task[..., Any], columns: Sequence[Any], fixed: dict[str, Any]) -> MapHandle:
        self.maps.append((task.name, list(columns), fixed))
        return MapHandle(task.name, f"m{len(self.maps) - 1}", "r", None)

    def wait(self, handle: Any) -> Any:
        raise NotImplementedError

    def result(self, handle: Any) -> Any:
        return ("result", handle.index)


def within(call: Callable[[], Any], *, takes_calls: bool = True) -> tuple[Any, Noted]:
    """What ``call`` gives inside a flow, or inside a running task, and what it asked for."""
    noted = Noted(takes_calls)
    token = recorder.set(noted)
    try:
        return call(), noted
    finally:
        recorder.reset(token)


def wired(call: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What ``call`` gives inside a flow, and the calls it made."""
    answer, noted = within(call)
    return answer, noted.calls


async def test_outside_a_flow_a_task_is_its_function() -> None:
    assert double(21) == 42
    assert add(1, right=2) == 3
    assert add.map([1, 2], [3, 4]) == [4, 6]
    assert double.map(value for value in (1, 2)) == [2, 4]
    assert await later(1) == 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        double()  # type: ignore[call-arg]


def test_a_task_looks_like_its_function() -> None:
    assert (double.__name__, double.__doc__, double.__module__) == ("double", "Twice the value.", orders.__name__)
    assert (double.name, total.name) == ("double", "billing.total")
    assert (total.timeout_seconds, later.is_async, double.is_async) == (30, True, False)


def test_inside_a_flow_a_call_runs_nothing_and_gives_a_handle() -> None:
    handle, calls = wired(lambda: orders.raises("value"))
    assert (handle.task, handle.index) == ("raises", "0")
    assert calls == [("raises", ("value",), {})]


def test_inside_a_running_task_a_call_is_the_function_and_spawn_starts_a_child() -> None:
    value, noted = within(lambda: double(21), takes_calls=False)
    assert (value, noted.calls) == (42, [])
    handle, noted = within(lambda: double.spawn(21), takes_calls=False)
    assert (handle.index, noted.calls) == ("0", [("double", (21,), {})])
    handles, noted = within(lambda: double.map([1, 2]), takes_calls=False)
    assert (handles.index, noted.maps) == ("m0", [("double", [[1, 2]], {})])


def test_in_a_flow_spawn_is_a_call() -> None:
    _, calls = wired(lambda: double.spawn(21))
    assert calls == [("double", (21,), {})]


async def test_outside_any_run_spawn_runs_here_and_now() -> None:
    done = double.spawn(21)
    assert isinstance(done, Done)
    assert done.result() == 42
    assert await done == 42
    with pytest.raises(WiringError, match=r"double\(value: 'int'\)"):
        double.spawn()  # type: ignore[call-arg]


@pytest.mark.parametrize("call", [lambda: double(), lambda: double(1, 2), lambda: double(nope=1), lambda: double.spawn()])
def test_a_wrong_call_is_refused_while_wiring_and_names_the_signature(call: Callable[[], Any]) -> None:
    with pytest.raises(WiringError, match=r"double\(value: 'int'\)"):
        wired(call)


def test_a_map_hands_its_columns_to_the_recorder_as_sequences() -> None:
    handles, noted = within(lambda: add.map([1, 2], (3, 4)))
    assert isinstance(handles, MapHandle)
    assert noted.maps == [("add", [[1, 2], (3, 4)], {})]
    _, noted = within(lambda: add.map(iter([1]), right=9))
    assert noted.maps == [("add", [[1]], {"right": 9})]
    _, noted = within(lambda: add.map([]))
    assert noted.maps == [("add", [[]], {})]


def test_a_map_may_walk_a_handle_another_map_and_keep_something_whole() -> None:
    one, table = double(1), {"a": 1}
    other = MapHandle("double", "3", "r", None)
    handle = Handle("double", "1", "r")
    _, noted = within(lambda: total.map(handle, other, unmapped(table)))
    [(_, [first, second, third], _)] = noted.maps
    assert (first, second) == (handle, other)
    assert isinstance(third, Unmapped)
    assert third.value is table
    assert one == 2


def test_outside_a_flow_a_map_is_a_list_and_unmapped_is_the_same_in_each() -> None:
    assert add.map([1, 2], unmapped(10)) == [11, 12]
    assert add.map(unmapped(10), [1, 2]) == [11, 12]
    assert total.map([[1], [2, 3]]) == [1, 5]


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (lambda: add.map([1, 2], [3]), r"columns of unequal length: \[1, 2\] of 2 and \[3\] of 1"),
        (lambda: add.map([1, 2], MapHandle("double", "3", "r", 3)), r"\[1, 2\] of 2 and <handles of double.* of 3"),
        (lambda: add.map(), "nothing to walk over"),
        (lambda: add.map(unmapped([1])), "nothing to walk over"),
        (lambda: add.map(1), "map over a value of type int, which has no elements"),
    ],
)
def test_map_says_what_it_cannot_walk_in_a_flow_and_outside(call: Callable[[], Any], cause: str) -> None:
    for attempt in (call, lambda: wired(call)):
        with pytest.raises(WiringError, match=cause) as caught:
            attempt()
        assert caught.value.remedy


@task
def says_nothing(value):  # type: ignore[no-untyped-def]
    return value


@task
def says_what_does_not_exist(value: int) -> "Missing":  # type: ignore[name-defined]  # noqa: F821, UP037
    return value


def test_what_a_task_returns_is_what_it_says_and_anything_where_it_says_nothing() -> None:
    assert (double.result_type, total.result_type) == (int, int)
    assert says_nothing.result_type is Any
    assert says_what_does_not_exist.result_type is Any


def test_a_task_travels_by_reference() -> None:
    assert pickle.loads(pickle.dumps(double)) is double
    assert resolve(double.reference) is double


@pytest.mark.parametrize("reference", ["no_such_module:f", "tests.unit.samples.orders:missing", ""])
def test_a_reference_to_nothing_is_an_error(reference: str) -> None:
    with pytest.raises((ImportError, AttributeError, ValueError)):
        resolve(reference)
