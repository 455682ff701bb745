"""engine.retries: what a policy says after each failed attempt."""

from __future__ import annotations

from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DeclarationError, RetryableError, TaskTimeout, TerminalError
from engine.retries import Retry, Verdict, exponential, fixed, jittered, judge, next_wait_seconds


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


class Throttled(RetryableError):
    """Does not call our __init__."""

    def __init__(self) -> None:
        Exception.__init__(self, "throttled")


class Both(TerminalError, RetryableError):
    """Whoever cannot decide gets no other attempt."""


NARROW = Retry(3, on=OSError, unless=(FileNotFoundError, RuntimeError))


@pytest.mark.parametrize(
    ("retry", "error", "is_final"),
    [
        (Retry(3), ValueError("x"), False),
        (Retry(3), TerminalError("x"), True),
        (Retry(3), SystemExit(1), True),
        (Retry(3), KeyboardInterrupt(), True),
        (Retry(3), Both("x"), True),
        (None, ValueError("x"), False),
        (None, TerminalError("x"), True),
        (NARROW, ConnectionError("x"), False),
        (NARROW, FileNotFoundError("x"), True),
        (NARROW, ValueError("x"), True),
        (Retry(3, unless=ValueError), UnicodeDecodeError("utf-8", b"", 0, 1, "x"), True),
        (Retry(3, unless=ValueError), KeyError("x"), False),
        (Retry(3, on=RetryableError), RetryableError("x"), False),
        (Retry(3, on=TimeoutError), TaskTimeout("price", 1.0), False),
        (Retry(3, on=TaskTimeout), TaskTimeout("price", 1.0), False),
        (Retry(3, unless=TimeoutError), TaskTimeout("price", 1.0), True),
        (NARROW, TaskTimeout("price", 1.0), False),  # a TimeoutError is an OSError
        (Retry(3, on=ValueError), TaskTimeout("price", 1.0), True),
    ],
    ids=repr,
)
def test_the_class_of_an_error_decides_about_another_attempt(retry: Retry | None, error: BaseException, is_final: bool) -> None:
    assert judge(retry, error) == Verdict(is_final=is_final)


@pytest.mark.parametrize("retry", [NARROW, Retry(3, on=ValueError), None])
def test_who_raises_a_retryable_error_knows_better_than_the_policy(retry: Retry | None) -> None:
    assert judge(retry, RetryableError("busy", retry_after_seconds=7)) == Verdict(is_final=False, retry_after_seconds=7.0)
    assert judge(retry, Throttled()) == Verdict()


@pytest.mark.parametrize(("given", "kept"), [(-1, 0.0), (float("inf"), 366 * 86_400.0), (float("nan"), None), ("soon", None)])
def test_a_time_that_nobody_can_wait_is_brought_into_bounds(given: Any, kept: float | None) -> None:
    verdict = judge(None, RetryableError("busy", retry_after_seconds=given))
    assert verdict.retry_after_seconds == kept


def test_the_time_an_error_names_overrides_the_policy() -> None:
    assert next_wait_seconds(Retry(3, wait=60), 1, retry_after_seconds=0.5) == 0.5
    assert next_wait_seconds(Retry(3, wait=60), 1, retry_after_seconds=0) == 0.0


def test_no_error_gives_more_attempts_than_there_are() -> None:
    assert next_wait_seconds(Retry(3), 3, retry_after_seconds=0.5) is None
    assert next_wait_seconds(None, 1, retry_after_seconds=0.5) is None
    assert next_wait_seconds(Retry(3), 1, is_final=True, retry_after_seconds=0.5) is None


def test_waits_of_tenacity_are_taken_and_added() -> None:
    assert next_wait_seconds(Retry(3, wait=fixed(2) + fixed(0.5)), 1) == 2.5
    both = tenacity.wait_incrementing(start=1, increment=2) + fixed(1)
    assert [next_wait_seconds(Retry(9, wait=both), attempt) for attempt in (1, 2, 3)] == [2.0, 4.0, 6.0]


class Moody(tenacity.wait.wait_base):
    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        if retry_state.attempt_number == 2:
            raise RuntimeError("not today")
        return 1e300 if retry_state.attempt_number == 3 else 5.0


def test_a_wait_that_breaks_later_stops_no_attempt() -> None:
    assert [next_wait_seconds(Retry(9, wait=Moody()), attempt) for attempt in (1, 2, 3)] == [5.0, 1.0, 366 * 86_400.0]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"attempts": 2.5}, "not a whole number"),
        ({"attempts": True}, "not a whole number"),
        ({"attempts": 2, "wait": -1}, "no time to wait"),
        ({"attempts": 2, "wait": float("nan")}, "no time to wait"),
        ({"attempts": 2, "wait": "1s"}, "no wait"),
        ({"attempts": 2, "wait": Moody()}, "not today"),
        ({"attempts": 2, "wait": fixed(-5)}, "it gave -5.0 s"),
        ({"attempts": 2, "on": ()}, "tries nothing again"),
        ({"attempts": 2, "on": "ValueError"}, "no Exception class"),
        ({"attempts": 2, "on": ValueError("x")}, "no Exception class"),
        ({"attempts": 2, "on": SystemExit}, "no Exception class"),
        ({"attempts": 2, "on": TerminalError}, "never tried again"),
        ({"attempts": 2, "unless": (KeyError, 3)}, "no Exception class"),
        ({"attempts": 2, "unless": RetryableError}, "always tried again"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_policy_that_cannot_be_meant_is_refused_at_its_line(arguments: dict[str, Any], cause: str) -> None:
    with pytest.raises(DeclarationError, match=cause) as caught:
        Retry(**arguments)
    assert caught.value.file == __file__
    assert caught.value.remedy
