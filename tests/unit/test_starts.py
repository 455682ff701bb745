"""engine.declarations and engine.starts: what is said of a flow, and what a person may start it with."""

from __future__ import annotations

import msgspec
import pytest

from engine import Event, Retry, flow, on, task
from engine.command_errors import ParametersError
from engine.declarations import (
    Binds,
    Declaration,
    Trigger,
    declare,
    is_declaration,
    read_declaration,
    without_schemas,
    write_declaration,
)
from engine.errors import EventError
from engine.starts import parameters_of, start
from engine.states import State, read, type_of, utc


class Order(msgspec.Struct):
    id: str
    count: int = 1


@task
def nothing() -> None: ...


def is_large(event: Event[Order]) -> bool:
    return event.data.count > 9


@flow(
    on("orders", type="order.*", source="/shop", where=is_large, key=lambda event: event.data.id),
    on("more"),
    retry=Retry(attempts=3),
    max_open_runs=7,
)
def fulfil(order: Order) -> None:
    """Do it.

    All of it.
    """


@flow(on("fields"))
def by_fields(name: str, count: int = 2) -> None: ...


@flow(on("events"))
async def by_event(event: Event[Order]) -> None: ...


AT = utc(5.0)


def bound(declaration: Declaration, data: object = msgspec.UNSET, **parameters: object) -> dict[str, object]:
    return parameters_of(declaration, parameters, data, "r1", "/me")


def test_a_declaration_says_what_dashboards_need_and_comes_back_from_its_record() -> None:
    made = declare(fulfil, AT)
    assert made.signature == "fulfil(order: Order)"
    assert declare(by_fields, AT).signature == "by_fields(name: str, count: int = 2)"
    assert made.triggers[0].topic == "orders"
    assert (made.triggers[0].type, made.triggers[0].source, made.triggers[0].where) == ("order.*", "/shop", "is_large")
    assert (made.triggers[0].key or "").startswith("line ")
    assert made.triggers[1] == Trigger("more")
    assert (made.options.attempts, made.options.max_open_runs, made.options.is_async, made.binds) == (3, 7, False, Binds.WHOLE)
    assert made.doc == "Do it.\n\nAll of it."
    assert declare(by_event, AT).options.is_async
    value, headers = write_declaration("shop", made)
    assert is_declaration(type_of(headers))
    assert read_declaration(value) == made
    assert read(value, headers) is None, "readers of state changes skip it"
    assert without_schemas(made).parameters == {}


def test_an_unreadable_declaration_is_told() -> None:
    with pytest.raises(EventError, match=r"engine\.flow"):
        read_declaration(b"{")


@pytest.mark.parametrize(
    ("topic", "type", "source", "concerns"),
    [
        ("orders", "order.created", "/shop", True),
        ("orders", "order.created", "/other", False),
        ("orders", "invoice.made", "/shop", False),
        ("more", "order.created", "/shop", False),
    ],
)
def test_a_trigger_says_which_events_it_is_asked_about(topic: str, type: str, source: str, concerns: bool) -> None:
    assert declare(fulfil, AT).triggers[0].concerns(topic, type, source) is concerns


def test_data_is_bound_as_that_of_an_event_and_parameters_by_name() -> None:
    whole, event, by_name = declare(fulfil, AT), declare(by_event, AT), declare(by_fields, AT)
    assert bound(whole, {"id": "1"}) == {"order": {"id": "1"}} == bound(whole, order={"id": "1"})
    assert bound(by_name, {"name": "a"}, count=3) == {"name": "a", "count": 3}
    made = bound(event, {"id": "1"})
    assert made == {"event": {"id": "r1", "source": "/me", "data": {"id": "1"}}}
    arguments = by_event.arguments(msgspec.json.encode(made))
    assert arguments["event"].data == Order("1")


def test_what_does_not_fit_is_told_with_the_field_and_the_next_command() -> None:
    with pytest.raises(ParametersError, match=r"order\.count: expected integer, got string.*engine flows show fulfil"):
        bound(declare(fulfil, AT), {"id": "1", "count": "x"})
    with pytest.raises(ParametersError, match=r"there is no parameter 'nam'; known: name, count"):
        bound(declare(by_fields, AT), nam="a")
    with pytest.raises(ParametersError, match="is missing"):
        bound(declare(by_fields, AT))
    with pytest.raises(ParametersError, match="no object"):
        bound(declare(by_fields, AT), 3)


def test_the_same_request_makes_the_same_run_and_no_events() -> None:
    first = start("shop", "fulfil", {"order": {"id": "1"}}, "k", "r1", 5.0)
    assert (first.state, first.seq, first.epoch, first.event, first.key) == (State.SCHEDULED, 0, 0, None, "k")
    assert bytes(first.parameters) == b'{"order":{"id":"1"}}'
    assert first.run_id == start("shop", "fulfil", {}, None, "r1", 9.0).run_id
    others = [start("shop", "fulfil", {}, None, "r2", 5.0), start("shop", "by_event", {}, None, "r1", 5.0)]
    assert len({first.run_id, *(other.run_id for other in others)}) == 3
