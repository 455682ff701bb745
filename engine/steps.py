"""Steps: what is to be done after something happened to a run; values alone."""

from __future__ import annotations

import msgspec

from engine.executor import Call
from engine.planning import Feed, PlannedWait
from engine.states import StateChange


class Step(msgspec.Struct):
    """What is to be done after something happened to a run."""

    changes: list[StateChange] = msgspec.field(default_factory=list)
    #: To be submitted together, at once.
    submit: tuple[Call, ...] = ()
    #: Calls to try again, and after how long.
    retries: list[tuple[str, float]] = msgspec.field(default_factory=list)
    #: What an async flow is to hear, in order.
    feeds: list[Feed] = msgspec.field(default_factory=list)
    #: The call whose value an async flow needs from the cluster is there again.
    fetch: str | None = None
    #: Sleeps and timeouts that have begun: index and when they are over.
    sleeps: list[tuple[str, float]] = msgspec.field(default_factory=list)
    #: Events that are waited for from now on.
    waits: list[PlannedWait] = msgspec.field(default_factory=list)
    #: Sleeps and waits that nobody waits for any more.
    dropped: list[str] = msgspec.field(default_factory=list)
    #: Whether the changes tell what the engine alone has decided: nothing may be submitted before they are on the topic.
    is_decision: bool = False
    #: After how long the flow is to be gone through again, where its run has failed and may be.
    begin_again_in_seconds: float | None = None
