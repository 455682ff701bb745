"""engine.tasks: plain functions outside a flow, handles inside it, and errors that say what to do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import WiringError
from engine.tasks import Handle, Task, recorder, resolve
from tests.unit.samples import orders
from tests.unit.samples.orders import add, double, later, total


class Noted:
    """A recorder that notes calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any], int | None]] = []

    def call(self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], map_index: int | None) -> Handle:
        self.calls.append((task.name, args, kwargs, map_index))
        return Handle(task.name, len(self.calls) - 1)


def wired(call: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What ``call`` gives inside a flow, and the calls it made."""
    noted = Noted()
    token = recorder.set(noted)
    try:
        return call(), noted.calls
    finally:
        recorder.reset(token)


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
    assert (handle.task, handle.index) == ("raises", 0)
    assert calls == [("raises", ("value",), {}, None)]


@pytest.mark.parametrize(
    "call", [lambda: double(), lambda: double(1, 2), lambda: double(nope=1), lambda: double.map([1], no=2)]
)
def test_a_wrong_call_is_refused_while_wiring_and_names_the_signature(call: Callable[[], Any]) -> None:
    with pytest.raises(WiringError, match=r"double\(value: 'int'\)"):
        wired(call)


def test_map_makes_one_call_for_each_element_and_walks_several_together() -> None:
    handles, calls = wired(lambda: add.map([1, 2], (3, 4)))
    assert [handle.index for handle in handles] == [0, 1]
    assert calls == [("add", (1, 3), {}, 0), ("add", (2, 4), {}, 1)]
    _, calls = wired(lambda: add.map(iter([1]), right=9))
    assert calls == [("add", (1,), {"right": 9}, 0)]
    assert wired(lambda: add.map([])) == ([], [])


def test_map_may_walk_handles() -> None:
    _, calls = wired(lambda: double.map(double.map([1, 2])))
    assert [(name, index) for name, _, _, index in calls] == [("double", 0), ("double", 1)] * 2
    assert all(isinstance(args[0], Handle) for _, args, _, _ in calls[2:])


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (lambda: add.map([1, 2], [3]), r"unequal length \[2, 1\]"),
        (lambda: add.map(), "nothing to walk over"),
        (lambda: add.map(double(1)), "how long that result will be is not known"),
    ],
)
def test_map_says_what_it_cannot_walk(call: Callable[[], Any], cause: str) -> None:
    with pytest.raises(WiringError, match=cause) as caught:
        wired(call)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "look",
    [
        bool,
        len,
        iter,
        int,
        float,
        list,
        lambda handle: handle.field,
        lambda handle: handle[0],
        lambda handle: handle(),
        lambda handle: handle + 1,
        lambda handle: handle < 1,
        lambda handle: handle >= 1,
        lambda handle: 1 in handle,
        lambda handle: [*handle],
    ],
)
def test_looking_at_a_value_that_is_not_there_yet_says_so(look: Callable[[Any], Any]) -> None:
    with pytest.raises(WiringError, match=r"a flow only wires the graph.*Hand the handle to another task"):
        look(Handle("price", 3))


def test_a_handle_can_be_shown_and_copied() -> None:
    handle = Handle("price", 3)
    assert repr(handle) == "<handle of price, call 3>"
    assert copy.copy(handle).index == 3


def test_a_task_travels_by_reference() -> None:
    assert pickle.loads(pickle.dumps(double)) is double
    assert resolve(double.reference) is double


@pytest.mark.parametrize("reference", ["no_such_module:f", "tests.unit.samples.orders:missing", ""])
def test_a_reference_to_nothing_is_an_error(reference: str) -> None:
    with pytest.raises((ImportError, AttributeError, ValueError)):
        resolve(reference)
