"""The nemesis: decides by a seed what is done to whom and when; what it does is the stack's business."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from engine.dask_processes import SCHEDULER, WORKER_PREFIX
from tests.chaos.points import POINTS
from tests.chaos.stack import ENGINE_PREFIX, Stack

#: How often each kind comes, by profile; 0 leaves it out.
PROFILES = {
    "all": {
        "kill engine": 6,
        "doom engine": 3,
        "pause engine": 3,
        "pause engine long": 3,
        "leave": 3,
        "join": 2,
        "kill worker": 4,
        "pause worker": 2,
        "kill scheduler": 2,
        "pause scheduler": 2,
        "kill broker": 2,
        "pause broker": 2,
    },
    #: For the promise that the death of an engine re-runs nothing: nobody else dies.
    "engines": {"kill engine": 16, "doom engine": 8, "pause engine": 1, "pause engine long": 2, "leave": 2, "join": 1},
    #: The crash-point sweep on real processes: any point, any passage, the next engine or an undisturbed one after it.
    "points": {"doom engine": 1},
    #: The deaths of what engines work with.
    "others": {"kill worker": 4, "kill scheduler": 2, "kill broker": 2, "kill engine": 2, "pause worker": 1, "pause broker": 1},
}


class Nemesis:
    """Does one thing after the other, with pauses between."""

    def __init__(self, stack: Stack, seed: int, profile: str, gap_seconds: float) -> None:
        self._stack = stack
        self._chance = random.Random(seed)  # no secret; the same seed makes the same choices
        self._weights = PROFILES[profile]
        self._gap_seconds = gap_seconds
        self._joined = 0
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "kill engine": self._kill_engine,
            "doom engine": self._doom_engine,
            "pause engine": lambda: self._pause(ENGINE_PREFIX, 0.2, 1.2),
            "pause engine long": lambda: self._pause(ENGINE_PREFIX, stack.session_seconds + 0.5, stack.session_seconds + 3.0),
            "leave": self._leave,
            "join": self._join,
            "kill worker": self._kill_worker,
            "pause worker": lambda: self._pause(WORKER_PREFIX, 0.5, 3.0),
            "kill scheduler": stack.kill_dask,
            "pause scheduler": lambda: self._pause(SCHEDULER, 0.5, 3.0),
            "kill broker": stack.kill_broker,
            "pause broker": lambda: stack.pause_broker(self._chance.uniform(0.5, 5.0)),
        }

    async def run(self, until: float) -> None:
        """Until that time (seconds since the epoch): each kind once, in any order, then by weight."""
        deck = [kind for kind, weight in self._weights.items() if weight]
        self._chance.shuffle(deck)
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * self._gap_seconds)
            if time.time() >= until:
                return
            kind = deck.pop() if deck else self._chance.choices([*self._weights], [*self._weights.values()])[0]
            await self._kinds[kind]()

    def _one(self, prefix: str) -> str | None:
        names = sorted(self._stack.names(prefix))
        return self._chance.choice(names) if names else None

    async def _kill_engine(self) -> None:
        if (name := self._one(ENGINE_PREFIX)) is not None:
            self._stack.kill(name)

    async def _doom_engine(self) -> None:
        point, passage = self._chance.choice(POINTS), self._chance.randint(1, 3)
        if (name := self._one(ENGINE_PREFIX)) is not None:
            self._stack.doom(name, point, passage)

    async def _kill_worker(self) -> None:
        if (name := self._one(WORKER_PREFIX)) is not None:
            self._stack.kill(name)

    async def _pause(self, prefix: str, least: float, most: float) -> None:
        if (name := self._one(prefix)) is not None:
            await self._stack.pause(name, self._chance.uniform(least, most))

    async def _leave(self) -> None:
        if (name := self._one(ENGINE_PREFIX)) is not None:
            await self._stack.leave(name)

    async def _join(self) -> None:
        """Another engine comes for a while; it goes when the next one joins."""
        last = f"{ENGINE_PREFIX}joined-{self._joined}"
        if last in self._stack.names(ENGINE_PREFIX):
            await self._stack.leave_for_good(last)
        self._joined += 1
        await self._stack.start_engine(f"{ENGINE_PREFIX}joined-{self._joined}")
