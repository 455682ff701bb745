"""engine.retries: what a policy says after each failed attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DeclarationError
from engine.retries import Retry, exponential, fixed, jittered, next_wait_seconds


def test_without_a_policy_the_first_failure_is_the_last() -> None:
    assert next_wait_seconds(None, 1) is None


@given(st.integers(1, 50), st.integers(1, 100))
def test_attempts_counts_all_attempts(attempts: int, attempt: int) -> None:
    wait_seconds = next_wait_seconds(Retry(attempts), attempt)
    assert (wait_seconds is None) == (attempt >= attempts)


def test_one_second_is_the_wait_unless_told() -> None:
    assert next_wait_seconds(Retry(2), 1) == 1.0
    assert next_wait_seconds(Retry(2, wait=0.25), 1) == 0.25
    assert next_wait_seconds(Retry(2, wait=fixed(3)), 1) == 3.0


def test_exponential_grows_from_the_first_wait_to_the_limit() -> None:
    retry = Retry(6, wait=exponential(1.5, factor=2, max_seconds=10))
    assert [next_wait_seconds(retry, attempt) for attempt in (1, 2, 3, 4, 5)] == [1.5, 3.0, 6.0, 10.0, 10.0]


@given(st.integers(1, 40))
def test_jittered_stays_below_the_growing_limit(attempt: int) -> None:
    wait_seconds = next_wait_seconds(Retry(100, wait=jittered(1.0, max_seconds=60.0)), attempt)
    assert wait_seconds is not None
    assert 0 <= wait_seconds <= min(60.0, 2.0 ** (attempt - 1))


@pytest.mark.parametrize("attempts", [0, -1])
def test_no_attempt_at_all_is_refused_at_its_line(attempts: int) -> None:
    with pytest.raises(DeclarationError, match="no attempt at all") as caught:
        Retry(attempts)
    assert caught.value.file == __file__
    assert caught.value.remedy
