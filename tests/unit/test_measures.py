"""Durations, sizes and times read well at every scale."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import measures


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (-1, "0 ms"), (0, "0 ms"), (0.0123, "12 ms"), (0.9996, "1.00 s"), (1.239, "1.24 s"), (12.34, "12.3 s"),
        (59.96, "1 min"), (61, "1 min 1 s"), (3_600, "1 h"), (3_725, "1 h 2 min"), (86_400, "1 d"), (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_a_duration(seconds: float | None, text: str) -> None:
    assert measures.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "now"),
        (5, "5 s ago"),
        (-5, "in 5 s"),
        (125, "2 min ago"),
        (7_300, "2 h ago"),
        (900_000, "10 d ago"),
        (1e15, "far away"),
    ],
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert measures.ago(2e9 - seconds, 2e9) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (1_048_576, "1.0 MiB"), (5e15, "4,547.5 TiB")],
)
def test_a_size(count: float | None, text: str) -> None:
    assert measures.size(count) == text


@pytest.mark.parametrize(("part", "text"), [(None, "–"), (0, "0 %"), (0.05, "5.0 %"), (0.9999, "99.9 %"), (1, "100 %")])
def test_a_share_is_all_of_it_only_where_it_is(part: float | None, text: str) -> None:
    assert measures.share(part) == text


@given(st.floats(allow_nan=False))
def test_no_clock_breaks_a_page(at: float) -> None:
    for word in (measures.moment(at), measures.clock(at), measures.iso(at), measures.ago(at, 0.0), measures.duration(at)):
        assert isinstance(word, str)
