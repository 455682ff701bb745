"""engine.run_logs: lines as records of the log topic, bounded and readable whatever is in them."""

from __future__ import annotations

import logging

import msgspec
import pytest

from engine.errors import EventError
from engine.run_logs import (
    LEVELS,
    MAX_LINE_CHARACTERS,
    LogBatch,
    LogMail,
    decode_mail,
    encode_batch,
    encode_mail,
    headers_of,
    level_of,
    line_of,
    read_batch,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def batch(*messages: str) -> LogBatch:
    lines = tuple(line_of(1_700_000_000.5, logging.INFO, "orders", message) for message in messages)
    return LogBatch(
        run_id="r", flow="fulfil", task="price", task_run_id="r/price/0", attempt=2, trace_id=TRACE[3:35], lines=lines
    )


def test_a_record_is_a_cloud_event_whose_data_are_lines() -> None:
    mail = LogMail("r", "w/1", 1_700_000_001.25, TRACE, 1, encode_batch(batch("priced")))
    headers = dict(headers_of("shop", decode_mail(encode_mail(mail))))
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"w/1",
        "ce_source": b"/engine/shop",
        "ce_type": b"engine.logs",
        "ce_subject": b"r",
        "ce_time": b"2023-11-14T22:13:21.250000Z",
        "traceparent": TRACE.encode(),
        "content-type": b"application/json",
    }
    assert msgspec.json.decode(mail.value) == {
        "run_id": "r",
        "flow": "fulfil",
        "task": "price",
        "task_run_id": "r/price/0",
        "attempt": 2,
        "trace_id": TRACE[3:35],
        "lines": [{"at": "2023-11-14T22:13:20.500000Z", "level": "info", "logger": "orders", "message": "priced"}],
    }


def test_what_was_written_is_read() -> None:
    said = batch("one", "two\nlines", "\x1b[2J", "ünï", "")
    assert read_batch(encode_batch(said), (("ce_type", b"engine.logs"),)) == said


@pytest.mark.parametrize("value", [None, b"", b"{", b'{"run_id":1}', b"\xff", b" " * 1_048_577, b"[" * 100_000])
def test_what_cannot_be_read_says_so_and_other_types_are_passed_over(value: bytes | None) -> None:
    with pytest.raises(EventError):
        read_batch(value, (("ce_type", b"engine.logs"),))
    assert read_batch(value, (("ce_type", b"engine.something"),)) is None


def test_long_lines_are_cut_and_say_by_how_much() -> None:
    line = line_of(0.0, logging.INFO, "x" * 1_000, "y" * (MAX_LINE_CHARACTERS + 1_234))
    assert line.message == "y" * MAX_LINE_CHARACTERS + "… (1,234 more characters)"
    assert len(line.logger) == 200
    assert line_of(0.0, logging.INFO, "x", "y" * MAX_LINE_CHARACTERS).message == "y" * MAX_LINE_CHARACTERS


def test_odd_text_can_be_encoded() -> None:
    assert b"\\\\udcff" in encode_batch(batch("\udcff"))


@pytest.mark.parametrize(
    ("number", "level"), [(0, "debug"), (10, "debug"), (25, "info"), (40, "error"), (50, "critical"), (99, "critical")]
)
def test_levels_have_names(number: int, level: str) -> None:
    assert level_of(number) == level
    assert level in LEVELS
