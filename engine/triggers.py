"""Triggers: which flows an event starts, with which parameters and ordering key; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from engine.errors import EventError
from engine.events import Event, RawEvent, Reason
from engine.flows import Flow, On

T = TypeVar("T")


class Match(msgspec.Struct, frozen=True):
    """A flow that an event starts."""

    flow: str
    #: A JSON object keyed by the flow's parameter names.
    parameters: bytes
    key: str | None


class Refusal(msgspec.Struct, frozen=True):
    """A flow that an event should have started, and why it cannot."""

    flow: str
    error: EventError


class Triggers:
    """The triggers of all flows, by topic."""

    def __init__(self, flows: Iterable[Flow[..., Any]]) -> None:
        self._by_topic: dict[str, list[tuple[Flow[..., Any], On]]] = {}
        for flow in flows:
            for trigger in flow.triggers:
                self._by_topic.setdefault(trigger.topic, []).append((flow, trigger))

    @property
    def topics(self) -> list[str]:
        """Every topic that a flow listens to."""
        return sorted(self._by_topic)

    def match(self, topic: str, event: RawEvent) -> list[Match | Refusal]:
        """What an event of ``topic`` starts: at most one entry a flow, in the order of declaration.

        A flow with several triggers is started by the first that matches.
        """
        found: dict[str, Match | Refusal] = {}
        for flow, trigger in self._by_topic.get(topic, ()):
            if flow.name in found or not _concerns(trigger, event):
                continue
            try:
                typed = flow.read_event(event)
                if trigger.where is not None and not _call(Reason.PREDICATE_FAILED, trigger.where, typed, bool):
                    continue
                found[flow.name] = Match(flow.name, flow.bind(typed), _key(trigger, typed))
            except EventError as error:
                found[flow.name] = Refusal(flow.name, error)
        return list(found.values())


def _concerns(trigger: On, event: RawEvent) -> bool:
    if trigger.source is not None and trigger.source != event.source:
        return False
    if trigger.type is None:
        return True
    if trigger.type.endswith(".*"):
        return event.type.startswith(trigger.type[:-1])
    return trigger.type == event.type


def _key(trigger: On, event: Event[Any]) -> str | None:
    return None if trigger.key is None else _call(Reason.KEY_FAILED, trigger.key, event, _checked_key)


def _checked_key(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"key= gave {type(value).__name__}, not a string")
    value.encode()  # on Kafka it is bytes; a text that is not Unicode would stop the intake there
    return value


def _call(reason: Reason, function: Callable[[Event[Any]], Any], event: Event[Any], into: Callable[[Any], T]) -> T:
    try:
        return into(function(event))  # asking for the truth of a value may raise, too
    except Exception as error:  # the handler's own code: the record goes to the dead letters with what it raised
        raise EventError(reason, _text_of(error)) from error


def _text_of(error: Exception) -> str:
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except Exception as broken:  # user code in __str__: the dead letter is written all the same
        return f"{name}: <its text cannot be had: {type(broken).__name__}>"
