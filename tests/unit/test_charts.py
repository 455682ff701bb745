"""The chart of the last hour stacks states by minute on an axis with a good edge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.charts import HEIGHT, WIDTH, last_hour, nice, spark

NOW = 1_800_000_030.0
MINUTE = 1_800_000_000


def test_states_of_a_minute_stand_on_each_other() -> None:
    chart = last_hour([(MINUTE, "COMPLETED", 6), (MINUTE, "FAILED", 2), (MINUTE, "SCHEDULED", 10)], NOW)
    assert chart.top == 10
    last = chart.columns[-1]
    assert [(bar.state, bar.y, bar.height) for bar in last.bars] == [("COMPLETED", 48.0, 72.0), ("FAILED", 24.0, 24.0)]
    assert (last.scheduled, chart.totals) == (10, {"COMPLETED": 6, "FAILED": 2, "SCHEDULED": 10})
    assert len(chart.columns) == 60


def test_what_is_older_than_an_hour_is_not_there() -> None:
    assert last_hour([(MINUTE - 3_600, "COMPLETED", 6)], NOW).is_empty


@pytest.mark.parametrize(("value", "edge"), [(0, 1), (1, 1), (3, 3), (6, 6), (9, 10), (11, 12), (45, 50), (999, 1_000)])
def test_the_edge_is_a_good_number(value: float, edge: int) -> None:
    assert nice(value) == edge


counts = st.lists(
    st.tuples(st.integers(-70, 5), st.sampled_from(["COMPLETED", "FAILED", "CRASHED", "SCHEDULED", "?"]), st.integers(0, 10**9))
)


@given(counts)
def test_everything_is_inside_the_box(rows: list[tuple[int, str, int]]) -> None:
    for column in last_hour([(MINUTE + 60 * n, state, count) for n, state, count in rows], NOW).columns:
        for bar in column.bars:
            assert -0.1 <= bar.y <= bar.y + bar.height <= HEIGHT + 0.1
            assert 0 <= bar.x <= bar.x + bar.width <= WIDTH


@given(st.lists(st.floats(0, 1e9), max_size=20))
def test_a_spark_has_a_bar_for_each_value(values: list[float]) -> None:
    assert [0 < height <= 20 for _, _, height in spark(values, 100, 20)] == [True] * len(values)
