"""The feeder: tells async flows what their calls have come to, in order, and hands on what they do next.

What does not travel is fetched from the cluster; until it is there its flow is told nothing else, so that a flow hears the same
in the same order whenever it is gone through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from engine.driven import Driven
from engine.executor import Executor
from engine.logs import logger
from engine.planning import Advance, Feed
from engine.states import State
from engine.wiring import Wirer

#: Told what flows have done, all at once.
OnAdvance = Callable[[Sequence[tuple[Driven, Advance]]], None]


class Feeder:
    """What the async flows of one engine are to hear."""

    def __init__(self, wirer: Wirer, executor: Executor, on_advance: OnAdvance, on_lost: Callable[[Driven, str], None]) -> None:
        """``on_lost`` is told of a call whose value the cluster has lost."""
        self._wirer = wirer
        self._executor = executor
        self._on_advance = on_advance
        self._on_lost = on_lost
        self._feeds: dict[str, tuple[Driven, list[Feed]]] = {}
        self._has_feeds = asyncio.Event()
        self._fetches: set[asyncio.Task[None]] = set()

    def add(self, driven: Driven, feeds: Sequence[Feed]) -> None:
        """To be told after what was added before."""
        known, waiting = self._feeds.setdefault(driven.run_id, (driven, []))
        if known is not driven:  # its flow is tried again: what the last attempt was to hear is of no use
            waiting = []
            self._feeds[driven.run_id] = (driven, waiting)
        waiting.extend(feeds)
        self._has_feeds.set()

    def fetch(self, driven: Driven, index: str) -> None:
        """A flow needs a value that did not travel."""
        fetch = asyncio.get_running_loop().create_task(self._fetch(driven, index), name="engine-fetch")
        self._fetches.add(fetch)
        fetch.add_done_callback(self._fetches.discard)

    def forget(self, run_id: str) -> None:
        """The run is over, or somebody else's."""
        self._feeds.pop(run_id, None)

    async def run(self) -> None:
        """Let flows go on until cancelled."""
        while True:
            await self._has_feeds.wait()
            self._has_feeds.clear()
            feeds, self._feeds = list(self._feeds.values()), {}
            advances = await self._wirer.feed([(driven.run_id, heard) for driven, heard in feeds])
            self._on_advance([(driven, advance) for (driven, _), advance in zip(feeds, advances, strict=True)])

    async def close(self) -> None:
        """Fetch nothing more."""
        for fetch in self._fetches:
            fetch.cancel()
        await asyncio.gather(*self._fetches, return_exceptions=True)

    async def _fetch(self, driven: Driven, index: str) -> None:
        call = driven.progress.graph.nodes[index].call
        try:
            value = await self._executor.fetch(call)
        except Exception as error:  # whatever the cluster answers: it has lost the value, which is made again
            logger.warning("a result that a flow needs is lost and made again", key=call.key, error=str(error))
            self._on_lost(driven, index)
            return
        self.add(driven, [Feed(index, 0.0, State.COMPLETED, fetched=value)])
