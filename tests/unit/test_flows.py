"""engine.flows: declarations that say what is wrong with them, and parameters bound from events."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DeclarationError, EventError
from engine.events import Event, Position, RawEvent, Reason
from engine.flows import Flow, flow, on
from tests.unit.samples import orders
from tests.unit.samples.orders import Account, Line, Order, Reading

POSITION = Position("orders", 0, 3)


def event(data: bytes | None, **fields: Any) -> RawEvent:
    values: dict[str, Any] = {"id": "42", "source": "/shop", "type": "order.created", "position": POSITION} | fields
    return Event(data=data, **values)


def run(flow: Flow[..., Any], data: bytes | None, **fields: Any) -> Any:
    """What the flow's function gets, by way of the log."""
    arguments = flow.arguments(flow.bind(flow.read_event(event(data, **fields))))
    return flow(**arguments)


class TestBinding:
    def test_one_struct_takes_the_data_whole(self) -> None:
        assert run(orders.whole, b'{"id":"a","lines":[{"sku":"s"}]}') == Order("a", [Line("s", 1)])

    def test_one_dataclass_takes_the_data_whole(self) -> None:
        assert run(orders.reading, b'{"sensor":"s","value":1.5,"more":0}') == Reading("s", 1.5)

    def test_one_typed_dict_takes_the_data_whole(self) -> None:
        expected: Account = {"name": "n"}
        assert run(orders.account, b'{"name":"n"}') == expected

    def test_an_optional_struct_may_be_missing(self) -> None:
        assert run(orders.perhaps, b'{"id":"a"}') == Order("a")
        assert run(orders.perhaps, None) is None
        assert run(orders.perhaps, b"null") is None

    def test_several_parameters_are_fields_of_the_data(self) -> None:
        assert run(orders.several, b'{"id":"a","count":2,"tags":[],"other":1}') == ("a", 2, [])

    def test_defaults_fill_in_and_are_not_shared_between_runs(self) -> None:
        _, _, tags = run(orders.several, b'{"id":"a"}')
        tags.append("mine")
        assert run(orders.several, b'{"id":"b"}') == ("b", 1, ["new"])

    def test_keyword_only_parameters_are_bound_too(self) -> None:
        assert run(orders.keyword, b'{"at":"2026-01-01T00:00:00Z"}') == datetime(2026, 1, 1, tzinfo=UTC)

    def test_the_whole_event_comes_with_its_data_typed(self) -> None:
        found = run(orders.entire, b'{"id":"a"}', extensions={"tenant": "t"}, subject="s")
        assert (found.data, found.id, found.extensions, found.position) == (Order("a"), "42", {"tenant": "t"}, POSITION)

    def test_an_event_without_a_type_brings_whatever_the_data_is(self) -> None:
        assert run(orders.raw, b'[1,"x"]').data == [1, "x"]
        assert run(orders.raw, None).data is None

    @pytest.mark.parametrize("data", [None, b"", b"{}", b'{"a":1}'])
    def test_a_flow_without_parameters_takes_any_object_or_none(self, data: bytes | None) -> None:
        assert run(orders.nothing, data) is None

    def test_no_data_is_an_object_without_fields(self) -> None:
        with pytest.raises(EventError, match="missing required field `id`"):
            run(orders.several, b"")

    @pytest.mark.parametrize(
        ("flow", "data", "text"),
        [
            (orders.whole, b'{"id":1}', r"Expected `str`, got `int` - at `\$\.id`"),
            (orders.whole, b"{}", "missing required field `id`"),
            (orders.whole, b"[]", "Expected `object`, got `array`"),
            (orders.whole, None, "Expected `object`, got `null`"),
            (orders.several, b'{"id":"a","count":"x"}', r"Expected `int`, got `str` - at `\$\.count`"),
            (orders.several, b'{"id":"a","tags":[1]}', r"\$\.tags\["),
            (orders.several, b'{"count":1}', "missing required field `id`"),
            (orders.entire, b'{"id":1}', r"\$\.id"),
            (orders.reading, b'{"sensor":1}', r"\$\.sensor"),
            (orders.account, b"{}", "missing required field `name`"),
        ],
    )
    def test_data_that_does_not_fit_names_the_field(self, flow: Flow[..., Any], data: bytes | None, text: str) -> None:
        with pytest.raises(EventError, match=text) as caught:
            run(flow, data)
        assert caught.value.reason == Reason.INVALID_PARAMETERS

    def test_broken_data_is_told_from_data_that_does_not_fit(self) -> None:
        with pytest.raises(EventError) as caught:
            run(orders.whole, b'{"id":')
        assert caught.value.reason == Reason.MALFORMED_DATA

    def test_parameters_are_an_object_keyed_by_the_parameter_names(self) -> None:
        bind = lambda flow: flow.bind(flow.read_event(event(b'{"id":"a"}')))  # noqa: E731
        assert bind(orders.whole) == b'{"order":{"id":"a","lines":[]}}'
        assert bind(orders.several) == b'{"id":"a","count":1,"tags":["new"]}'
        assert bind(orders.nothing) == b"{}"
        assert bind(orders.entire).startswith(b'{"event":{"id":"42"')

    @pytest.mark.parametrize("parameters", [b"", b"x", b"\xff", b"[]", b"{}", b'{"order":1}', b"[" * 100_000])
    def test_parameters_of_another_time_that_do_not_fit_are_an_event_error(self, parameters: bytes) -> None:
        with pytest.raises(EventError) as caught:
            orders.whole.arguments(parameters)
        assert caught.value.reason == Reason.INVALID_PARAMETERS


def test_a_flow_called_by_hand_is_plain_python() -> None:
    assert orders.doubled(4) == 8
    assert orders.doubled.__doc__ is None
    assert orders.doubled.__wrapped__(4) == 8  # type: ignore[attr-defined]


_numbers = itertools.count()


@pytest.fixture
def declare(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Import a handler module of the given text."""
    made: list[str] = []

    def import_text(text: str) -> Any:
        name = f"declared_{next(_numbers)}"
        file = tmp_path / f"{name}.py"
        file.write_text(f"from engine import Event, Retry, flow, on, task\nfrom typing import Any\n{text}")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        made.append(name)
        spec.loader.exec_module(module)
        return module

    yield import_text
    for name in made:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        ("@flow(on('a'), retries=3)\ndef f(): ...", 3, r"flow\(\) has no argument 'retries'"),
        ("x = 1\n@flow(on('a', typ='b'))\ndef f(): ...", 4, r"on\(\) has no argument 'typ'"),
        ("@task(retires=3)\ndef t(): ...", 3, r"task\(\) has no argument 'retires'"),
        ("@flow(on('a'))\ndef f(order): ...", 3, "'order' of the flow f has no type"),
        ("@flow(on('a'))\ndef f(*args: int): ...", 3, r"\*args: int"),
        ("@flow(on('a'))\ndef f(**more: int): ...", 3, r"\*\*more: int"),
        ("@flow(on('a'))\ndef f(a: int, /): ...", 3, "a: int"),
        ("@flow(on('a'))\ndef f():\n    yield 1", 3, "the flow f is a generator"),
        ("@flow(on('a'))\nasync def f():\n    yield 1", 3, "the flow f is a generator"),
        ("@flow(on('a'))\ndef f(event: Event[int], other: int): ...", 3, "the whole event and other parameters"),
        ("@flow(on('a'))\ndef f(order: 'Missing'): ...", 3, "'Missing' is not defined"),
        ("@flow(on('a'))\ndef f(a: list[int] | tuple[int, ...]): ...", 3, "cannot be decoded"),
        ("@flow('a')\ndef f(): ...", 3, "'a' is not a trigger"),
        ("@flow(on('a'))\ndef f(): ...\n\n@flow(on('b'))\ndef f(): ...", 6, r"there is a flow f already, at .*:3"),
        ("def g():\n    @flow(on('a'))\n    def f(): ...\ng()", 4, "defined inside a function"),
        ("def g():\n    @task\n    def t(): ...\ng()", 4, "defined inside a function"),
        ("@task(timeout_seconds=0)\ndef t(): ...", 3, "not positive"),
        ("@task(name='no spaces')\ndef t(): ...", 3, "not a task name"),
        ("@task(retry=Retry(0))\ndef t(): ...", 3, "no attempt at all"),
    ],
)
def test_a_wrong_declaration_names_file_line_cause_and_remedy(
    declare: Callable[[str], Any], tmp_path: Path, text: str, line: int, cause: str
) -> None:
    with pytest.raises(DeclarationError, match=cause) as caught:
        declare(text)
    assert Path(caught.value.file).parent == tmp_path
    assert caught.value.line == line
    assert caught.value.remedy.endswith(".")
    assert str(caught.value).startswith(f"{caught.value.file}:{line}: ")


def test_a_flow_is_named_after_its_function_unless_told(declare: Callable[[str], Any]) -> None:
    module = declare("@flow(on('a'))\ndef f(): ...\n@flow(on('a'), name='other')\ndef g(): ...")
    assert (module.f.name, module.g.name) == ("f", "other")


def test_several_triggers_may_start_a_flow() -> None:
    assert orders.whole.triggers == (on("orders"),)
    assert flow(on("a"), on("b"))(plain).triggers == (on("a"), on("b"))


def plain() -> None:
    """A function at module level."""
