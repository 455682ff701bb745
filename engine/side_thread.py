"""A side thread: runs what may block or hang, one call at a time, away from the event loop; nobody waits for it in the end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable
from typing import Any

Work = Callable[[], object]


class SideThread:
    """``await thread.run(work, timeout_seconds=…)``. A call that outlives its time goes on; the next one waits for it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Work, asyncio.Future[None], float] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: asyncio.Future[None] | None = None

    async def run(self, work: Work, *, timeout_seconds: float) -> None:
        """Call ``work``, and await what it answers where that can be. Raises what it raises, and TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while self._last is not None and not self._last.done():
                await asyncio.wait((self._last,))  # Not the future itself: a timeout would cancel it.
            self._start()
            done = self._last = asyncio.get_running_loop().create_future()
            self._calls.put((work, done, timeout_seconds))
            await asyncio.wait((done,))
        done.result()

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way, also one that nobody waits for any more."""
        return self._last is not None and not self._last.done()

    def close(self) -> None:
        """Let it end when it has nothing to do. What it is doing is left to itself: a daemon ends with the process."""
        if self._thread is not None:
            self._calls.put(None)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        # One loop for all calls, so that what an async function keeps between two of them stays usable.
        with asyncio.Runner() as runner:
            while (call := self._calls.get()) is not None:
                _do(runner, *call)
                del call  # Nothing of it is kept while the thread waits for the next one.


def _do(runner: asyncio.Runner, work: Work, done: asyncio.Future[None], timeout_seconds: float) -> None:
    error: BaseException | None = None
    try:
        answer = work()
        if inspect.isawaitable(answer):
            runner.run(_within(answer, timeout_seconds))
    except BaseException as raised:  # whatever it is, it goes to who waits for the call
        error = raised
    with contextlib.suppress(RuntimeError):  # The loop has gone: nobody waits.
        done.get_loop().call_soon_threadsafe(_settle, done, error)


async def _within(answer: Awaitable[Any], timeout_seconds: float) -> None:
    async with asyncio.timeout(timeout_seconds):
        await answer


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        # A future takes neither StopIteration nor what would end the loop that hears of it.
        is_plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
        done.set_exception(error if is_plain else RuntimeError(f"it raised {type(error).__name__}"))
        done.exception()  # Looked at: asyncio has nothing to say where nobody waits any more.
