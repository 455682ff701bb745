"""engine.events: CloudEvents and bare records off raw bytes; whatever cannot be read is an EventError, nothing else."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import EventError
from engine.events import (
    Event,
    Headers,
    Position,
    RawEvent,
    Reason,
    decode_data,
    from_structured,
    read,
    to_headers,
    valid_traceparent,
)

POSITION = Position("orders", 2, 7)
TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
OTHER_TRACEPARENT = "00-fedcba9876543210fedcba9876543210-fedcba9876543210-01"
BINARY: Headers = (("ce_specversion", b"1.0"), ("ce_id", b"42"), ("ce_source", b"/shop"), ("ce_type", b"order.created"))
STRUCTURED: Headers = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
ATTRIBUTES = {"specversion": "1.0", "id": "42", "source": "/shop", "type": "order.created"}


class Line(msgspec.Struct):
    sku: str
    count: int


class Order(msgspec.Struct):
    id: str
    lines: list[Line] = []


def structured(**fields: Any) -> RawEvent:
    return read(json.dumps(ATTRIBUTES | fields).encode(), STRUCTURED, POSITION)


def reason_of(value: bytes | None, headers: Headers, type: Any = Any) -> str:
    """Why a record cannot be read, or its data not be decoded."""
    with pytest.raises(EventError) as caught:
        decode_data(read(value, headers, POSITION), type)
    return caught.value.reason


class TestBareRecords:
    def test_the_position_is_the_identity(self) -> None:
        event = read(b"1", (), POSITION)
        assert event == Event(id="orders/2/7", source="orders", type="", position=POSITION, data=b"1")

    def test_a_bare_record_may_carry_a_trace_and_a_content_type(self) -> None:
        headers = (("traceparent", TRACEPARENT.encode()), ("Content-Type", b"text/plain"), ("mine", b"\xff"))
        event = read(b"hello", headers, POSITION)
        assert (event.id, event.type, event.traceparent) == ("orders/2/7", "", TRACEPARENT)
        assert decode_data(event, str) == "hello"

    def test_its_data_is_not_looked_at_when_it_is_read(self) -> None:
        assert read(b"\xff", (), POSITION).data == b"\xff"

    @pytest.mark.parametrize("value", [None, b""], ids=["tombstone", "empty"])
    def test_no_data_reads_as_none(self, value: bytes | None) -> None:
        assert decode_data(read(value, (), POSITION), Any) is None
        assert decode_data(read(value, (), POSITION), Order | None) is None
        assert reason_of(value, (), Order) == Reason.INVALID_PARAMETERS


class TestBinaryMode:
    def test_attributes_are_headers_and_the_value_is_the_data(self) -> None:
        headers = (
            *BINARY,
            ("ce_subject", b"order/42"),
            ("ce_time", b"2026-01-02T03:04:05.5Z"),
            ("ce_dataschema", b"https://x/y"),
            ("ce_tenant", "Zoë".encode()),
            ("content-type", b"application/json"),
        )
        assert read(b'{"id":"a"}', headers, POSITION) == Event(
            id="42",
            source="/shop",
            type="order.created",
            subject="order/42",
            time=datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC),
            dataschema="https://x/y",
            datacontenttype="application/json",
            extensions={"tenant": "Zoë"},
            position=POSITION,
            data=b'{"id":"a"}',
        )

    def test_header_names_are_read_in_any_case(self) -> None:
        headers = tuple((name.upper(), value) for name, value in BINARY)
        assert read(b"", headers, POSITION).id == "42"

    @pytest.mark.parametrize("name", ["ce_specversion", "ce_id", "ce_source", "ce_type"])
    def test_a_required_attribute_must_be_there(self, name: str) -> None:
        without = tuple(header for header in BINARY if header[0] != name)
        empty = (*without, (name, b""))
        for headers in (without, empty):
            with pytest.raises(EventError, match=name[3:]) as caught:
                read(b"{}", headers, POSITION)
            assert caught.value.reason == Reason.MALFORMED_EVENT

    @pytest.mark.parametrize(
        "extra",
        [
            ("ce_id", b"43"),
            ("CE_ID", b"42"),
            ("ce_time", b"yesterday"),
            ("ce_no-name", b"x"),
            ("ce_", b"x"),
            ("ce_subject", b"\xff"),
            ("content-type", b"\xff"),
        ],
        ids=repr,
    )
    def test_wrong_attributes_make_a_malformed_event(self, extra: tuple[str, bytes]) -> None:
        assert reason_of(b"{}", (*BINARY, extra)) == Reason.MALFORMED_EVENT

    def test_a_specversion_of_the_future_is_refused(self) -> None:
        with pytest.raises(EventError, match=r"'9'; the engine reads 1\.0"):
            read(b"{}", (("ce_specversion", b"9"), *BINARY[1:]), POSITION)

    def test_a_null_header_reads_as_empty(self) -> None:
        headers: Any = (*BINARY, ("ce_subject", None), ("traceparent", None), ("other", None))
        assert read(b"{}", headers, POSITION).traceparent is None


class TestStructuredMode:
    def test_a_document_is_the_event(self) -> None:
        event = structured(subject="s", data={"id": "a"}, tenant="t", count=3, flag=True, nothing=None)
        assert (event.id, event.source, event.type, event.subject) == ("42", "/shop", "order.created", "s")
        assert event.extensions == {"tenant": "t", "count": "3", "flag": "true"}
        assert decode_data(event, Order) == Order("a")
        assert event.position == POSITION

    def test_base64_data_is_decoded(self) -> None:
        event = structured(data_base64=base64.b64encode(b"\x00\xff").decode(), datacontenttype="application/octet-stream")
        assert event.data == b"\x00\xff"
        assert decode_data(event, bytes) == b"\x00\xff"

    def test_data_of_another_media_type_is_the_text_itself(self) -> None:
        event = structured(data="<a/>", datacontenttype="text/xml")
        assert event.data == b"<a/>"
        assert decode_data(event, str) == "<a/>"

    @pytest.mark.parametrize("content_type", ["application/json", "application/vnd.order+json", None])
    def test_json_data_that_is_a_text_stays_json(self, content_type: str | None) -> None:
        assert decode_data(structured(data="a", datacontenttype=content_type), str) == "a"

    @pytest.mark.parametrize("fields", [{}, {"data": None}])
    def test_an_event_may_have_no_data(self, fields: dict[str, Any]) -> None:
        assert structured(**fields).data is None

    @pytest.mark.parametrize(
        "fields",
        [
            {"id": 42},
            {"id": None},
            {"id": ""},
            {"specversion": "9"},
            {"specversion": 1.0},
            {"time": "yesterday"},
            {"data_base64": "!"},
            {"data_base64": 1},
            {"data": {"a": 1}, "datacontenttype": "text/xml"},
            {"list": [1]},
            {"Upper": "x"},
            {"": "x"},
        ],
        ids=repr,
    )
    def test_wrong_attributes_make_a_malformed_event(self, fields: dict[str, Any]) -> None:
        with pytest.raises(EventError) as caught:
            structured(**fields)
        assert caught.value.reason == Reason.MALFORMED_EVENT

    @pytest.mark.parametrize(
        "value",
        [
            None,
            b"",
            b"x",
            b"\xff\xfe",
            b'{"specversion":"1.0","id"',
            b"[]",
            b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"number":' + b"9" * 5_000 + b"}",
            b'{"id":"\\ud800","source":"s","type":"t","specversion":"1.0"}',
        ],
        ids=lambda value: repr(value)[:16],
    )
    def test_what_is_no_document_is_a_malformed_event(self, value: bytes | None) -> None:
        assert reason_of(value, STRUCTURED) == Reason.MALFORMED_EVENT

    @pytest.mark.parametrize("content_type", [b"application/cloudevents-batch+json", b"application/cloudevents+xml"])
    def test_other_formats_are_named(self, content_type: bytes) -> None:
        with pytest.raises(EventError, match="send application/cloudevents"):
            read(b"[]", (("content-type", content_type),), POSITION)

    def test_a_document_may_come_without_a_record(self) -> None:
        event = from_structured(json.dumps(ATTRIBUTES | {"data": 1, "traceparent": TRACEPARENT}).encode(), POSITION)
        assert (event.id, event.data, event.traceparent, event.extensions) == ("42", b"1", TRACEPARENT, {})


class TestData:
    @pytest.mark.parametrize(
        "value",
        [b"x", b"\xff\xfe", b'{"id":', b"NaN", b'{"id":NaN}', b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000],
        ids=lambda value: repr(value)[:12],
    )
    def test_what_is_no_json_is_malformed_data(self, value: bytes) -> None:
        assert reason_of(value, ()) == Reason.MALFORMED_DATA
        assert reason_of(value, BINARY, Order) in (Reason.MALFORMED_DATA, Reason.INVALID_PARAMETERS)

    @pytest.mark.parametrize("type", [Any, int, Order])
    def test_a_5000_digit_integer_is_refused(self, type: Any) -> None:
        assert reason_of(b"9" * 5_000, (), type) in (Reason.MALFORMED_DATA, Reason.INVALID_PARAMETERS)

    @pytest.mark.parametrize(
        ("value", "field"),
        [
            (b'{"id":1}', r"\$\.id"),
            (b'{"lines":[]}', "`id`"),
            (b'{"id":"a","lines":[{"sku":"s","count":"x"}]}', r"\$\.lines\[.*\]\.count"),
        ],
    )
    def test_a_value_that_does_not_fit_names_its_field(self, value: bytes, field: str) -> None:
        with pytest.raises(EventError, match=field) as caught:
            decode_data(read(value, BINARY, POSITION), Order)
        assert caught.value.reason == Reason.INVALID_PARAMETERS

    def test_text_is_read_as_text(self) -> None:
        headers = (*BINARY, ("content-type", b"text/csv; charset=utf-8"))
        assert decode_data(read(b"a,b", headers, POSITION), str) == "a,b"
        assert reason_of(b"a,b", headers, int) == Reason.INVALID_PARAMETERS
        assert reason_of(b"\xff", headers, str) == Reason.MALFORMED_DATA

    def test_other_content_types_come_as_bytes_only(self) -> None:
        headers = (*BINARY, ("content-type", b"image/png"))
        assert decode_data(read(b"\x89PNG", headers, POSITION), bytes) == b"\x89PNG"
        assert reason_of(b"\x89PNG", headers) == Reason.MALFORMED_DATA


class TestTrace:
    def test_the_header_goes_before_the_extension(self) -> None:
        headers = (*BINARY, ("ce_traceparent", OTHER_TRACEPARENT.encode()), ("traceparent", TRACEPARENT.encode()))
        assert read(b"", headers, POSITION).traceparent == TRACEPARENT

    def test_the_extension_counts_where_there_is_no_header(self) -> None:
        event = read(b"", (*BINARY, ("ce_traceparent", TRACEPARENT.encode()), ("ce_tracestate", b"a=1")), POSITION)
        assert (event.traceparent, event.tracestate, event.extensions) == (TRACEPARENT, "a=1", {})

    @pytest.mark.parametrize(
        "malformed",
        [
            b"",
            b"x",
            b"\xff",
            TRACEPARENT.encode() + b"\n",
            TRACEPARENT.encode() + b"\xff",
            TRACEPARENT.upper().encode(),
            b"01" + TRACEPARENT[2:].encode(),
            b"00-" + b"0" * 32 + b"-0123456789abcdef-01",
            b"00-0123456789abcdef0123456789abcdef-" + b"0" * 16 + b"-01",
        ],
        ids=repr,
    )
    def test_a_malformed_traceparent_is_as_none_and_the_event_is_read(self, malformed: bytes) -> None:
        event = read(b"{}", (*BINARY, ("traceparent", malformed)), POSITION)
        assert (event.id, event.traceparent) == ("42", None)

    def test_two_traceparents_are_as_none(self) -> None:
        headers = (*BINARY, ("traceparent", TRACEPARENT.encode()), ("traceparent", OTHER_TRACEPARENT.encode()))
        assert read(b"{}", headers, POSITION).traceparent is None

    def test_only_version_00_is_known(self) -> None:
        assert valid_traceparent(TRACEPARENT) == TRACEPARENT
        assert valid_traceparent(None) is None


names = st.sampled_from(
    [
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_time",
        "ce_subject",
        "ce_x",
        "content-type",
        "traceparent",
        "tracestate",
        "x",
    ]
)
contents = st.one_of(
    st.binary(max_size=12),
    st.none(),
    st.sampled_from([b"1.0", b"application/cloudevents+json", b"application/json", b"text/plain", TRACEPARENT.encode()]),
)
json_values = st.sampled_from(
    [None, True, 0, -1, 1.5, float("nan"), 10**30, "", "1.0", "x", "\ud800", [1], {"a": [None]}, "text/plain"]
)
documents = st.dictionaries(
    st.sampled_from([*ATTRIBUTES, "time", "subject", "datacontenttype", "data", "data_base64", "traceparent", "x"]), json_values
).flatmap(lambda fields: st.sampled_from([fields, ATTRIBUTES | fields]))
values = st.one_of(st.none(), st.binary(max_size=40), documents.map(lambda document: json.dumps(document).encode()))


@given(values, st.lists(st.tuples(names, contents), max_size=8).map(tuple))
@example(json.dumps(ATTRIBUTES | {"time": "2026-01-01T00:00:00"}).encode(), STRUCTURED)
@example(json.dumps(ATTRIBUTES | {"data": 1, "datacontenttype": 1}).encode(), STRUCTURED)
def test_no_record_whatever_makes_anything_but_an_event_or_an_event_error(value: bytes | None, headers: Any) -> None:
    try:
        event = read(value, headers, POSITION)
        event.id.encode()
        event.source.encode()
        for type in (Any, Order, str, bytes):
            try:
                decode_data(event, type)
            except EventError:
                continue
    except EventError:
        return


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
extension_names = st.sampled_from(["a", "tenant", "0", "abcdefghij0123456789"])


@given(
    st.builds(
        Event,
        id=texts,
        source=texts,
        type=texts,
        subject=st.none() | texts,
        time=st.none() | st.datetimes(timezones=st.just(UTC)),
        dataschema=st.none() | texts,
        datacontenttype=st.sampled_from(["application/json", "text/plain", "application/x-ndjson"]),
        traceparent=st.sampled_from([None, TRACEPARENT]),
        extensions=st.dictionaries(extension_names, texts, max_size=3),
        position=st.just(POSITION),
        data=st.binary(max_size=8),
    )
)
def test_an_event_survives_the_way_through_a_record(event: RawEvent) -> None:
    assert read(event.data, to_headers(event), POSITION) == event


def test_a_position_knows_what_to_commit() -> None:
    assert (str(POSITION), POSITION.next_offset) == ("orders/2/7", 8)
