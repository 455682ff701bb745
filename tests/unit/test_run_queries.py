"""The filters of the Runs page survive the way through an address, and nonsense in one is left out."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.run_queries import RunQuery, query_of
from engine.states import State

texts = st.text(max_size=20).map(str.strip).filter(lambda text: text.isprintable())
queries = st.builds(
    RunQuery,
    flow=texts,
    states=st.sets(st.sampled_from(list(State))).map(lambda found: tuple(state for state in State if state in found)),
    key=texts,
    since=st.sampled_from(["", "15m", "2h", "7d", "30s"]),
    text=texts,
    cursor=texts,
)


def of(address: str) -> RunQuery:
    return query_of(parse_qsl(urlsplit(address).query))


@given(queries)
def test_an_address_says_the_query(query: RunQuery) -> None:
    assert of(query.address()) == query


@given(queries, st.sampled_from(list(State)))
def test_a_state_is_added_and_taken_away_and_the_list_begins_anew(query: RunQuery, state: State) -> None:
    toggled = of(query.toggled(state))
    assert (state in toggled.states) != (state in query.states)
    assert toggled.cursor == ""
    assert of(toggled.toggled(state)).states == query.states


@pytest.mark.parametrize(("since", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800)])
def test_since_is_so_long_ago(since: str, seconds: int) -> None:
    assert query_of([("since", since)]).wanted(1e9).since == 1e9 - seconds


def test_nonsense_is_left_out() -> None:
    query = query_of([("state", "broken"), ("since", "yesterday"), ("unknown", "x"), ("state", "failed")])
    assert query == RunQuery(states=(State.FAILED,))
