"""The history reader: answers questions to the history from a few read connections in threads; follows a replaced database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from engine.history import History
from engine.history_database import Version
from engine.history_errors import HistoryUnavailable, HistoryUnreadable

Answer = TypeVar("Answer")


class HistoryReader:
    """Questions from many requests at once to one database; close it when no more will come."""

    def __init__(self, place: str, *, connections: int = 4, version_seconds: float = 0.2) -> None:
        """At most ``connections`` questions are answered at once; the version is looked up once in ``version_seconds``."""
        self.place = place
        self._room = asyncio.Semaphore(connections)
        self._idle: list[History] = []
        self._lock = threading.Lock()
        self._watching = asyncio.Lock()
        self._watcher: History | None = None
        self._version: Version | None = None
        self._version_seconds, self._looked_at = version_seconds, float("-inf")
        self._is_closed = False

    async def ask(self, question: Callable[[History], Answer]) -> Answer:
        """What ``question`` finds out. Raises HistoryUnavailable, HistoryUnreadable, and what the question raises."""
        async with self._room:
            return await run_in_threadpool(self._answer, question)

    async def version(self) -> Version:
        """Changes whenever the database does. Raises HistoryUnavailable, HistoryUnreadable."""
        async with self._watching:
            if self._version is None or time.monotonic() - self._looked_at >= self._version_seconds:
                self._version = None
                self._version = await run_in_threadpool(self._look)
                self._looked_at = time.monotonic()
            return self._version

    def close(self) -> None:
        """Free all connections; questions that are being answered free theirs when they are done."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            watcher, self._watcher = self._watcher, None
        for history in [*idle, *([watcher] if watcher else [])]:
            history.close()

    def _answer(self, question: Callable[[History], Answer]) -> Answer:
        with self._lock:
            known = self._idle.pop() if self._idle else None
        history = self._current(known)
        try:
            answer = question(history)
        except (HistoryUnavailable, HistoryUnreadable):
            history.close()  # The next question opens another; the asker hears of this one.
            raise
        except BaseException:  # the question was wrong, not the database: the asker hears of it, no event is touched
            self._keep(history)
            raise
        self._keep(history)
        return answer

    def _keep(self, history: History) -> None:
        with self._lock:
            if not self._is_closed:
                self._idle.append(history)
                return
        history.close()

    def _look(self) -> Version:
        with self._lock:
            known, self._watcher = self._watcher, None
        history = self._current(known)
        try:
            found = history.version()
        except (HistoryUnavailable, HistoryUnreadable):
            history.close()
            raise
        with self._lock:
            if not self._is_closed:
                self._watcher = history
                return found
        history.close()
        return found

    def _current(self, known: History | None) -> History:
        """An open connection to the database that is there now."""
        if known is not None:
            if known.is_current():
                return known
            known.close()
        return History.open(self.place)
