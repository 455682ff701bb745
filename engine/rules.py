"""Rules: whom to tell of what, for a whole app; values, made in Python or from the tables of ``engine.toml``; pure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from enum import Enum
from typing import Any, NoReturn

import msgspec

from engine.errors import DeclarationError
from engine.rule_tables import RuleTable, TargetTable
from engine.settings import FILE_NAME
from engine.states import State, StateChange
from engine.targets import Address, AppriseTarget, Place, Target, WebhookTarget, read_targets

#: A rule looks back, or ahead, no further: what it needs to know is read from the topic at each start.
MOST_SECONDS = 7 * 86_400.0
MOST_FAILURES = 10_000

_FAILURES = frozenset({State.FAILED, State.CRASHED})


class Kind(Enum):
    """What a rule waits for."""

    STATE = "state"  #: each change to one of its states
    FAILURES = "failures"  #: so many changes to its states within a time
    NO_RUN = "no run"  #: no change to its states for a time
    LONGER_THAN = "longer than"  #: a run that is open for longer than a time


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule; made by ``rule``."""

    name: str
    kind: Kind
    to: tuple[Target, ...]
    #: Names; empty for all flows.
    flows: frozenset[str]
    #: Names of tasks; empty for the flow runs themselves.
    tasks: frozenset[str]
    states: frozenset[State]
    #: Of FAILURES: how many.
    failures: int
    #: Of all kinds but STATE: the time it is about.
    seconds: float

    def covers(self, change: StateChange) -> bool:
        """Whether ``change`` is of a flow run, or of a task run, that the rule is about, in whatever state."""
        if self.flows and change.flow not in self.flows:
            return False
        return change.task in self.tasks if self.tasks else change.is_flow_run

    def matches(self, change: StateChange) -> bool:
        """Whether it is about this change."""
        return change.state in self.states and self.covers(change)


def rule(
    name: str,
    *,
    to: object,
    flows: str | Collection[str] = (),
    tasks: str | Collection[str] = (),
    states: State | Collection[State] | None = None,
    failures: int | None = None,
    within_seconds: float | None = None,
    no_run_seconds: float | None = None,
    longer_than_seconds: float | None = None,
    **unknown: Any,
) -> Rule:
    """Tell ``to`` (as a value of ``on_state``) of something in the whole app. A module of handlers has rules at its top level.

    One of: ``failures=5, within_seconds=600`` (so many runs FAILED or CRASHED within so long) · ``no_run_seconds=3600`` (none
    was scheduled for so long) · ``longer_than_seconds=60`` (one is open for longer) · none of them: each run that gets into
    one of ``states``, by default FAILED and CRASHED. Only of ``flows``, and of runs of ``tasks`` rather than flow runs, where
    they are given; with ``states`` others are counted, or missed. Each tells once per episode. A function in ``to`` gets a
    Notice. Raises DeclarationError.
    """
    frame = sys._getframe(1)
    place = (frame.f_code.co_filename, frame.f_lineno)
    known = ("name", "to", "flows", "tasks", "states", "failures", "within_seconds", "no_run_seconds", "longer_than_seconds")
    if unknown:
        raise DeclarationError(*place, f"rule() has no argument {next(iter(unknown))!r}", f"It takes {', '.join(known)}.")
    targets = read_targets(to, "to", *place)
    return _make(
        place,
        name,
        targets,
        _names(flows),
        _names(tasks),
        states,
        failures,
        within_seconds,
        no_run_seconds,
        longer_than_seconds,
    )


def rules_of(tables: Iterable[RuleTable], find: Callable[[str], Callable[[Any], object]]) -> list[Rule]:
    """The rules that tables of the settings mean; ``find`` imports ``module:function``. Raises DeclarationError."""
    place = (FILE_NAME, 0)
    return [
        _make(
            *(place, table.name, tuple(_target(target, find) for target in table.to), table.flows, table.tasks, table.states),
            *(table.failures, table.within_seconds, table.no_run_seconds, table.longer_than_seconds),
        )
        for table in tables
    ]


def _make(
    place: Place,
    name: object,
    to: tuple[Target, ...],
    flows: Collection[str],
    tasks: Collection[str],
    states: object,
    failures: int | None,
    within_seconds: float | None,
    no_run_seconds: float | None,
    longer_than_seconds: float | None,
) -> Rule:
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 100:
        _refuse(place, "a rule has no name", "Give it one that says what it is about: notifications begin with it.")
    if not to:
        _refuse(place, f"the rule {name!r} tells nobody", 'Give to=notify(env="SLACK_URL"), say.')
    if (failures is None) != (within_seconds is None):
        _refuse(place, f"the rule {name!r} has half of a condition", "Give failures and within_seconds together.")
    times = {Kind.FAILURES: within_seconds, Kind.NO_RUN: no_run_seconds, Kind.LONGER_THAN: longer_than_seconds}
    given = {kind: seconds for kind, seconds in times.items() if seconds is not None}
    if len(given) > 1:
        kinds = " and ".join(repr(kind.value) for kind in given)
        _refuse(place, f"the rule {name!r} has two conditions: {kinds}", "Make two rules of it.")
    kind, seconds = next(iter(given.items()), (Kind.STATE, 0.0))
    if kind is not Kind.STATE and not (_is_number(seconds) and 0 < seconds <= MOST_SECONDS):
        _refuse(place, f"the rule {name!r} has no time to go by", f"Give seconds, at most {MOST_SECONDS:g} (a week).")
    if failures is not None and not (type(failures) is int and 1 <= failures <= MOST_FAILURES):
        _refuse(place, f"the rule {name!r} counts to no number", f"Give failures=5, say, at most {MOST_FAILURES:,}.")
    if kind is Kind.LONGER_THAN and states is not None:
        _refuse(place, f"the rule {name!r} is about open runs, and has states", "Leave them out.")
    return Rule(
        name=name,
        kind=kind,
        to=to,
        flows=frozenset(flows),
        tasks=frozenset(tasks),
        states=_states(place, name, states) or (frozenset({State.SCHEDULED}) if kind is Kind.NO_RUN else _FAILURES),
        failures=failures or 0,
        seconds=float(seconds),
    )


def _states(place: Place, name: str, states: object) -> frozenset[State]:
    given = () if states is None else [states] if isinstance(states, str) else states
    try:
        return frozenset(State(str(state).upper()) for state in given)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        known = ", ".join(state.name for state in State)
        _refuse(place, f"the rule {name!r} names something that is no state", f"The states are {known}.")


def _target(table: TargetTable, find: Callable[[str], Callable[[Any], object]]) -> Target:
    place = (FILE_NAME, 0)
    ways = [field for field in ("url", "env", "webhook", "webhook_env", "hook") if getattr(table, field) is not None]
    if len(ways) != 1 or (table.secret_env is None) == ways[0].startswith("webhook"):
        remedy = (
            "Write {url = …}, {env = …}, {hook = …}, or {webhook = …, secret_env = …} or {webhook_env = …, secret_env = …}."
        )
        _refuse(place, "a target of a rule is not one of them", remedy)
    url = table.url or table.webhook
    address = Address(None if url is None else url.reveal(), table.env or table.webhook_env)
    if url is not None and not address.scheme:
        _refuse(place, "the address of a target of a rule is no URL", "Write …://…, or name an environment variable.")
    if table.hook is not None:
        [made] = read_targets(find(table.hook), "hook", *place)
        return made
    return AppriseTarget(address, place) if table.secret_env is None else WebhookTarget(address, table.secret_env, place)


def _names(names: str | Collection[str]) -> Collection[str]:
    return [names] if isinstance(names, str) else names


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(place: Place, cause: str, remedy: str) -> NoReturn:
    raise DeclarationError(*place, cause, remedy)
