"""When the parts of the stack that died are started again: later and later while they keep dying; starts nothing itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class StackRestarts:
    """Calls ``due`` with the name of a part when its turn has come."""

    def __init__(self, first_seconds: float, limit_seconds: float, due: Callable[[str], None]) -> None:
        self._first_seconds, self._limit_seconds, self._due = first_seconds, limit_seconds, due
        self._backoff: dict[str, float] = {}
        self._began_at: dict[str, float] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def schedule(self, name: str) -> None:
        """It has died. Said again before its turn, nothing changes."""
        if name in self._timers:
            return
        if time.monotonic() - self._began_at.get(name, 0.0) > 2 * self._limit_seconds:
            self._backoff.pop(name, None)
        delay = self._backoff.get(name, self._first_seconds)
        self._backoff[name] = min(2 * delay, self._limit_seconds)
        self._timers[name] = asyncio.get_running_loop().call_later(delay, self._due, name)

    def take(self, name: str) -> None:
        """Its turn has come."""
        self._timers.pop(name, None)

    def begins(self, name: str) -> None:
        """It is started now."""
        self._began_at[name] = time.monotonic()

    def close(self) -> None:
        """Call nobody any more."""
        for timer in self._timers.values():
            timer.cancel()
