"""Files of events: each good line becomes a record, each bad one says where it is and why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.event_files import Row, Template, csv_rows, json_rows
from engine.events import Position, read

HERE = Position("t", 0, 0)


def json(text: bytes, template: Template | None = None) -> list[Row]:
    return list(json_rows(text.splitlines(keepends=True), template or Template(topic="t", type="made")))


def table(text: bytes, *, as_text: bool = False) -> list[Row]:
    return list(csv_rows(text.splitlines(keepends=True), Template(topic="t", type="made"), as_text=as_text))


def data(row: Row) -> object:
    assert row.outgoing is not None
    return msgspec.json.decode(row.outgoing.value or b"")


def test_each_line_is_the_data_of_an_event_of_its_own() -> None:
    first, second = json(b'{"n": 1}\n\n  [2]  \n')
    assert (first.line, second.line) == (1, 3)
    assert first.outgoing is not None
    assert second.outgoing is not None
    one, two = (read(row.outgoing.value, row.outgoing.headers, HERE) for row in (first, second) if row.outgoing)
    assert (one.type, one.source, one.data) == ("made", "/engine/events/send", b'{"n": 1}')
    assert one.id != two.id


def test_no_digit_of_a_number_is_lost() -> None:
    (row,) = json(b'{"n": 123456789012345678901234567890.10}')
    assert row.outgoing is not None
    assert row.outgoing.value == b'{"n": 123456789012345678901234567890.10}'


def test_without_a_type_the_record_is_bare() -> None:
    (row,) = json(b"1", Template(topic="t", key="k", headers=(("a", b"b"),)))
    assert row.outgoing is not None
    assert (row.outgoing.key, row.outgoing.headers, row.outgoing.value) == (b"k", (("a", b"b"),), b"1")


def test_a_line_that_is_a_cloudevent_keeps_its_attributes() -> None:
    (row,) = json(b'{"specversion":"1.0","id":"i","source":"s","type":"y","partitionkey":"k","data":{"a":1}}')
    assert row.outgoing is not None
    event = read(row.outgoing.value, row.outgoing.headers, HERE)
    assert (event.id, event.source, event.type, event.data) == ("i", "s", "y", b'{"a":1}')
    assert row.outgoing.key == b"k"


def test_a_bad_line_is_told_with_its_number_and_the_others_go_on() -> None:
    rows = json(b'{"a"\n1\n\xff\n{"specversion":"9","id":"i"}\nNaN\n2\n' + b"[" * 100_000)
    assert [row.line for row in rows if row.outgoing is None] == [1, 3, 4, 5, 7]
    assert "specversion" in rows[3].error
    assert [data(row) for row in rows if row.outgoing is not None] == [1, 2]


def test_cells_become_what_json_calls_numbers_and_null() -> None:
    (row,) = table(b'a,b,c,d,e\r\n1,1.50,007,,"x, ""y"""\r\n')
    assert row.outgoing is not None
    assert row.outgoing.value == b'{"a":1,"b":1.50,"c":"007","d":null,"e":"x, \\"y\\""}'


def test_cells_stay_text_where_that_is_asked_for() -> None:
    (row,) = table(b"\xef\xbb\xbfa,b\n1,\n", as_text=True)
    assert data(row) == {"a": "1", "b": ""}


def test_bad_rows_of_a_table() -> None:
    rows = table(b'a,b\n1\n1,2\n1,2,3\n\xff,2\n"x"y,2\n3,4\n')
    assert [row.line for row in rows if row.outgoing is None] == [2, 4, 5, 6]
    assert "cells" in rows[0].error
    assert [data(row) for row in rows if row.outgoing is not None] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize("header", [b"a,a\n", b"a,\xff\n"])
def test_a_table_with_a_bad_header_has_no_rows(header: bytes) -> None:
    (row,) = table(header + b"1,2\n")
    assert (row.line, row.outgoing) == (1, None)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_bytes(b"1\n\n{\n2")
    counts: list[int] = []
    with file.open("rb") as stream:
        list(json_rows(stream, Template(topic="t"), counts.append))
    assert sum(counts) == file.stat().st_size
