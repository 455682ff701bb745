"""Addressees: who is told of a state change, by what flows, tasks and rules of an app declare; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from engine.errors import DeclarationError
from engine.flows import Flow
from engine.rules import Kind, Rule
from engine.states import StateChange
from engine.targets import Target
from engine.tasks import Task


class Addressee(msgspec.Struct, frozen=True):
    """A target, and on whose account it is told."""

    target: Target
    #: ``flow fulfil``, ``task price`` or ``rule too many failures``.
    origin: str
    rule: Rule | None = None


class Addressees:
    """All targets of an app."""

    def __init__(self, flows: Mapping[str, Flow[..., Any]], tasks: Iterable[Task[..., Any]], rules: Sequence[Rule]) -> None:
        """``tasks`` are all that there are, for of several of one name only one is meant. Raises DeclarationError."""
        self._flows = flows
        self._tasks: dict[str, list[Task[..., Any]]] = {}
        for task in tasks:
            self._tasks.setdefault(task.name, []).append(task)
        self.rules = tuple(rules)
        names: set[str] = set()
        for rule in rules:
            if rule.name in names:
                cause = f"there are two rules named {rule.name!r}"
                raise DeclarationError(*rule.to[0].place, cause, "Name each by what it is about.")
            names.add(rule.name)
        self._state_rules = [rule for rule in rules if rule.kind is Kind.STATE]

    @property
    def targets(self) -> list[Target]:
        """Each target that may be told of anything."""
        declared: list[Flow[..., Any] | Task[..., Any]] = [
            *self._flows.values(),
            *(t for same in self._tasks.values() for t in same),
        ]
        found = [target for one in declared for targets in one.on_state.values() for target in targets]
        return [*found, *(target for rule in self.rules for target in rule.to)]

    def of(self, change: StateChange) -> Iterator[Addressee]:
        """Who is told of ``change``, as far as it takes no more than this change to know."""
        if change.task is None:
            flow = self._flows.get(change.flow)
            for target in () if flow is None else flow.on_state.get(change.state, ()):
                yield Addressee(target, f"flow {change.flow}")
        else:
            for task in self._meant(change.flow, change.task):
                for target in task.on_state.get(change.state, ()):
                    yield Addressee(target, f"task {change.task}")
        for rule in self._state_rules:
            if rule.matches(change):
                for target in rule.to:
                    yield Addressee(target, f"rule {rule.name}", rule)

    def _meant(self, flow_name: str, task_name: str) -> list[Task[..., Any]]:
        """The task of that name which the flow calls, where its module knows one of several."""
        found = self._tasks.get(task_name, [])
        flow = self._flows.get(flow_name)
        if len(found) < 2 or flow is None:
            return found
        known = {id(value) for value in flow.function.__globals__.values()}
        return [task for task in found if id(task) in known or task.module == flow.module] or found
