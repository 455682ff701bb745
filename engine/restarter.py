"""Restarts a worker's process when code in it cannot be stopped: its task is given up, its data moved, then it ends.

Who started the process starts it again: Dask's nanny, ``engine dev`` or whoever runs the container. With the other rooms of
the cluster the only importer of distributed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable

from distributed import Scheduler, Worker
from distributed.core import Status
from distributed.worker_state_machine import ExecuteFailureEvent, RescheduleEvent

from engine.errors import TaskFailed
from engine.logs import logger

#: What the process exits with.
EXIT_CODE = 75
#: How long moving the worker's data to others may take; what is left behind is made again.
_RETIRE_SECONDS = 10.0
#: How long an orderly close may take after that.
_CLOSE_SECONDS = 3.0
#: How often the scheduler is asked whether it has heard that a task is given up.
_ASK_SECONDS = 0.01
#: For an event loop that does not even begin with it.
_SLACK_SECONDS = 2.0


def owns_process(worker: Worker) -> bool:
    """Whether the process is the worker's alone; not so in tests and notebooks with a cluster inside their own."""
    return not worker.address.startswith("inproc://") and not Scheduler._instances and len(Worker._instances) <= 1


class Restarter:
    """Ends the process of one worker, once."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._closing: asyncio.Task[None] | None = None
        self._timer: threading.Timer | None = None
        self._given_up: set[str] = set()

    def has_given_up(self, key: str) -> bool:
        """Whether the process ends because of ``key``."""
        return key in self._given_up

    def hold(self, key: str) -> None:
        """Do not come back with a task that was given up: Dask's worker, which is about to end, knows it no longer."""
        if self.has_given_up(key):
            threading.Event().wait()

    def begin(self, key: str, report: Callable[[], None], *, goes_on: bool = False) -> None:
        """Give up the task ``key``, after ``report``, and end the process. May be called from any thread; does not wait.

        Where it ``goes_on``, with another attempt, the cluster keeps it.
        """
        self._given_up.add(key)
        if self._timer is None:
            # Not on the event loop: whatever holds that up, the process ends in time.
            self._timer = threading.Timer(_RETIRE_SECONDS + 2 * _CLOSE_SECONDS + _SLACK_SECONDS, _end_process)
            self._timer.daemon = True
            self._timer.start()
        self._worker.loop.add_callback(self._give_up, key, report, goes_on)

    def _give_up(self, key: str, report: Callable[[], None], goes_on: bool) -> None:
        worker = self._worker
        logger.error("code of a task cannot be stopped; this worker is restarted", key=key, worker=worker.address)
        if self._closing is None and worker.status == Status.running:
            worker.status = Status.paused  # or the next task would begin in the place of the one given up
        report()  # before Dask's own word of it: the scheduler must know why
        task = worker.state.tasks.get(key)
        if task is not None and (task in worker.state.executing or task in worker.state.long_running):
            # Not run again elsewhere, as the tasks of a worker that leaves otherwise are: erred, or put back.
            stimulus_id = f"engine-stuck-{time.time()}"
            event: RescheduleEvent | ExecuteFailureEvent
            if goes_on:
                event = RescheduleEvent(key=key, stimulus_id=stimulus_id)
            else:
                error = TaskFailed("TaskTimeout", "its code could not be stopped", "")
                event = ExecuteFailureEvent.from_exception(error, key=key, run_id=task.run_id, stimulus_id=stimulus_id)
            worker.handle_stimulus(event)
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="engine-restart")

    async def _close(self) -> None:
        scheduler, address = self._worker.scheduler, self._worker.address
        stimulus_id = f"engine-restart-{time.time()}"
        try:
            async with asyncio.timeout(_RETIRE_SECONDS):
                # What was said above goes another way than the calls below, which may not overtake it, or it ran again.
                # (Its effect is in another process: there is no event to wait for.)
                while not self._given_up.isdisjoint((await scheduler.processing(workers=[address]))[address]):  # noqa: ASYNC110
                    await asyncio.sleep(_ASK_SECONDS)
                await scheduler.retire_workers(workers=[address], close_workers=False, remove=True, stimulus_id=stimulus_id)
        except Exception as error:  # the scheduler is away or slow: it notices that the worker is gone, and recomputes
            logger.warning("a worker that is restarted could not hand on its data", error=repr(error))
        # What is called next has the scheduler tell us to close, and our nanny with us, which then starts nothing again. It
        # cannot be told not to: an argument called close is taken for one of the connection.
        self._worker.stream_handlers["close"] = _stay
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                # Where its data had nowhere to go, it is still known. That it leaves is no fault of its other tasks.
                await scheduler.unregister(address=address, expected=True, stimulus_id=stimulus_id)
        except Exception as error:  # as above; Dask then counts a death against the tasks that ran beside
            logger.warning("a worker that is restarted could not say goodbye", error=repr(error))
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                # Without its nanny, which starts it again; without its threads, of which one will not come back.
                await self._worker.close(timeout=_CLOSE_SECONDS, executor_wait=False, nanny=False, reason="engine-restart")
        except Exception as error:  # nothing is lost by a rough end: the scheduler has let go of this worker
            logger.warning("a worker that is restarted did not close in order", error=repr(error))
        _end_process()


def _stay(**_: object) -> None:
    """Stands for the order to close: this process is about to, in its own way."""


def _end_process() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)  # the stuck thread would hold up any other exit
