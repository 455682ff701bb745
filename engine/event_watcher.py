"""The event watcher: finds events for flows that wait for one; it starts nothing and writes nothing.

It reads each topic that somebody waits for without a consumer group, so several engines watch the same topic side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.broker import Broker
from engine.errors import EngineError
from engine.event_waits import Answer, Wait
from engine.events import RawEvent
from engine.logs import logger
from engine.topic_watcher import RunUserCode, TopicWatcher

#: A topic is watched so long after its last wait has gone: the next one is answered sooner, often from memory.
LINGER_SECONDS = 60.0


class EventWatcher:
    """Open waits of all topics. Made, and used, on a running event loop."""

    def __init__(
        self,
        broker: Broker,
        on_found: Callable[[str, RawEvent], None],
        on_failed: Callable[[str, EngineError], None],
        *,
        run_user_code: RunUserCode = asyncio.to_thread,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        """``on_found`` and ``on_failed`` get the ``wait_id``: one of them, once, on the event loop, for each wait not dropped.

        Of one partition the first event that matches is found; among partitions, whichever is read first.
        """
        self._broker, self._on_found, self._on_failed = broker, on_found, on_failed
        self._run_user_code, self._linger_seconds = run_user_code, linger_seconds
        self._waits: dict[str, Wait] = {}
        #: Open waits by topic; a topic stays for a while after its last.
        self._counts: dict[str, int] = {}
        self._topics: dict[str, TopicWatcher] = {}
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many waits are open."""
        return len(self._waits)

    @property
    def trouble(self) -> str:
        """Empty while it gets on; otherwise what the waits of a topic wait for."""
        return next((topic.trouble for topic in self._topics.values() if topic.trouble), "")

    def add(self, wait: Wait) -> None:
        """Look for its event, from its ``since_ms`` on. In place of an open wait with the same id, where there is one."""
        self.drop(wait.wait_id)
        self._waits[wait.wait_id] = wait
        self._counts[wait.topic] = self._counts.get(wait.topic, 0) + 1
        if (timer := self._lingering.pop(wait.topic, None)) is not None:
            timer.cancel()
        if wait.topic not in self._topics:
            self._topics[wait.topic] = TopicWatcher(self._broker, wait.topic, self._settle, self._run_user_code)
        self._topics[wait.topic].add(wait)

    def drop(self, wait_id: str) -> None:
        """Look no longer: its time is over, or its run. Nothing happens where it is not open."""
        wait = self._waits.get(wait_id)
        if wait is not None:
            self._topics[wait.topic].drop(wait)
            self._forget(wait)

    async def close(self) -> None:
        """Drop every wait and disconnect."""
        self._waits.clear()
        self._counts.clear()
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()
        for topic in list(self._topics):
            self._retire(topic)
        while self._closing:
            await asyncio.wait(self._closing)

    def _settle(self, answer: Answer) -> None:
        wait, found = answer
        if self._waits.get(wait.wait_id) is not wait:
            return  # It was dropped while its event was looked at.
        # First: whoever is told may wait again under the same id.
        self._forget(wait)
        try:
            if isinstance(found, EngineError):
                self._on_failed(wait.wait_id, found)
            else:
                self._on_found(wait.wait_id, found)
        except Exception:  # a fault of whoever is told must not stop the waits of others
            logger.exception("nobody took what a wait had found", wait_id=wait.wait_id, topic=wait.topic)

    def _forget(self, wait: Wait) -> None:
        del self._waits[wait.wait_id]
        self._counts[wait.topic] -= 1
        if not self._counts[wait.topic]:
            del self._counts[wait.topic]
            loop = asyncio.get_running_loop()
            self._lingering[wait.topic] = loop.call_later(self._linger_seconds, self._retire, wait.topic)

    def _retire(self, topic: str) -> None:
        self._lingering.pop(topic, None)
        closing = asyncio.create_task(self._topics.pop(topic).close(), name=f"close the waits for {topic}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
