"""Deadlines of the attempts in packed runs: what is stopped, what is given up, and what is known to have hung before.

An attempt that has hung, in a process that is no more, is not made again: it fails as if it had just been stopped.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from types import FrameType
from typing import Any

from engine.deadlines import GRACE_SECONDS, TimeIsOver, guard, run_within
from engine.deadlines import __file__ as _deadlines_file
from engine.failures import frames_of_coroutine, frames_of_thread, stack_of
from engine.parcels import Hung, Timed
from engine.whereabouts import Whereabouts

#: Their frames are no part of what user code is stuck in.
_OWN_FILES = (__file__, _deadlines_file)


class Watch:
    """Watches the attempts in a parcel."""

    __slots__ = ("_hung", "_on_stuck", "_whereabouts")

    def __init__(self, hung: Iterable[Hung], whereabouts: Whereabouts | None, on_stuck: Callable[[Hung], None]) -> None:
        """``on_stuck`` is told, from another thread perhaps, of an attempt whose code cannot be stopped."""
        self._whereabouts = whereabouts
        self._on_stuck = on_stuck
        #: By run, index, task and number of the attempt.
        self._hung = {(one.attempt.run_id, one.attempt.index, one.attempt.task, one.attempt.attempt): one for one in hung}

    def hung(self, run_id: str, index: str, task: str, attempt: int) -> Hung | None:
        """What is known of an attempt that is not made again."""
        return self._hung.get((run_id, index, task, attempt))

    def run(
        self, timed: Timed, context: Context, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The value of a plain function, called in ``context``. Raises TimeIsOver, and whatever it raises."""
        self._check(timed)
        try:
            self._enter(timed)
            stuck = functools.partial(self._stuck, timed, time.time(), None)
            return run_within(timed.timeout_seconds, stuck, context.run, (function, *args), kwargs)
        finally:
            self._leave(timed)

    async def run_async(
        self, timed: Timed, function: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The same for an ``async def`` function, as the asyncio task that this runs in.

        Code that stays when it is cancelled is given up. Where the loop itself does not get on, its process is ended.
        """
        self._check(timed)
        self._enter(timed)
        loop, running = asyncio.get_running_loop(), asyncio.current_task()
        coroutine = None if running is None else running.get_coro()
        unguard = guard(timed.timeout_seconds)

        def give_up(started_at: float) -> None:
            unguard()
            self._stuck(timed, started_at, coroutine, None)

        timer = loop.call_later(timed.timeout_seconds + GRACE_SECONDS, give_up, time.time())
        try:
            async with asyncio.timeout(timed.timeout_seconds) as deadline:
                return await function(*args, **kwargs)
        except TimeoutError as error:
            if deadline.expired():
                raise TimeIsOver from error
            raise
        finally:
            timer.cancel()
            unguard()
            self._leave(timed)

    def _check(self, timed: Timed) -> None:
        if self._hung and self.hung(timed.run_id, timed.index, timed.task, timed.attempt) is not None:
            raise TimeIsOver

    def _enter(self, timed: Timed) -> None:
        if self._whereabouts is not None:
            self._whereabouts.enter(timed)

    def _leave(self, timed: Timed) -> None:
        if self._whereabouts is not None:
            self._whereabouts.leave(timed)

    def _stuck(self, timed: Timed, started_at: float, coroutine: object, frame: FrameType | None) -> None:
        frames = frames_of_thread(frame, _OWN_FILES) or frames_of_coroutine(coroutine, _OWN_FILES)
        self._on_stuck(Hung(timed, started_at, "restarted", stack_of(frames)))
