"""engine.errors: every error survives the way between processes and says what to do."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator

import pytest

import engine.worker  # noqa: F401  # errors defined beside the list would be found, too
from engine.errors import DaskUnavailable, DeclarationError, EngineError, KafkaUnavailable, SettingsError

_SAMPLES = {"str": "some text", "int": 7, "float": 2.5}


def _subclasses(root: type[EngineError]) -> Iterator[type[EngineError]]:
    for found in root.__subclasses__():
        yield found
        yield from _subclasses(found)


ERRORS = sorted(set(_subclasses(EngineError)), key=lambda error: error.__name__)


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


def test_a_declaration_error_begins_with_the_place_an_editor_can_open() -> None:
    assert str(DeclarationError("handlers/orders.py", 12, "it is wrong", "Correct it.")).startswith("handlers/orders.py:12: ")


def test_wrong_use_exits_with_2() -> None:
    assert SettingsError("k", "v", "c", "r").exit_code == 2
    assert DeclarationError("f", 1, "c", "r").exit_code == 2
