"""The worker's side of a task: runs one call and reports; knows nothing of Dask (engine.reporter calls it).

Whatever user code does, a report leaves before the value or the error: unpicklable errors, ``sys.exit`` and timeouts
included. Only the death of the process goes unreported; the scheduler notices that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from engine.attempts import current
from engine.deadlines import GRACE_SECONDS, guard, run_within
from engine.errors import TaskTimeout
from engine.executor import Call
from engine.handles import recorder
from engine.running import Attempt, Reporter


def execute(call: Call, results: Sequence[Any], reporter: Reporter) -> Any:
    """Run a call of a plain function. Raises TaskFailed for whatever user code raised, Postponed where it is not over."""
    attempt = Attempt(call, reporter)
    token = recorder.set(attempt.spawner)
    try:
        if call.hung is not None:
            raise attempt.hung()  # noqa: TRY301 - told as if it had been raised where the attempt was
        function, args, kwargs = attempt.prepare(results)
        if not attempt.is_known:
            attempt.value = run_within(call.timeout_seconds, attempt.stuck, function, args, kwargs, name=call.key)
        ended = attempt.returned()
    except BaseException as error:  # SystemExit too: it must end the task, not the worker; the run ends FAILED
        ended = attempt.failed(error)
    finally:
        attempt.close()
        recorder.reset(token)
        current.set(None)  # threads are reused
    # Out here it has no context: Dask pickles an error with its context, which may be what does not pickle.
    return _leave(ended)


async def execute_async(call: Call, results: Sequence[Any], reporter: Reporter) -> Any:
    """Run a call of an ``async def`` function. Raises as ``execute`` does."""
    attempt = Attempt(call, reporter)
    token = recorder.set(attempt.spawner)
    limit = _Limit(attempt, call.timeout_seconds)
    try:
        if call.hung is not None:
            raise attempt.hung()  # noqa: TRY301 - as above
        function, args, kwargs = attempt.prepare(results)
        try:
            async with asyncio.timeout(call.timeout_seconds) as attempt.limit:
                if not attempt.is_known:
                    attempt.value = await function(*args, **kwargs)
        except TimeoutError as error:
            raise TaskTimeout(call.task, call.timeout_seconds or 0.0) if call.timeout_seconds else error from error
        ended = attempt.returned()
    except asyncio.CancelledError:
        raise  # the worker is closing: the scheduler gives the call to another one
    except BaseException as error:  # as above
        ended = attempt.failed(error)
    finally:
        limit.close()
        attempt.close()
        recorder.reset(token)
        current.set(None)  # threads are reused
    if attempt.is_given_up and reporter.restarts:
        await asyncio.get_running_loop().create_future()  # Dask has let go of it, and this process is about to end
    return _leave(ended)


class _Limit:
    """What becomes of async code that is not through some time after it was cancelled because its time was over.

    Code that stays is given up, as that of a thread. Where the event loop itself does not get on, its process is ended.
    """

    def __init__(self, attempt: Attempt, timeout_seconds: float | None) -> None:
        self._attempt = attempt
        self._leave = guard(timeout_seconds)
        self._timer: asyncio.TimerHandle | None = None
        if timeout_seconds is not None:
            self._task = asyncio.current_task()
            self._timer = asyncio.get_running_loop().call_later(timeout_seconds + GRACE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._leave()
        self._attempt.stuck(None, None if self._task is None else self._task.get_coro())

    def close(self) -> None:
        self._leave()
        if self._timer is not None:
            self._timer.cancel()


def _leave(ended: tuple[Any, Exception | None]) -> Any:
    value, error = ended
    if error is not None:
        raise error
    return value
