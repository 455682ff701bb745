"""engine.triggers: which flows an event starts, and what becomes of predicates and keys that misbehave."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from engine.events import Event, RawEvent, Reason
from engine.flows import Flow, On, flow, on
from engine.triggers import Match, Refusal, Triggers


class Order(msgspec.Struct):
    id: str
    customer: str = "c"


def order_flow(order: Order) -> None:
    """A flow's function."""


def untyped_flow() -> None:
    """A flow's function that takes nothing."""


def flow_on(*triggers: On, name: str = "fulfil", function: Any = order_flow) -> Flow[..., Any]:
    return flow(*triggers, name=name)(function)


def event(data: bytes | None = b'{"id":"a"}', *, type: str = "order.created", source: str = "/shop") -> RawEvent:
    return Event(id="42", source=source, type=type, data=data)


def matched(trigger: On, event: RawEvent, function: Any = order_flow) -> Match | Refusal | None:
    found = Triggers([flow_on(trigger, function=function)]).match("orders", event)
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(
    ("type", "of_event", "expected"),
    [
        (None, "", True),
        (None, "order.created", True),
        ("order.created", "order.created", True),
        ("order.created", "order.created.v2", False),
        ("order.created", "", False),
        ("order.*", "order.created", True),
        ("order.*", "order.created.v2", True),
        ("order.*", "orders.created", False),
        ("order.*", "order", False),
        ("order.*", "", False),
        ("*", "order", False),
    ],
)
def test_the_type_is_exact_or_a_prefix(type: str | None, of_event: str, expected: bool) -> None:
    assert isinstance(matched(on("orders", type=type), event(type=of_event)), Match) is expected


def test_the_source_must_be_the_one_named() -> None:
    assert isinstance(matched(on("orders", source="/shop"), event()), Match)
    assert matched(on("orders", source="/shop"), event(source="/shop/2")) is None


def test_a_match_brings_parameters_and_the_ordering_key() -> None:
    found = matched(on("orders", key=lambda event: event.data.customer), event(b'{"id":"a","customer":"z"}'))
    assert found == Match("fulfil", b'{"order":{"id":"a","customer":"z"}}', "z")
    assert matched(on("orders"), event()) == Match("fulfil", b'{"order":{"id":"a","customer":"c"}}', None)


def test_where_sees_typed_data_and_decides_by_truth() -> None:
    trigger = on("orders", where=lambda event: event.data.id)
    assert isinstance(matched(trigger, event()), Match)
    assert matched(trigger, event(b'{"id":""}')) is None


class NoTruth:
    """As an array is: neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


class NoTextError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def no_text(_: Event[Any]) -> bool:
    raise NoTextError


@pytest.mark.parametrize(
    ("trigger", "reason", "cause"),
    [
        (on("orders", where=lambda event: event.data.missing), Reason.PREDICATE_FAILED, "AttributeError: .*missing"),
        (on("orders", where=lambda _: NoTruth()), Reason.PREDICATE_FAILED, "ValueError: ambiguous"),
        (on("orders", where=no_text), Reason.PREDICATE_FAILED, "NoTextError"),
        (on("orders", key=lambda event: event.data.missing), Reason.KEY_FAILED, "AttributeError: .*missing"),
        (on("orders", key=lambda _: 7), Reason.KEY_FAILED, "int, not a string"),
        (on("orders", key=lambda _: None), Reason.KEY_FAILED, "NoneType, not a string"),
        (on("orders", key=lambda _: "\ud800"), Reason.KEY_FAILED, "surrogates not allowed"),
    ],
    ids=["where raises", "where has no truth", "error without text", "key raises", "number", "none", "surrogate"],
)
def test_a_predicate_or_key_that_misbehaves_refuses_the_event(trigger: On, reason: Reason, cause: str) -> None:
    found = matched(trigger, event())
    assert isinstance(found, Refusal)
    assert found.flow == "fulfil"
    assert found.error.reason == reason
    assert re.search(cause, found.error.cause)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b'{"id":1}', Reason.INVALID_PARAMETERS), (b"{", Reason.MALFORMED_DATA), (None, Reason.INVALID_PARAMETERS)],
)
def test_data_that_cannot_be_bound_refuses_the_event(data: bytes | None, reason: Reason) -> None:
    found = matched(on("orders", where=lambda _: True), event(data))
    assert isinstance(found, Refusal)
    assert found.error.reason == reason


def test_data_is_not_looked_at_where_the_type_does_not_match() -> None:
    assert matched(on("orders", type="order.paid"), event(b"\xff")) is None


def test_an_event_starts_each_flow_once_and_one_failure_does_not_stop_the_others() -> None:
    triggers = Triggers(
        [
            flow_on(on("orders", type="order.*"), on("orders"), name="first"),
            flow_on(on("orders", where=lambda _: 1 / 0), name="broken"),
            flow_on(on("payments"), name="elsewhere"),
            flow_on(on("orders"), name="last", function=untyped_flow),
        ]
    )
    found = triggers.match("orders", event())
    assert [(type(each), each.flow) for each in found] == [(Match, "first"), (Refusal, "broken"), (Match, "last")]
    assert triggers.topics == ["orders", "payments"]
    assert triggers.match("unheard of", event()) == []


def test_the_first_trigger_that_matches_decides() -> None:
    never = on("orders", where=lambda _: False, key=lambda _: "never")
    keyed = on("orders", type="order.*", key=lambda _: "second")
    found = Triggers([flow_on(never, keyed, on("orders"))]).match("orders", event())
    assert [each.key for each in found if isinstance(each, Match)] == ["second"]
