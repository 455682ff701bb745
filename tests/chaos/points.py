"""Crash points: named places around the protocols that an engine works with, where a trial lets it die.

No line of the engine knows of them, so they cost nothing where they are off: what it is given to work with, log and executor,
is wrapped (see ``doomed``). A dead engine has no effect any more: what it still does in the rest of its turn ends at the wraps.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from engine.broker import Outgoing, Partition, Source

#: Where an engine can be made to die. Reading events, writing what they became and reading them back is the intake's and the
#: dispatcher's way; "bind" is done when the intake's first send begins.
POINTS = (
    "intake: after poll",
    "intake: after bind, before send",
    "intake: in the middle of send",
    "intake: after send",
    "intake: before commit",
    "intake: after commit",
    "dispatcher: after poll",
    "dispatcher: before commit",
    "dispatcher: after commit",
    "takeover: assigned",
    "takeover: before ownership",
    "takeover: after ownership",
    "takeover: before the cluster knows",
    "takeover: before a checkpoint is read",
    "takeover: after a checkpoint was read",
    "takeover: done",
    "checkpoint: before send",
    "checkpoint: in the middle of send",
    "checkpoint: after send",
    "reader: after poll",
    "executor: before submit",
    "executor: after submit",
    "executor: before a result",
    "executor: after a result",
    "executor: before cancel",
    "executor: after cancel",
    "executor: before release",
    "executor: after release",
    "letters: before send",
    "letters: after send",
    "publisher: before send",
    "publisher: in the middle of send",
    "publisher: after send",
)
#: Those that matter where runs are left on the log, which "reader" reads again.
NARROW = (
    "reader: after poll",
    "dispatcher: after poll",
    "dispatcher: after commit",
    "checkpoint: after send",
    "executor: after submit",
    "publisher: after send",
)


class Life:
    """One life of an engine, and where it ends."""

    def __init__(self, point: str = "", passage: int = 1, *, is_late: bool = False) -> None:
        """Without a point it ends nowhere. With ``is_late`` the write that it dies at is on its way, and lands later."""
        self.is_late = is_late
        #: What lands later.
        self.late: list[Outgoing] = []
        #: Told when this engine has taken partitions over.
        self.on_takeover: Callable[[], Awaitable[None]] | None = None
        self.point, self._passage = point, passage
        self.passed: Counter[str] = Counter()
        self.died = asyncio.Event()
        self.buried = asyncio.Event()
        self.died_at = 0.0
        #: What its death leaves behind and somebody must clear away, as the group's coordinator does.
        self.sources: list[Source] = []
        #: Told of each commit before it is made.
        self.on_commit: Callable[[Mapping[Partition, int]], None] = lambda offsets: None

    @property
    def is_dead(self) -> bool:
        """Nothing it does counts any more."""
        return self.died.is_set()

    def die(self) -> None:
        """Wherever it is."""
        self.died_at = time.time()
        self.died.set()

    def reach(self, point: str) -> bool:
        """It passes a point; True where it is dead, or dies there."""
        if not self.is_dead:
            self.passed[point] += 1
            if point == self.point and self.passed[point] == self._passage:
                self.die()
        return self.is_dead

    async def pass_by(self, point: str) -> None:
        """The same for what can wait: the dead wait for ever."""
        if self.reach(point):
            await self.rest()

    async def rest(self) -> None:
        """Never returns: what the dead wait in is cancelled with them."""
        await self.buried.wait()
        raise asyncio.CancelledError
