"""Triggers: which flows an event starts, with which parameters and ordering key; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from engine.errors import EventError
from engine.events import Event, RawEvent, Reason
from engine.flows import Flow, On


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
                if trigger.where is not None and not _call(Reason.PREDICATE_FAILED, trigger.where, typed):
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
    if trigger.key is None:
        return None
    key = _call(Reason.KEY_FAILED, trigger.key, event)
    if not isinstance(key, str):
        raise EventError(Reason.KEY_FAILED, f"key= gave {type(key).__name__}, not a string")
    return key


def _call(reason: Reason, function: Any, event: Event[Any]) -> Any:
    try:
        return function(event)
    except Exception as error:  # the handler's own code: the record goes to the dead letters with what it raised
        raise EventError(reason, f"{type(error).__name__}: {error}") from error
