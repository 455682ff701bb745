"""The outbox of one target: what waits for it, bounded; tried again with back-off; given up in the end, and said so.

No target waits for another. One that takes nothing fills its own outbox; then the oldest in it are given up for what comes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from engine.command_errors import NotDelivered
from engine.deliveries import Delivery
from engine.logs import logger
from engine.senders import Sender

#: What waits for one target at most, those under way and those that wait for another attempt included.
MOST_WAITING = 500
#: Notices given up for want of room are counted, and told of no more often than this.
_TELL_SECONDS = 10.0


class Outbox:
    """``run`` works until cancelled; ``offer`` puts something in."""

    def __init__(
        self,
        name: str,
        sender: Sender,
        *,
        stuck_seconds: float,
        most_waiting: int = MOST_WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A full outbox whose target took nothing for ``stuck_seconds`` takes new notices for old; until then reading waits."""
        self.name = name
        self._sender, self._stuck_seconds, self._most, self._clock = sender, stuck_seconds, most_waiting, clock
        self._ready: deque[Delivery] = deque()
        self._later: dict[Delivery, asyncio.TimerHandle] = {}
        self._under_way: set[Delivery] = set()
        self._wake = asyncio.Event()
        self._moved_at = clock()
        self._is_failing = False
        self._overflown, self._told_at = 0, float("-inf")
        self._is_stopping = False

    @property
    def waiting(self) -> int:
        """All that has not come to its end."""
        return len(self._ready) + len(self._later) + len(self._under_way)

    def offer(self, delivery: Delivery) -> bool:
        """Put it in. False where there is no room, but may soon be: then it is to be offered again."""
        if self.waiting >= self._most and not self._make_room():
            return False
        if not self.waiting:
            self._moved_at = self._clock()  # Until now it had nothing to take.
        self._ready.append(delivery)
        self._wake.set()
        return True

    def drop(self) -> None:
        """Forget all that is not under way: what was not committed is read again."""
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()
        self._ready.clear()

    async def run(self) -> None:
        """Deliver until stopped."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._sender.concurrency):
                group.create_task(self._work(), name=f"engine-outbox-{number}")

    def stop(self) -> None:
        """Begin no other delivery; ``run`` returns when those under way have ended."""
        self._is_stopping = True
        self.drop()
        self._tell_overflown(self._clock())
        self._wake.set()

    async def _work(self) -> None:
        while not self._is_stopping:
            if not self._ready:
                self._wake.clear()
                await self._wake.wait()
                continue
            delivery = self._ready.popleft()
            self._under_way.add(delivery)
            try:
                await self._attempt(delivery)
            finally:
                self._under_way.discard(delivery)

    async def _attempt(self, delivery: Delivery) -> None:
        delivery.attempts += 1
        try:
            await self._sender.send(delivery.notice)
        except NotDelivered as error:
            self._failed(delivery, error)
            return
        except (
            Exception
        ) as error:  # a bug of ours, which must end neither this target nor the others: tried again, as any failure
            self._failed(delivery, NotDelivered(f"unexpectedly {type(error).__name__}", False, None))
            return
        self._moved_at = self._clock()
        if self._is_failing:
            self._is_failing = False
            logger.info("the target takes notifications again", target=self.name)
        delivery.finish()

    def _failed(self, delivery: Delivery, error: NotDelivered) -> None:
        wait_seconds = delivery.wait_seconds(
            self._clock(), is_final=error.is_final, retry_after_seconds=error.retry_after_seconds
        )
        fields = {"target": self.name, "delivery": delivery.notice.id, "origin": delivery.notice.origin, "error": str(error)}
        if wait_seconds is None:
            # There is nowhere else to put it: the state change itself stays on the state topic.
            run_id = None if delivery.notice.change is None else delivery.notice.change.run_id
            logger.error("notification given up", **fields, run_id=run_id, attempts=delivery.attempts)
            delivery.finish()
            return
        if not self._is_failing:
            # Said once, not for each that waits behind it.
            self._is_failing = True
            logger.warning("a notification was not taken; it is tried again", **fields, again_in_seconds=wait_seconds)
        if self._is_stopping:
            return  # It was not committed, so it is read again.
        self._later[delivery] = asyncio.get_running_loop().call_later(wait_seconds, self._again, delivery)

    def _again(self, delivery: Delivery) -> None:
        if self._later.pop(delivery, None) is not None:
            self._ready.append(delivery)
            self._wake.set()

    def _make_room(self) -> bool:
        now = self._clock()
        if now - self._moved_at < self._stuck_seconds:
            return False
        waiting = [*self._later, *self._ready]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda delivery: delivery.queued_at)
        if (timer := self._later.pop(oldest, None)) is not None:
            timer.cancel()
        else:
            self._ready.remove(oldest)
        oldest.finish()
        self._overflown += 1
        if now - self._told_at >= _TELL_SECONDS:
            self._tell_overflown(now)
        return True

    def _tell_overflown(self, now: float) -> None:
        if self._overflown:
            logger.error(
                "the target takes nothing: the oldest notifications were given up", target=self.name, count=self._overflown
            )
        self._overflown, self._told_at = 0, now
