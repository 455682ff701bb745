"""engine.stops: when a topic is stopped, and what it says."""

from __future__ import annotations

import pytest

from engine.broker import Record
from engine.stops import LIMIT_RECORDS, LetterLimit, resumed_topic, write_resumed


def fed(limit: float, dead: int, good: int) -> LetterLimit:
    made = LetterLimit(limit)
    for _ in range(good):
        made.count("orders", is_dead=False)
    for _ in range(dead):
        made.count("orders", is_dead=True)
    return made


@pytest.mark.parametrize(
    ("limit", "dead", "good", "is_stopped"),
    [
        (0.0, 500, 0, False),
        (0.5, LIMIT_RECORDS - 1, 0, False),
        (0.5, LIMIT_RECORDS, 0, True),
        (0.5, 49, 51, False),
        (0.5, 50, 50, True),
        (1.0, 99, 1, False),
        (1.0, 100, 1, True),
        (0.5, 50, 1_000, True),
    ],
)
def test_a_topic_is_stopped_when_that_share_of_its_last_hundred_records_failed(
    limit: float, dead: int, good: int, is_stopped: bool
) -> None:
    assert ("orders" in fed(limit, dead, good).stopped) is is_stopped


def test_it_says_why_and_what_to_do_and_counts_anew_when_it_goes_on() -> None:
    limit = fed(0.5, 100, 0)
    assert all(part in limit.describe("orders") for part in ("100", "0.5", "engine dead-letters resume orders", "restart"))
    limit.resume("orders")
    assert not any(limit.count("orders", is_dead=True) for _ in range(LIMIT_RECORDS - 1))
    assert not any(limit.count("others", is_dead=False) for _ in range(LIMIT_RECORDS))


def test_only_the_word_to_go_on_is_taken_for_it() -> None:
    written = write_resumed("orders", "letters")
    record = Record("letters", 0, 0, None, None, tuple(written.headers), 0)
    assert resumed_topic(record) == "orders"
    in_a_letter = (*written.headers, ("x-engine-reason", b"malformed-data"))
    assert resumed_topic(Record("letters", 0, 0, None, None, in_a_letter, 0)) is None
