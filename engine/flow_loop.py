"""The event loop of one async flow: runs what is ready, in order, and stops where everything waits; no clock, no I/O.

Each run has a loop of its own that only moves when it is told to, so that the same answers in the same order lead to the
same calls: that is what makes an async flow durable. Time comes from outside; timers are durable sleeps.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from engine.errors import WiringError

#: Errors that nobody looked at are kept until they are asked for: so many, and of the others only how many there were.
MAX_LOST = 20

#: Asks for a timer: (when, callback). Answers what cancels it.
SetTimer = Callable[[float, Callable[[], None]], Callable[[], None]]


class FlowLoop(asyncio.AbstractEventLoop):
    """What ``asyncio.gather``, ``TaskGroup``, ``timeout`` and ``sleep`` need of a loop, and no more."""

    def __init__(self, flow: str, now: Callable[[], float], set_timer: SetTimer) -> None:
        self._flow = flow
        self._now = now
        self._set_timer = set_timer
        self._ready: deque[events.Handle] = deque()
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._lost: list[BaseException] = []
        self._more_lost = 0

    def advance(self) -> None:
        """Run until everything waits."""
        events._set_running_loop(self)
        try:
            while self._ready:
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(None)

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> events.Handle:  # type: ignore[override]
        """Put it at the end of what is ready."""
        handle = events.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        """A durable sleep, and then the callback."""
        return self.call_at(self._now() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        """The same, at a time of this loop's clock."""
        timer = _Timer(when, callback, args, self, context)
        timer.forget = self._set_timer(when, lambda: self._ready.append(timer))
        return timer

    def time(self) -> float:
        """Seconds since the epoch, as recorded."""
        return self._now()

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:  # type: ignore[override]
        """A task of this loop."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.add(task)
        return task

    def close_all(self) -> None:
        """Cancel what the flow has left behind, as ``asyncio.run`` does, and look at errors that it has not looked at."""
        for task in list(self._tasks):
            if not task.done():  # else its error would count as looked at
                task.cancel()
        self.advance()
        for task in list(self._tasks):
            # asyncio says it of a task when Python forgets that, which may be long after the run is over.
            if task.done() and getattr(task, "_log_traceback", False) and (error := task.exception()) is not None:
                self._lose(error)

    def get_debug(self) -> bool:
        """Never: it would look at the clock."""
        return False

    def is_running(self) -> bool:
        """Asked by asyncio where it checks that it is called from inside."""
        return True

    def is_closed(self) -> bool:
        """It holds nothing that could be closed."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An error that nobody looked at: a task that was dropped."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self._lose(error)

    def _lose(self, error: BaseException) -> None:
        if len(self._lost) < MAX_LOST:
            self._lost.append(error)
        else:
            self._more_lost += 1

    def take_lost(self) -> tuple[list[BaseException], int]:
        """The errors of tasks that nobody looked at since this was asked last, and how many more there were."""
        lost = self._lost, self._more_lost
        self._lost, self._more_lost = [], 0
        return lost

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        if isinstance(handle, _Timer):
            handle.forget()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise WiringError(
            self._flow,
            "an async flow has asked for a thread, a socket or a process",
            "A flow only awaits handles, engine.sleep and engine.wait_for_event; do the rest in a task.",
        )

    run_in_executor = create_connection = create_server = create_datagram_endpoint = getaddrinfo = _refuse  # type: ignore[assignment]
    subprocess_exec = subprocess_shell = sock_connect = sock_recv = sock_sendall = call_soon_threadsafe = _refuse  # type: ignore[assignment]
    add_signal_handler = add_reader = add_writer = run_until_complete = run_forever = _refuse  # type: ignore[assignment]


class _Timer(events.TimerHandle):
    forget: Callable[[], None] = staticmethod(lambda: None)
