"""Finds whom to tell: the flows, tasks and rules of handler modules, and the rules of the settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from engine.addressees import Addressees
from engine.command_errors import HandlerError
from engine.loader import load, places
from engine.rules import Rule, rules_of
from engine.settings import Settings
from engine.tasks import Task, resolve


def load_addressees(settings: Settings) -> Addressees:
    """All that is declared. Raises HandlerError or DeclarationError."""
    flows = load(settings.handlers)
    rules: dict[int, Rule] = {}
    for place in places(settings.handlers):
        for value in list(vars(sys.modules[place.module]).values()):
            # Of modules that import each other's rules each rule counts once.
            rules.update(
                {id(one): one for one in (value if isinstance(value, list | tuple) else (value,)) if isinstance(one, Rule)}
            )
    return Addressees(flows, _tasks(), [*rules.values(), *rules_of(settings.rules, _find)])


def _tasks() -> list[Task[..., Any]]:
    """Tasks stand at the top level of a module, which need not be one of handlers."""
    found: dict[int, Task[..., Any]] = {}
    for module in list(sys.modules.values()):
        # By type: asking odd objects for their class can run code of theirs.
        found.update({id(value): value for value in list(getattr(module, "__dict__", {}).values()) if type(value) is Task})
    return list(found.values())


def _find(reference: str) -> Callable[[Any], object]:
    """The hook that a rule of the settings names."""
    try:
        function = resolve(reference)
    except Exception as error:  # whatever a module does when it is imported
        cause = f"it cannot be had: {type(error).__name__}: {error}"
        raise HandlerError(reference, cause, "Write hook = 'module:function'.") from error
    if not callable(function):
        raise HandlerError(reference, "it is no function", "Write hook = 'module:function'.")
    return function  # type: ignore[no-any-return]
