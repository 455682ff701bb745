"""engine.schemas: says which field of a value does not fit, in step with what msgspec decodes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from engine.schemas import fields, problem, value_of


class Colour(Enum):
    RED = "red"


class Line(msgspec.Struct):
    sku: str
    count: Annotated[int, msgspec.Meta(ge=1, le=9)]
    next: Line | None = None


class Order(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    lines: list[Line] = []
    price: float = 0.0
    colour: Colour = Colour.RED
    pair: tuple[int, str] = (1, "a")
    kind: Literal["a", "b"] = "a"
    tags: dict[str, int] = {}
    code: Annotated[str, msgspec.Meta(min_length=2, max_length=3)] = "ab"
    either: int | str | None = None


class Parameters(msgspec.Struct):
    order: Order
    count: int = 1
    name: str = ""


SCHEMA = msgspec.json.schema(Parameters)
GOOD: list[dict[str, Any]] = [
    {"order": {"id": "1"}},
    {"order": {"id": "1", "lines": [{"sku": "t", "count": 2, "next": {"sku": "u", "count": 1}}]}, "count": 3},
    {"order": {"id": "1", "price": 2, "pair": [1, "b"], "tags": {"a": 1}, "either": "x", "colour": "red"}},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "the field 'order' is missing"),
    ({"order": 3}, "order: expected object, got integer"),
    ({"order": {"id": None}}, "order.id: expected string, got null"),
    ({"order": {"id": "1", "lines": [{"sku": "t", "count": 2}, {"sku": "t", "count": "x"}]}}, "order.lines[1].count:"),
    ({"order": {"id": "1", "lines": [{"sku": "t", "count": 10}]}}, "order.lines[0].count: expected at most 9, got 10"),
    ({"order": {"id": "1", "lines": [{"sku": "t", "count": 1, "next": {"sku": 1, "count": 1}}]}}, "order.lines[0].next.sku:"),
    ({"order": {"id": "1", "odd": 1}}, "order: there is no field 'odd'"),
    ({"order": {"id": "1", "price": "x"}}, "order.price: expected number, got string"),
    ({"order": {"id": "1", "colour": "blue"}}, 'order.colour: expected one of ["red"]'),
    ({"order": {"id": "1", "pair": [1]}}, "order.pair: expected at least 2 elements, got 1"),
    ({"order": {"id": "1", "pair": [1, 2]}}, "order.pair[1]: expected string, got integer"),
    ({"order": {"id": "1", "kind": "c"}}, "order.kind: expected one of"),
    ({"order": {"id": "1", "tags": {"a": "b"}}}, "order.tags.a: expected integer, got string"),
    ({"order": {"id": "1", "code": "a"}}, "order.code: expected at least 2 characters, got 1"),
    ({"order": {"id": "1", "either": []}}, "order.either:"),
    ({"order": {"id": "1"}, "count": True}, "count: expected integer, got boolean"),
]


@pytest.mark.parametrize("value", GOOD)
def test_what_msgspec_takes_fits(value: dict[str, Any]) -> None:
    msgspec.json.decode(msgspec.json.encode(value), type=Parameters)
    assert problem(value, SCHEMA) is None


@pytest.mark.parametrize(("value", "text"), BAD, ids=[text for _, text in BAD])
def test_what_msgspec_refuses_is_told_with_its_place(value: dict[str, Any], text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(value), type=Parameters)
    assert (problem(value, SCHEMA) or "").startswith(text)


def test_a_schema_that_says_nothing_takes_everything() -> None:
    assert problem({"a": [1]}, {}) is None
    assert problem(object(), {"description": "of a type with rules of its own"}) is None
    assert problem(1, {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}) is None


def test_texts_mean_what_the_parameter_can_be() -> None:
    assert set(fields(SCHEMA)) == {"order", "count", "name"}
    assert value_of("3", "count", SCHEMA) == 3
    assert value_of("3", "name", SCHEMA) == "3"
    assert value_of("tea", "name", SCHEMA) == "tea"
    assert value_of('"tea"', "name", SCHEMA) == "tea"
    assert value_of('{"id": "1"}', "order", SCHEMA) == {"id": "1"}
    assert value_of("3", "unknown", SCHEMA) == 3
    assert value_of("x", "count", SCHEMA) == "x"
