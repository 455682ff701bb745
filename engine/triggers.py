"""Triggers: which flows an event starts, with which parameters and ordering key; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from engine.errors import EventError
from engine.events import Event, RawEvent, Reason, text_of
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
        self._flows: dict[str, Flow[..., Any]] = {}
        for flow in flows:
            self._flows[flow.name] = flow
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
        return _matches(self._by_topic.get(topic, ()), event)

    def match_again(self, topic: str, event: RawEvent, flow: str | None) -> list[Match | Refusal]:
        """What an event of ``topic`` starts that is replayed, into one ``flow`` or into all that take it.

        A flow that is named starts by its triggers on that topic; where it has none there, by the event alone. Raises
        EventError where nothing starts: whoever replays an event wants to know.
        """
        if flow is None:
            found = self.match(topic, event)
        elif (named := self._flows.get(flow)) is None:
            raise EventError(Reason.UNKNOWN_FLOW, f"no handler declares a flow {flow!r}; known: {', '.join(self._flows)}")
        else:
            own = [(named, trigger) for trigger in named.triggers if trigger.topic == topic]
            found = _matches(own or [(named, On(topic))], event)
        if not found:
            whose = "no trigger" if flow is None else f"no trigger of the flow {flow}"
            raise EventError(Reason.NO_MATCH, f"{whose} on the topic {topic} takes the event")
        return found

    def match_parameters(self, flow: str, parameters: bytes, key: str | None) -> Match | Refusal:
        """The start of a flow from the parameters of an earlier run of it. Raises EventError where there is no such flow."""
        if (named := self._flows.get(flow)) is None:
            raise EventError(Reason.UNKNOWN_FLOW, f"no handler declares a flow {flow!r}; known: {', '.join(self._flows)}")
        try:
            named.arguments(parameters)
        except EventError as error:
            return Refusal(flow, error)
        return Match(flow, parameters, key)


def _matches(triggers: Iterable[tuple[Flow[..., Any], On]], event: RawEvent) -> list[Match | Refusal]:
    found: dict[str, Match | Refusal] = {}
    for flow, trigger in triggers:
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
        raise EventError(reason, text_of(error)) from error
