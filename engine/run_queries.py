"""Run queries: the filters of the Runs page as they stand in an address, and back; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlencode

import msgspec

from engine.history_rows import RunFilter
from engine.states import State

_AGO = re.compile(r"(\d{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
#: Longer texts are nobody's id or key.
_LONGEST = 500


class RunQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for; ``since`` as it was typed: ``15m``, ``2h``, ``7d``."""

    flow: str = ""
    states: tuple[State, ...] = ()
    key: str = ""
    since: str = ""
    #: A run id or its beginning, or an event's id.
    text: str = ""
    cursor: str = ""

    def wanted(self, now: float) -> RunFilter:
        """The filter, but for ``text``."""
        found = _AGO.fullmatch(self.since)
        since = None if found is None else now - int(found[1]) * _SECONDS[found[2]]
        return RunFilter(flows=[self.flow] if self.flow else [], states=self.states, key=self.key or None, since=since)

    @property
    def is_any(self) -> bool:
        """Whether every run is wanted."""
        return not (self.flow or self.states or self.key or self.since or self.text)

    def address(self, path: str = "/runs", **changed: object) -> str:
        """The address of the page with this query; ``changed`` replaces fields of it."""
        query = msgspec.structs.replace(self, **changed)
        named = [("flow", query.flow), *(("state", state.value) for state in query.states), ("key", query.key)]
        named += [("since", query.since), ("q", query.text), ("cursor", query.cursor)]
        given = [(name, value) for name, value in named if value]
        return f"{path}?{urlencode(given)}" if given else path

    def toggled(self, state: State) -> str:
        """The address with a state added, or taken away."""
        states = tuple(one for one in State if (one in self.states) != (one is state))
        return self.address(states=states, cursor="")


def query_of(pairs: Iterable[tuple[str, str]]) -> RunQuery:
    """The query that an address says; what makes no sense in it is left out."""
    given: dict[str, str] = {}
    states: list[str] = []
    for name, value in pairs:
        if name == "state":
            states.append(value.upper())
        else:
            given[name] = value.strip()[:_LONGEST]
    since = given.get("since", "")
    return RunQuery(
        flow=given.get("flow", ""),
        states=tuple(state for state in State if state.value in states),
        key=given.get("key", ""),
        since=since if _AGO.fullmatch(since) else "",
        text=given.get("q", ""),
        cursor=given.get("cursor", ""),
    )
