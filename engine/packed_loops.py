"""Event loops of worker threads, on which the ``async`` flows and tasks of packed runs are run to their end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any

from engine.packed_handles import Unavailable, filled

#: Tasks that a run has left behind get so long to heed their cancellation.
_LEAVING_SECONDS = 1.0


class Ending:
    """What those wait for who need a call that runs: its end, which nobody who stops waiting can bring about."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.shield(self._task).__await__()


class Running:
    """What one run has on its thread's loop."""

    __slots__ = ("_loop", "_tasks")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], context: Context) -> Ending:
        """Run ``work`` beside what runs on the loop now."""
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Ending(task)

    def run(self, work: Coroutine[Any, Any, Any], context: Context) -> Any:
        """Run ``work`` to its end, and all that was started meanwhile. Raises whatever ``work`` raises."""
        self._loop = _loop_of_thread()
        value, error = self._loop.run_until_complete(self._loop.create_task(self._whole(work), context=context))
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """End what user code has left on the loop."""
        if self._loop is not None and (left := asyncio.all_tasks(self._loop)):
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(left, timeout=_LEAVING_SECONDS))

    async def _whole(self, work: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
        value, raised = None, None
        try:
            value = await work
        except BaseException as error:  # carried past the loop, which SystemExit and its like would stop
            raised = error
        while self._tasks:  # what was called and not awaited belongs to the run, too
            await asyncio.wait(self._tasks)
        return value, raised


async def filled_later(value: Any) -> Any:
    """See ``filled``; what runs is waited for."""
    while True:
        try:
            return filled(value)
        except Unavailable as missing:
            if missing.absent.running is None:
                raise
            running = missing.absent.running
        await running


def is_on_loop() -> bool:
    """Whether a loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # how asyncio says no
        return False
    return True


class _ThreadLoop:
    """Closes its loop with the thread that it belongs to."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __del__(self) -> None:
        if not self.loop.is_running():
            self.loop.close()


_local = threading.local()


def _loop_of_thread() -> asyncio.AbstractEventLoop:
    """Kept from run to run, so that what user code binds to a loop (a client's connections) can be kept, too."""
    found: _ThreadLoop | None = getattr(_local, "found", None)
    if found is None:
        found = _local.found = _ThreadLoop()
    return found.loop
