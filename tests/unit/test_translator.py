"""engine.translator: what a replay becomes."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from engine.broker import Record
from engine.dead_letters import Content, Replay, read_letter, write_replay
from engine.events import Headers, Position
from engine.flows import Flow, flow, on
from engine.runs import repeat_id_of, run_id_of
from engine.settings import Settings
from engine.telemetry import Tracer
from engine.translator import Taken, Translator
from engine.triggers import Triggers

SETTINGS = Settings(app="shop")
ORIGIN = Position("orders", 0, 7)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BINARY: Headers = (("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/s"), ("ce_type", b"order.made"))


class Order(msgspec.Struct):
    id: str
    customer: str = "c"


def a_flow(order: Order) -> None:
    """A flow's function."""


def flows() -> list[Flow[..., object]]:
    made = flow(on("orders", type="order.*", key=lambda event: event.data.customer, where=lambda e: e.data.id), name="fulfil")
    return [made(a_flow), flow(on("orders"), name="count")(a_flow), flow(name="by_hand")(a_flow)]


def taken(replay: Replay, value: bytes | None = b'{"id":"a"}') -> Taken:
    written = write_replay(SETTINGS.replays_topic, replay, b"k", value)
    record = Record(written.topic, 0, 4, written.key, written.value, tuple(written.headers), 1_000)
    return Translator(SETTINGS, Triggers(flows()), Tracer(None, None, None)).translate(record)


def test_a_replay_applies_the_triggers_of_the_topic_it_came_from() -> None:
    found = taken(Replay(id="r", origin=ORIGIN, headers=BINARY, letter="0/1", repeats="old"))
    assert [change.flow for _, change in found.scheduled] == ["fulfil", "count"]
    change = found.scheduled[0][1]
    assert change.run_id == repeat_id_of(run_id_of("shop", "fulfil", "/s", "1"), "r")
    assert (change.key, change.repeats) == ("c", "old")
    assert change.event is not None
    assert change.event.replay is not None
    assert (change.event.offset, change.event.replay.offset, change.event.replay.letter) == (7, 4, "0/1")


def test_a_bare_record_keeps_the_identity_of_where_it_came_from() -> None:
    found = taken(Replay(id="r", origin=ORIGIN, flow="count"))
    [(_, change)] = found.scheduled
    assert change.event is not None
    assert (change.event.id, change.event.source) == ("orders/0/7", "orders")


def test_a_replay_that_does_not_say_when_its_event_was_made_has_its_own_time() -> None:
    for event_at, expected in ((None, 1.0), (datetime.fromtimestamp(77, UTC), 77.0)):
        [(_, change)] = taken(Replay(id="r", origin=ORIGIN, flow="count", event_at=event_at)).scheduled
        assert change.event is not None
        assert change.event.at == datetime.fromtimestamp(expected, UTC)


def test_a_replay_has_a_trace_of_its_own_that_knows_the_old_one() -> None:
    headers = (*BINARY, ("traceparent", TRACE.encode()))
    found = taken(Replay(id="r", origin=ORIGIN, headers=headers))
    assert (found.producer, found.replay_of) == (None, TRACE)
    assert TRACE[3:35] not in found.context
    of_a_run = taken(Replay(id="r", origin=ORIGIN, headers=headers, trace=TRACE.replace("b7ad", "aaaa")))
    assert of_a_run.replay_of == TRACE.replace("b7ad", "aaaa")


@pytest.mark.parametrize(
    ("replay", "value", "reason"),
    [
        (Replay(id="r", origin=ORIGIN, flow="nobody", headers=BINARY), b'{"id":"a"}', "unknown-flow"),
        (Replay(id="r", origin=ORIGIN, flow="fulfil", headers=BINARY), b'{"id":""}', "no-match"),
        (Replay(id="r", origin=Position("elsewhere", 0, 0), headers=BINARY), b'{"id":"a"}', "no-match"),
        (Replay(id="r", origin=ORIGIN, flow="fulfil", headers=BINARY), b'{"id":1}', "invalid-parameters"),
        (Replay(id="r", origin=ORIGIN, flow="count", content=Content.PARAMETERS), b'{"order":1}', "invalid-parameters"),
        (Replay(id="", origin=ORIGIN), b"{}", "malformed-replay"),
        (Replay(id="r"), b"{}", "malformed-replay"),
    ],
)
def test_a_replay_that_starts_nothing_is_a_letter_again(replay: Replay, value: bytes, reason: str) -> None:
    found = taken(replay, value)
    assert found.scheduled == []
    [written] = found.outgoing
    letter = read_letter(Record("l", 0, 0, written.key, written.value, tuple(written.headers), 0))
    assert letter is not None
    assert letter.details.reason == reason  # type: ignore[union-attr]
    assert (written.key, written.value) == (b"k", value)


def test_parameters_start_a_flow_without_its_event() -> None:
    replay = Replay(id="r", flow="by_hand", content=Content.PARAMETERS, repeats="old", key="x")
    [(_, change)] = taken(replay, b'{"order":{"id":"a"}}').scheduled
    assert (change.run_id, change.key, change.event) == (repeat_id_of("old", "r"), "x", None)
