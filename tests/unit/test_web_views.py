"""engine.schema_forms, byte_views, settings_shown: what pages show and what their forms mean, as rules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.byte_views import as_hex, as_text, dump, from_form, pretty
from engine.command_errors import ParametersError, UsageError
from engine.schema_forms import Field, fields_of, parameters_of
from engine.schemas import problem
from engine.settings import Secret, Settings
from engine.settings_shown import masked, shown


class Line(msgspec.Struct):
    sku: str
    quantity: int = 1


class Customer(msgspec.Struct):
    name: str
    boss: Customer | None = None


class Order(msgspec.Struct):
    id: str
    customer: Customer
    express: bool
    lines: list[Line]
    speed: Literal["slow", "fast", 3]
    amount: Annotated[float, msgspec.Meta(ge=0)] = 1.5
    note: str | None = None


class Parameters(msgspec.Struct):
    order: Order
    count: int = 2


SCHEMA = msgspec.json.schema(Parameters)


def by_label(schema: dict[str, Any]) -> dict[str, Field]:
    return {field.label: field for field in fields_of(schema)}


def test_a_schema_becomes_fields_of_the_kinds_that_people_fill() -> None:
    fields = by_label(SCHEMA)
    assert {label: field.kind for label, field in fields.items()} == {
        "order.id": "text",
        "order.customer.name": "text",
        "order.customer.boss": "json",
        "order.express": "boolean",
        "order.lines": "json",
        "order.speed": "choice",
        "order.amount": "number",
        "order.note": "text",
        "count": "number",
    }
    assert {label for label, field in fields.items() if field.is_required} == {
        *("order.id", "order.customer.name", "order.express", "order.lines", "order.speed")
    }
    assert set(fields["order.speed"].choices) == {"slow", "fast", "3"}
    assert (fields["order.amount"].value, fields["order.amount"].about) == ("1.5", "≥ 0")


def test_a_filled_form_means_parameters_that_fit_the_schema() -> None:
    given = {
        "p:order/id": ["007"],
        "p:order/customer/name": ["Ada"],
        "p:order/customer/boss": [""],
        "p:order/express": ["true"],
        "p:order/lines": ['[{"sku": "tea"}]'],
        "p:order/speed": ["3"],
        "p:order/amount": ["2"],
        "p:order/note": [""],
        "p:count": [""],
        "nonce": ["x"],
    }
    made = parameters_of("fulfil", fields_of(SCHEMA), given)
    assert made == {
        "order": {
            "id": "007",
            "customer": {"name": "Ada"},
            "express": True,
            "lines": [{"sku": "tea"}],
            "speed": 3,
            "amount": 2,
        }
    }
    assert problem(made, SCHEMA) is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p:order/lines", "[", "order.lines is no JSON"),
        ("p:count", "many", "count is no JSON"),
        ("p:count", "true", "no number"),
    ],
)
def test_what_a_field_cannot_mean_is_named(name: str, text: str, said: str) -> None:
    with pytest.raises(ParametersError, match=said):
        parameters_of("fulfil", fields_of(SCHEMA), {name: [text]})


def test_without_a_schema_all_of_it_is_json() -> None:
    [field] = fields_of({"description": "a type with rules of its own"})
    assert parameters_of("f", [field], {field.name: ['{"a": 1}']}) == {"a": 1}
    with pytest.raises(ParametersError, match="expected an object"):
        parameters_of("f", [field], {field.name: ["[]"]})
    assert fields_of({"type": "object", "properties": {}}) == []


def test_a_schema_that_refers_to_itself_ends() -> None:
    looped = {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/A"}}}
    inner = {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/A"}}}
    assert len(fields_of({**looped, "$defs": {"A": inner}})) == 1
    assert fields_of({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}})


def test_names_with_slashes_keep_apart() -> None:
    a, b = Field(("a/b",), "text", True), Field(("a", "b"), "text", True)
    assert a.name != b.name


@given(st.binary(max_size=200))
def test_whatever_is_shown_means_the_same_bytes_again(data: bytes) -> None:
    assert from_form(as_hex(data), "hex") == data
    text = as_text(data)
    if text is not None:
        assert from_form(text.replace("\n", "\r\n"), "text") == data


def test_bytes_that_are_no_text_are_shown_in_hexadecimal() -> None:
    assert as_text(b"\xff\x00") is None
    assert as_text(b"a\rb") is None, "a form would make \\r\\n of it"
    assert dump(b"ab\x00" + b"c" * 16)[0] == ("000000", "6162 0063 6363 6363 6363 6363 6363 6363", "ab·ccccccccccccc")
    assert len(dump(b"x" * 100_000)) == 1_024
    assert pretty(b'{"a":1}') == '{\n  "a": 1\n}'
    assert pretty(b"[" * 100_000) is None
    with pytest.raises(UsageError, match="hexadecimal"):
        from_form("xy", "hex")


def test_secrets_of_settings_are_stars_wherever_they_are() -> None:
    hidden = "hidden-and-long-enough"
    settings = Settings(
        kafka_password=Secret(hidden),
        http_token=Secret(hidden),
        http_read_token=Secret(hidden + "2"),
        results=f"s3://key:{hidden}@bucket/x?token={hidden}",
        kafka=f"sasl://u:{hidden}@10.0.0.1:9092",
        engines=(f"http://u:{hidden}@10.0.0.2:8282/?k={hidden}",),
        handlers=(f"git+ssh://{hidden}@host/x",),
    )
    told = {one.name: one for one in shown(settings)}
    assert hidden not in str(told)
    assert told["http_token"].value == "***"
    assert told["results"].value == "s3://***@bucket/x"
    assert told["engines"].value == "http://***@10.0.0.2:8282/"
    assert (told["app"].value, told["app"].is_set) == ("engine", False)
    assert told["kafka_password"].is_set


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9092,10.0.0.1:9092", "127.0.0.1:9092,10.0.0.1:9092"),
        ("file:///var/lib/x", "file:///var/lib/x"),
        ("s3://a:p@ss/w?rd@bucket/x", "s3://***@bucket/x"),
        ("slack://a/b/c", "slack://***"),
        ("https://h/p#frag", "https://h/p"),
        ("/var/lib/engine/history.db", "/var/lib/engine/history.db"),
        ("postgresql://me:s3cret@db.example:5433/runs?password=s3cret", "postgresql://***@db.example:5433/runs"),
    ],
)
def test_addresses_are_shown_without_what_is_secret_in_them(text: str, expected: str) -> None:
    assert masked(text) == expected
