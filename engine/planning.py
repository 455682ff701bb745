"""Planning: what a flow asks for as it is gone through, and what it is fed; values alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.arguments import Dumped, Input
from engine.events import Event
from engine.executor import Call
from engine.handles import Handle, MapHandle
from engine.retries import Verdict
from engine.states import Failure, State

#: What stands as the task of a sleep and of a wait for an event.
SLEEP, WAIT = "engine.sleep", "engine.wait_for_event"


class PlannedCall(msgspec.Struct, frozen=True):
    """A call as the flow made it: its dependencies are filled in when they are known."""

    call: Call
    inputs: tuple[Input, ...]


class PlannedMap(msgspec.Struct, frozen=True):
    """A map as the flow made it."""

    #: What its elements have in common; its index is that of the map.
    call: Call
    #: The arguments of each element, or those of all where only their inputs differ.
    rows: tuple[Dumped, ...] | Dumped
    #: How many elements there are, as far as the flow knew.
    length: int | None
    #: The columns that are not there yet; they must be of the same length.
    columns: tuple[MapHandle | Handle, ...]


class PlannedSleep(msgspec.Struct, frozen=True):
    """The flow waits for a time."""

    index: str
    until: float


class PlannedWait(msgspec.Struct, frozen=True):
    """The flow waits for an event."""

    index: str
    topic: str
    type: str | None
    source: str | None
    where: Callable[[Event[Any]], object] | None
    data: Any
    timeout_seconds: float | None
    #: When the flow asked, which the timeout counts from.
    at: float


class PlannedEnd(msgspec.Struct, frozen=True):
    """The flow does not wait for this sleep any more."""

    index: str


Planned = PlannedCall | PlannedMap | PlannedSleep | PlannedWait | PlannedEnd


class Feed(msgspec.Struct, frozen=True):
    """What a call of an async flow has come to."""

    index: str
    at: float
    state: State
    #: The encoded value; None where it stayed on the cluster.
    value: bytes | None = None
    failure: Failure | None = None
    #: The index of the call that is to blame, where that is another one.
    cause: str | None = None
    #: Of a map: how many elements it has.
    length: int | None = None
    #: The value itself, fetched from the cluster.
    fetched: Any = msgspec.UNSET


class Outcome(msgspec.Struct, frozen=True):
    """How a flow's function has ended."""

    state: State
    failure: Failure | None = None
    #: What it returned, encoded, where no call has to put it together; and the call that would for who asks the cluster.
    result: bytes | None = None
    call: Call | None = None
    #: What the error says of another attempt of the flow; None where no error of the flow's own ended it.
    verdict: Verdict | None = None


class Advance(msgspec.Struct):
    """What a flow has done since it was told something."""

    planned: list[Planned] = msgspec.field(default_factory=list)
    #: Indices of failed calls whose failure the flow was told of.
    handled: list[str] = msgspec.field(default_factory=list)
    #: The call whose value it needs from the cluster before anything else is fed.
    fetch: str | None = None
    #: Whether it has taken something into account that is not on the state topic yet.
    is_decided: bool = False
    outcome: Outcome | None = None


class Limits(msgspec.Struct, frozen=True):
    """What a run may take."""

    inline_result_bytes: int
    max_tasks: int
    #: The app whose result store takes what does not travel; the empty text where there is none.
    store: str = ""
