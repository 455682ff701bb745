"""Deadlines: calls a function and stops it when its time is over, or when told to; one thread watches all of a process.

Three means, each for what the one before cannot stop. Python code has ``TimeIsOver`` raised in it, again and again should it
swallow that. Code that waits in C outside the interpreter's lock is *stuck*: whoever asked is told, and has to part with the
process. Code in C that holds the lock stops this module, too: a timer of the kernel ends the process, where
``end_hung_process`` has switched that on. Nothing here knows of tasks, reports or Dask.
"""

from __future__ import annotations

import ctypes
import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["ENDED_AFTER_SECONDS", "GRACE_SECONDS", "TimeIsOver", "Watchdog", "run_within", "guard", "stop", "end_hung_process"]

#: How long code may take to leave once its time is over, until it counts as stuck.
GRACE_SECONDS = 2.0
#: How soon it is raised anew in code that has swallowed it.
_AGAIN_SECONDS = 0.05
#: The part of the grace in which handlers and ``finally`` blocks of the code clean up undisturbed.
_CLEAN_UP_SHARE = 0.5
#: How long after a thread should have been told stuck the kernel ends a process that could not tell.
_HUNG_SECONDS = 1.0
#: How long after the first deadline in it such a process ends.
ENDED_AFTER_SECONDS = GRACE_SECONDS + _HUNG_SECONDS

#: Takes the frame at which the code is stuck, None where it has just ended. Called in the watchdog's thread; must not wait.
OnStuck = Callable[[FrameType | None], None]

_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
_NOTHING = ctypes.py_object()


class TimeIsOver(BaseException):
    """Raised inside user code, and out of ``run_within``; a BaseException, so that ``except Exception`` does not swallow it."""

    #: Whether the code was told stuck, so that somebody has reported its end already.
    is_stuck = False


class _Watch:
    """One call under a deadline, as the watchdog sees it."""

    __slots__ = (
        *("due_at", "grace_seconds", "has_fired", "is_open", "is_stuck", "name", "on_stuck", "stuck_at", "thread"),
        "thread_id",
    )

    def __init__(self, due_at: float, grace_seconds: float, on_stuck: OnStuck, name: str) -> None:
        self.name = name
        self.thread_id = threading.get_ident()
        self.thread = ctypes.c_ulong(self.thread_id)
        self.grace_seconds = grace_seconds
        self.on_stuck = on_stuck
        #: When there is something to do next.
        self.due_at = due_at
        self.stuck_at = due_at + grace_seconds
        #: Whether the function runs: only then may anything be raised in its thread.
        self.is_open = True
        self.has_fired = False
        self.is_stuck = False


class Watchdog:
    """Watches the deadlines of this process, from a thread that begins with the first of them."""

    def __init__(self) -> None:
        #: Called with the seconds after which the process is to be ended unless told anew; 0 is never.
        self.end_process_in: Callable[[float], object] | None = None
        self._reset()

    def _reset(self) -> None:
        #: Everything below, and every exception raised in another thread, is under this lock. Threads that run code take it by
        #: itself: a Condition's ``__enter__`` is Python, and an exception that hits it there would leave the lock taken.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        #: As many as threads that run something: few, so they are walked.
        self._watches: set[_Watch] = set()
        #: Those that may be stopped by name.
        self._named: dict[str, _Watch] = {}
        self._thread: threading.Thread | None = None
        self._wakes_at = math.inf
        self._ends_process_at = math.inf

    def add(self, watch: _Watch) -> None:
        """Watch from now on."""
        with self._lock:
            self._watches.add(watch)
            if watch.name:
                self._named[watch.name] = watch
            self._arm()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="deadlines-of-engine", daemon=True)
                self._thread.start()
            elif watch.due_at < self._wakes_at:
                self._changed.notify()

    def remove(self, watch: _Watch) -> None:
        """Watch no longer, and take back what was raised and not yet delivered. Harmless when done twice."""
        with self._lock:
            self._watches.discard(watch)
            if watch.name and self._named.get(watch.name) is watch:
                del self._named[watch.name]
            if watch.has_fired:
                _raise_in_thread(watch.thread, _NOTHING)
            self._arm()

    def stop(self, name: str) -> bool:
        """The time of the call of that name is over now; False where there is none. What is stopped already goes on to be."""
        with self._lock:
            watch = self._named.get(name)
            if watch is None:
                return False
            if watch.is_open and not watch.has_fired:
                # Here and not by the thread: whatever the caller does next, the code cannot notice that before this.
                self._act(watch, time.monotonic())
                self._changed.notify()
            return True

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for watch in tuple(self._watches):
                    if watch.is_open and watch.due_at <= now:
                        self._act(watch, now)
                self._arm()
                self._wakes_at = min((watch.due_at for watch in self._watches if watch.is_open), default=math.inf)
                self._changed.wait(None if self._wakes_at == math.inf else max(0.0, self._wakes_at - time.monotonic()))

    def _act(self, watch: _Watch, now: float) -> None:
        watch.due_at = now + _AGAIN_SECONDS
        if not watch.has_fired:
            watch.has_fired = True
            # From now, not from the deadline: this thread may have been held up, and the code knows of nothing yet.
            watch.stuck_at = now + watch.grace_seconds
        elif not watch.is_stuck and now >= watch.stuck_at:
            watch.is_stuck = True
            # Under the lock: the code's own thread cannot end before it is told stuck, only after.
            try:
                watch.on_stuck(sys._current_frames().get(watch.thread_id))
            except Exception:  # the caller's mistake; the other deadlines of the process need this thread
                sys.excepthook(*sys.exc_info())
        elif now < watch.stuck_at - watch.grace_seconds * _CLEAN_UP_SHARE and _is_cleaning_up(watch.thread_id):
            return
        _raise_in_thread(watch.thread, ctypes.py_object(TimeIsOver))

    def _arm(self) -> None:
        """Let the kernel end the process when this thread is held up until after the first deadline and its grace."""
        if self.end_process_in is None:
            return
        # Who is stuck has been told of, so it is known that this thread gets its turns.
        ends_at = min((watch.stuck_at for watch in self._watches if not watch.is_stuck), default=math.inf) + _HUNG_SECONDS
        if ends_at != self._ends_process_at:
            self._ends_process_at = ends_at
            self.end_process_in(0.0 if ends_at == math.inf else max(0.001, ends_at - time.monotonic()))


_watchdog = Watchdog()
os.register_at_fork(after_in_child=_watchdog._reset)  # threads and timers do not come along


def run_within(
    timeout_seconds: float | None,
    on_stuck: OnStuck,
    function: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    name: str = "",
    grace_seconds: float = GRACE_SECONDS,
    watchdog: Watchdog = _watchdog,
) -> Any:
    """``function(*args, **kwargs)``, stopped after ``timeout_seconds``. Raises TimeIsOver, whatever the function then did.

    One that has a ``name`` may be stopped before that, or without a deadline, by ``stop(name)``.

    ``on_stuck`` is called once, if the function has not come back ``grace_seconds`` later; the call still waits for it.
    No TimeIsOver is ever raised in this thread after the call. A function and not a context manager, because the first
    instruction of an ``__exit__`` could be hit by an exception before it had done anything.
    """
    kwargs = kwargs or {}
    if timeout_seconds is None and not name:
        return function(*args, **kwargs)
    due_at = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
    watch = _Watch(due_at, grace_seconds, on_stuck, name)
    try:
        try:
            watchdog.add(watch)
            return function(*args, **kwargs)
        finally:
            # Exceptions from other threads arrive at calls and jumps only: none between the function's end and this line.
            # After it the watchdog raises nothing more, except what it is about to, once, in its lock.
            watch.is_open = False
            watchdog.remove(watch)
            if watch.has_fired and not isinstance(sys.exception(), TimeIsOver):
                raise TimeIsOver
    except TimeIsOver as error:
        watchdog.remove(watch)  # that one may have hit the line above; there is no second
        error.is_stuck = watch.is_stuck
        raise


def guard(timeout_seconds: float | None, watchdog: Watchdog = _watchdog) -> Callable[[], None]:
    """For code that is stopped otherwise, on an event loop: where that does not get on for so long, the process is ended.

    Answers what says that the code is through.
    """
    if timeout_seconds is None:
        return lambda: None
    watch = _Watch(time.monotonic() + timeout_seconds, GRACE_SECONDS, lambda frame: None, "")
    watch.is_open = False  # nothing is raised in its thread
    watchdog.add(watch)
    return lambda: watchdog.remove(watch)


def stop(name: str) -> bool:
    """Stop the call of that name, as if its time were over; False where none runs in this process."""
    return _watchdog.stop(name)


def end_hung_process() -> None:
    """From now on a process whose interpreter is held beyond a deadline ends: by SIGALRM, with tracebacks on standard error.

    For processes that somebody starts again. They may not use SIGALRM or ITIMER_REAL themselves.
    """
    # A timer of the kernel costs 1 µs; faulthandler.dump_traceback_later would start a thread each time, for 76.
    faulthandler.register(signal.SIGALRM, file=2, all_threads=True, chain=True)
    _watchdog.end_process_in = lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)


def _is_cleaning_up(thread_id: int) -> bool:
    """Whether a thread is in a handler or ``finally`` block that TimeIsOver has led to."""
    active: Any = sys._current_exceptions().get(thread_id)
    error = active[1] if isinstance(active, tuple) else active  # a tuple up to Python 3.11
    while error is not None and not isinstance(error, TimeIsOver):
        error = error.__context__
    return error is not None
