"""engine.errors: every error survives the way between processes and says what to do."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator

import pytest

import engine.command_errors
import engine.history_errors
import engine.http_probe
import engine.kafka_errors
import engine.worker  # noqa: F401  # errors defined beside the list would be found, too
from engine.errors import (
    DaskUnavailable,
    DeclarationError,
    EngineError,
    FlowChanged,
    KafkaUnavailable,
    RetryableError,
    SettingsError,
    TaskCrashed,
    TaskFailed,
    TaskTimeout,
    TerminalError,
    TooManyTasks,
)

_SAMPLES = {"str": "some text", "int": 7, "float": 2.5, "bool": True, "float | None": 2.5}


def _subclasses(root: type[EngineError]) -> Iterator[type[EngineError]]:
    for found in root.__subclasses__():
        yield found
        yield from _subclasses(found)


def _is_ours(error: type[EngineError]) -> bool:
    return error.__module__.startswith("engine.") and not error.__name__.startswith("_")


#: Without those that stand between and those of other tests.
ERRORS = sorted((error for error in set(_subclasses(EngineError)) if _is_ours(error)), key=lambda error: error.__name__)


def _parameters(error: type[EngineError]) -> list[inspect.Parameter]:
    return list(inspect.signature(error).parameters.values()) if "__init__" in vars(error) else []


def _sample(error: type[EngineError], **given: str) -> EngineError:
    parameters = _parameters(error)
    return error(*(given.get(parameter.name, _SAMPLES[parameter.annotation]) for parameter in parameters))


WITH_REMEDY = [error for error in ERRORS if "remedy" in {parameter.name for parameter in _parameters(error)}]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_survives_pickling_with_its_text_and_fields(error: type[EngineError]) -> None:
    before = _sample(error)
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is error
    assert str(after) == str(before)
    assert vars(after) == vars(before)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_says_when_it_is_raised(error: type[EngineError]) -> None:
    assert (error.__doc__ or "").startswith("Raised ")


@pytest.mark.parametrize("error", WITH_REMEDY, ids=lambda error: error.__name__)
def test_the_text_of_an_error_ends_with_its_remedy(error: type[EngineError]) -> None:
    assert str(_sample(error, remedy="Do this.")).endswith("Do this.")


def test_what_cannot_be_reached_names_the_address_and_the_next_command() -> None:
    for error in (KafkaUnavailable("10.0.0.1:1", "refused"), DaskUnavailable("tcp://x:1", "refused")):
        assert error.args[0] in str(error)
        assert "`engine doctor`" in str(error)
        assert error.exit_code == 4


def test_a_scheduler_that_says_nothing_is_told_as_one_that_did_not_answer() -> None:
    assert "tcp://x:1: no answer in time. Is it running" in str(DaskUnavailable("tcp://x:1", str(TimeoutError())))


def test_a_declaration_error_begins_with_the_place_an_editor_can_open() -> None:
    assert str(DeclarationError("handlers/orders.py", 12, "it is wrong", "Correct it.")).startswith("handlers/orders.py:12: ")


def test_wrong_use_exits_with_2() -> None:
    assert SettingsError("k", "v", "c", "r").exit_code == 2
    assert DeclarationError("f", 1, "c", "r").exit_code == 2


class NoOrderError(TerminalError):
    """As users write them: what it takes is not what it hands up."""

    def __init__(self, order_id: int, *, customer: str) -> None:
        super().__init__(f"{customer} has no order {order_id}")
        self.order_id = order_id


class BusyError(RetryableError):
    def __init__(self, seconds: float) -> None:
        super().__init__("busy", retry_after_seconds=seconds)


@pytest.mark.parametrize("before", [NoOrderError(7, customer="Ada"), BusyError(2.5)], ids=lambda error: type(error).__name__)
def test_what_users_derive_survives_pickling_whatever_it_takes(before: EngineError) -> None:
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is type(before)
    assert (str(after), vars(after), after.args) == (str(before), vars(before), before.args)


def test_what_users_raise_says_their_words_alone() -> None:
    assert str(TerminalError("no such order")) == "no such order"
    assert str(RetryableError("busy", retry_after_seconds=3)) == "busy"
    assert RetryableError("busy").retry_after_seconds is None


def test_a_timeout_says_what_became_of_code_that_cannot_be_stopped() -> None:
    assert str(TaskTimeout("price", 2.5)) == "task price ran longer than its timeout of 2.5 s"
    assert "could not be stopped: it goes on in its thread." in str(TaskTimeout("price", 2.5, "abandoned"))
    assert "the worker process was restarted" in str(TaskTimeout("price", 2.5, "restarted"))
    assert "while code held the interpreter: its worker process was ended" in str(TaskTimeout("price", 2.5, "ended"))


def test_what_failed_elsewhere_is_told_in_the_words_of_there() -> None:
    assert str(TaskFailed("ValueError", "bad", "Traceback …")) == "ValueError: bad"
    assert str(TaskCrashed("KilledWorker", "3 workers died while they ran it", "")) == (
        "KilledWorker: 3 workers died while they ran it"
    )


def test_a_changed_flow_is_told_with_both_sequences_and_the_way_out() -> None:
    text = str(FlowChanged("fulfil", "price/0, pay/1", "price/0, weigh/1"))
    assert "Recorded: price/0, pay/1." in text
    assert "Now: price/0, weigh/1." in text
    assert text.endswith(
        "Give a changed flow a new name while runs are open, and take what may vary (time, chance, files) from tasks."
    )


def test_a_run_that_asks_for_too_much_is_told_the_limit_and_the_setting() -> None:
    assert "has made 1,000 tasks" in str(TooManyTasks("r", 1_000))
    assert "max_run_tasks" in str(TooManyTasks("r", 1_000))
