"""engine.arguments: arguments arrive as they were, with results in the places of handles."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine.arguments
from engine.arguments import ElementOf, ItemOf, Wiring, child_index, collected, dump, load
from engine.errors import WiringError
from engine.executor import values_at
from engine.handles import Handle, MapHandle
from tests.unit.samples.orders import Line

RUN_ID = "0123456789abcdef" * 2


def handle(index: str, run_id: str = RUN_ID) -> Handle:
    return Handle("t", index, run_id)


MAP = MapHandle("m", "9", RUN_ID, None)


def test_handles_are_found_in_lists_dicts_structs_and_keywords() -> None:
    one, two, three = handle("1"), handle("2"), handle("3")
    sent = (({"a": [one, (two,)]},), {"right": msgspec.structs.replace(Line("s"), sku=three)})
    dumped = dump(sent, "t", RUN_ID)
    assert list(dumped.inputs) == [one, two, three]
    assert load(dumped.data, ["x", "y", "z"]) == (({"a": ["x", ("y",)]},), {"right": Line("z")})


def test_results_come_in_the_order_of_their_first_places_and_once() -> None:
    one, two = handle("1"), handle("2")
    dumped = dump([two, one, two, handle("2")], "t", RUN_ID)
    assert list(dumped.inputs) == [two, one]
    assert load(dumped.data, ["b", "a"]) == ["b", "a", "b", "b"]


def test_a_whole_map_its_element_and_an_item_are_different_inputs() -> None:
    dumped = dump([MAP, ElementOf(MAP), handle("9"), ItemOf(handle("9"))], "t", RUN_ID)
    assert [type(taken) for taken in dumped.inputs] == [MapHandle, ElementOf, Handle, ItemOf]
    assert load(dumped.data, ["all", "one", "value", "item"]) == ["all", "one", "value", "item"]


@pytest.mark.parametrize("foreign", [handle("1", "f" * 32), MapHandle("m", "1", "f" * 32, 2)])
def test_a_handle_of_another_run_is_refused_and_both_are_named(foreign: Any) -> None:
    with pytest.raises(WiringError, match=rf"task t: .* belongs to another run \({'f' * 32}\)\. .*engine\.attach"):
        dump([1, {"x": foreign}], "t", RUN_ID)


@pytest.mark.parametrize(
    "argument", [lambda: 0, (value for value in ()), threading.Lock()], ids=["lambda", "generator", "lock"]
)
def test_an_argument_that_cannot_travel_names_the_task_and_the_remedy(argument: Any) -> None:
    with pytest.raises(WiringError, match=r"task price: an argument cannot travel to a worker: .*Pass plain values"):
        dump(((argument,), {}), "price", RUN_ID)


def test_arguments_that_are_too_large_say_how_large_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.arguments, "MAX_ARGUMENT_BYTES", 1_000)
    assert dump(b"x" * 900, "t", RUN_ID)
    with pytest.raises(WiringError, match=r"its arguments take 1,\d\d\d bytes, of 1,000 allowed\. Pass a reference"):
        dump(b"x" * 1_001, "t", RUN_ID)


def test_a_value_that_was_put_together_is_what_was_returned() -> None:
    args, kwargs = load(dump((({"a": handle("1")},), {}), "", RUN_ID).data, [7])
    assert collected(*args, **kwargs) == {"a": 7}


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.integers(0, 4).map(lambda n: handle(str(n)))),
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
    dumped = dump(value, "t", RUN_ID)
    indices = [taken.index for taken in dumped.inputs if isinstance(taken, Handle)]
    assert len(set(indices)) == len(indices) == len(dumped.inputs)
    assert load(dumped.data, [f"result {index}" for index in indices]) == replaced(value)


class TestPlaces:
    def test_one_value_after_the_other_needs_no_places(self) -> None:
        wiring = Wiring()
        wiring.take("a")
        wiring.take("b")
        assert wiring.finish() == (("a", "b"), ())
        assert values_at((), ["x", "y"]) == ["x", "y"]

    def test_a_map_as_a_whole_is_a_list_between_values(self) -> None:
        wiring = Wiring()
        wiring.take("a")
        wiring.take_all(["m0", "m1"])
        wiring.take("b")
        dependencies, places = wiring.finish()
        assert dependencies == ("a", "m0", "m1", "b")
        assert values_at(places, ["A", 0, 1, "B"]) == ["A", [0, 1], "B"]

    def test_a_map_of_no_elements_is_an_empty_list(self) -> None:
        wiring = Wiring()
        wiring.take_all([])
        assert values_at(wiring.finish()[1], []) == [[]]

    def test_an_item_and_its_whole_value_are_one_dependency(self) -> None:
        wiring = Wiring()
        wiring.take_item("a", 2)
        wiring.take("a")
        dependencies, places = wiring.finish()
        assert dependencies == ("a",)
        assert values_at(places, [[7, 8, 9]]) == [9, [7, 8, 9]]


class TestChildIndex:
    def test_it_is_the_same_in_every_process_and_release(self) -> None:
        index = child_index("3", 1, 0, "price", b"args")
        assert index == child_index("3", 1, 0, "price", b"args")
        assert len(bytes.fromhex(index)) == 8

    @pytest.mark.parametrize(
        "other",
        [
            ("4", 1, 0, "price", b"args"),
            ("3", 2, 0, "price", b"args"),
            ("3", 1, 1, "price", b"args"),
            ("3", 1, 0, "weigh", b"args"),
            ("3", 1, 0, "price", b"other"),
        ],
    )
    def test_another_parent_attempt_number_task_or_argument_makes_another_child(self, other: Any) -> None:
        assert child_index(*other) != child_index("3", 1, 0, "price", b"args")
