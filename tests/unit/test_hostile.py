"""Whatever comes from outside is an event, or refused for the right reason; 10,000 inputs in all."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import sys
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine import http_events
from engine.broker import Outgoing, Record
from engine.cli_changes import as_line
from engine.errors import EngineError, EventError
from engine.events import Headers, Position, RawEvent, Reason, decode_data, from_structured, read, to_headers, valid_traceparent
from engine.http_answers import refusal
from engine.settings import Settings
from engine.states import Envelope, Failure, State, StateChange, is_scheduled, type_of, utc
from engine.states import read as read_change
from engine.telemetry import Tracer
from engine.terminal import printable
from engine.translator import Translator
from engine.triggers import Refusal, Triggers
from tests.unit import hostile
from tests.unit.samples.hostile import FLOWS, Everything

HERE = Position("hostile", 0, 7)
TRIGGERS = Triggers(FLOWS)
OF_DATA = {Reason.MALFORMED_DATA, Reason.INVALID_PARAMETERS}


#: What the interpreter says whenever a pickle asks for a function, or text is compiled; and whether it counts.
_watched: list[str] = []
_is_watching = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _is_watching and (event == "pickle.find_class" or (event == "compile" and arguments[1] == "<string>")):
        _watched.append(event)
        raise AssertionError(f"something from outside was unpickled or evaluated: {event}")


sys.addaudithook(_hook)
# Types are read from their annotations, which Python evaluates, when the first batch is decoded: not while anybody watches.
with contextlib.suppress(EventError):
    http_events._batch(b"[{}]", (), HERE)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Inside, whoever loads a pickle or evaluates text is found out, also where the exception is swallowed."""
    global _is_watching
    _is_watching = True
    try:
        yield
    finally:
        _is_watching = False
    assert not _watched


def test_the_watch_would_notice() -> None:
    with pytest.raises(AssertionError, match="unpickled"), watched():
        pickle.loads(pickle.dumps(hostile.Bomb()))
    with pytest.raises(AssertionError, match="evaluated"), watched():
        eval("1 + 1")
    _watched.clear()


def event_or_reason(reading: Callable[[], RawEvent]) -> RawEvent | None:
    """None where it was refused, as it has to be."""
    try:
        return reading()
    except EventError as error:
        assert (error.reason, bool(error.cause)) == (Reason.MALFORMED_EVENT, True)  # noqa: PT017 - any other fails
        return None


@settings(max_examples=3_500)
@given(hostile.values, hostile.headers())
@example(b"{}", (("ce_id", b"1"), ("CE_ID", b"2")))
@example(b"{}", tuple((f"h{n}", b"x") for n in range(5_000)))
@example(b"{}", (("tracestate", b"k=v," * 2_500), ("traceparent", hostile.TRACES[2])))
@example(b"{}", (("ce_specversion", b"1.0"), ("ce_id", b"i" * 1_000_000), ("ce_source", b"s"), ("ce_type", b"test")))
def test_a_record_is_an_event_with_parameters_or_refused_for_its_reason(value: bytes | None, headers: Headers) -> None:
    with watched():
        event = event_or_reason(lambda: read(value, headers, HERE))
        if event is None:
            return
        found_all = TRIGGERS.match("hostile", event)
    assert event.id
    assert event.source
    assert event.traceparent == valid_traceparent(event.traceparent)
    for found in found_all:
        if isinstance(found, Refusal):
            reasons = OF_DATA | ({Reason.PREDICATE_FAILED} if found.flow == "anything" else set())
            assert found.error.reason in reasons, found.error
        else:
            assert isinstance(msgspec.json.decode(found.parameters), dict)
            assert found.key is None or found.key.encode() is not None


@settings(max_examples=2_000)
@given(hostile.structured)
def test_a_structured_event_is_read_and_written_again_or_refused(document: bytes) -> None:
    event = event_or_reason(lambda: from_structured(document, HERE))
    if event is None or "cloudevents" in (event.datacontenttype or "").lower():
        return  # the latter are not written in binary mode: see the gateway
    again = read(event.data, to_headers(event), HERE)
    assert (again.id, again.source, again.type, again.data) == (event.id, event.source, event.type, event.data)


@settings(max_examples=1_500)
@given(hostile.values, st.one_of(st.none(), hostile.media_types))
def test_data_is_decoded_or_refused_for_its_own_reason(value: bytes | None, media_type: str | None) -> None:
    event = msgspec.structs.replace(read(value, (), HERE), datacontenttype=media_type)
    for kind in (Everything, bytes, str, dict[str, int], float):
        try:
            decode_data(event, kind)
        except EventError as error:
            assert error.reason in OF_DATA  # noqa: PT017 - any other fails


_http_headers = st.lists(
    st.one_of(
        st.tuples(st.builds("ce-{}".format, hostile.attribute_names), hostile.odd_bytes),
        st.tuples(st.just("content-type"), hostile.media_types.map(lambda text: text.encode("latin-1", "replace"))),
        hostile.trace_headers,
    ),
    max_size=6,
)


@settings(max_examples=2_500)
@given(st.one_of(hostile.values.map(lambda value: value or b""), hostile.structured), _http_headers)
def test_an_http_request_is_written_as_it_would_be_read_or_refused(body: bytes, headers: list[tuple[str, bytes]]) -> None:
    raw = [(name.encode("latin-1", "replace").lower(), value) for name, value in headers]
    try:
        with watched():
            events = http_events.events_of(raw, "hostile", body)
        outgoing = [http_events.outgoing_of("hostile", event) for event in events]
    except EngineError as error:
        answer = refusal(error)
        assert 400 <= answer.status_code < 500
        assert msgspec.json.decode(answer.body)["reason"]
        return
    for event, record in zip(events, outgoing, strict=True):
        again = read(record.value, record.headers, HERE)
        assert again.type == event.type
        assert again.type == "" or (again.id, again.source) == (event.id, event.source), "nobody smuggles another event in"


@settings(max_examples=100)
@given(st.lists(st.tuples(hostile.values, hostile.keys, hostile.headers(), hostile.timestamps), min_size=5, max_size=20))
def test_the_intake_makes_a_run_or_a_letter_of_every_record(
    inputs: list[tuple[bytes | None, bytes | None, Headers, int]],
) -> None:
    asyncio.run(_take(inputs))


async def _take(inputs: list[tuple[bytes | None, bytes | None, Headers, int]]) -> None:
    shop = Settings(app="shop")
    translator = Translator(shop, TRIGGERS, Tracer(None, None, None))
    for offset, (value, key, headers, timestamp_ms) in enumerate(inputs):
        record = Record("hostile", 0, offset, key, value, headers, timestamp_ms)
        with watched():
            outgoing = translator.translate(record).outgoing
        for one in outgoing:
            _check_outgoing(one, record, shop)


def _check_outgoing(one: Outgoing, record: Record, shop: Settings) -> None:
    if one.topic == shop.states_topic:
        assert is_scheduled(type_of(one.headers))
        change = read_change(one.value, one.headers)
        assert isinstance(change, StateChange)
        assert change.event is not None
    else:
        assert one.topic == shop.dead_letters_topic
        assert (one.key, one.value) == (record.key, record.value)
        assert one.headers[: len(record.headers)] == record.headers
        assert dict(one.headers[len(record.headers) :])["x-engine-reason"].decode() in set(Reason)


@settings(max_examples=300)
@given(hostile.texts, hostile.texts, hostile.texts)
def test_no_text_of_an_event_steers_the_terminal(name: str, kind: str, message: str) -> None:
    values = {"run_id": "0" * 32, "flow": name, "seq": 1, "epoch": 0, "attempt": 1, "at": utc(1.0)}
    change = StateChange(state=State.FAILED, error=Failure(kind, message), **values)
    assert as_line(change).plain.isprintable()
    assert printable(message).isprintable()


@settings(max_examples=100)
@given(hostile.values, hostile.headers())
def test_a_record_on_the_state_topic_that_is_none_of_ours_is_refused(value: bytes | None, headers: Headers) -> None:
    ours = Envelope.of("shop", "0" * 32)
    change = StateChange(run_id="0" * 32, flow="f", state=State.RUNNING, seq=1, epoch=0, attempt=1, at=utc(1.0))
    for headed in (headers, ours.write(change, "")[1]):
        try:
            read_change(value, headed)
        except (EngineError, ValueError) as error:
            assert str(error)  # noqa: PT017 - any other fails
