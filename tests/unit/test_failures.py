"""engine.failures: whatever was raised, it is told as text that can be sent."""

from __future__ import annotations

import traceback

import pytest

from engine.errors import TaskCrashed, TaskFailed
from engine.failures import failure_of, sendable, state_of
from engine.states import Failure, State, encode
from tests.unit.samples import orders


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301 - for its traceback
    except BaseException as caught:
        return caught


def test_a_failure_has_type_text_and_traceback() -> None:
    failure = failure_of(raised(KeyError("sku")))
    assert (failure.type, failure.message) == ("KeyError", "'sku'")
    assert "test_failures.py" in failure.traceback
    assert failure.traceback.endswith("KeyError: 'sku'\n")


def test_frames_at_the_top_that_are_not_the_users_are_left_out() -> None:
    failure = failure_of(raised(ValueError("x")), (__file__,))
    assert "test_failures.py" not in failure.traceback
    assert "ValueError: x" in failure.traceback


@pytest.mark.parametrize("kind", [TaskFailed, TaskCrashed])
def test_what_was_told_once_is_told_as_it_was(kind: type[TaskFailed]) -> None:
    assert failure_of(raised(kind("ValueError", "bad", "where it was"))) == Failure("ValueError", "bad", "where it was")


def test_a_text_that_cannot_be_had_is_no_reason_to_say_nothing() -> None:
    failure = failure_of(raised(orders.BrokenTextError()))
    assert (failure.type, failure.message) == ("BrokenTextError", "<its text cannot be had: RuntimeError>")
    assert failure.traceback


def test_a_traceback_that_cannot_be_had_is_no_reason_to_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[str]:
        raise RecursionError

    monkeypatch.setattr(traceback, "format_exception", broken)
    failure = failure_of(raised(ValueError("bad")))
    assert (failure.message, failure.traceback) == ("bad", "<its traceback cannot be had: RecursionError>")


def test_texts_of_errors_are_cut_and_the_end_of_the_traceback_stays() -> None:
    failure = failure_of(raised(ValueError("x" * 100_000)))
    assert (len(failure.message), len(failure.traceback)) == (4_096, 32_768)
    assert failure.traceback.endswith("x\n")


def test_texts_that_are_no_unicode_can_be_sent() -> None:
    assert sendable("caf\udce9 é") == "caf\\udce9 é"
    assert encode(failure_of(raised(OSError("\udcff"))))


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError(), State.FAILED),
        (TaskFailed("E", "m", ""), State.FAILED),
        (TaskCrashed("E", "m", ""), State.CRASHED),
        (ExceptionGroup("g", [TaskCrashed("E", "m", ""), ValueError()]), State.FAILED),
        (ExceptionGroup("g", [ExceptionGroup("g", [TaskCrashed("E", "m", "")])]), State.CRASHED),
        (SystemExit(3), State.FAILED),
    ],
)
def test_only_the_infrastructure_crashes_a_run(error: BaseException, state: State) -> None:
    assert state_of(error) is state
