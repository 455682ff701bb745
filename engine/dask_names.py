"""Names on the Dask scheduler: a run's Variable and Queue, by which anybody with a client can have its futures.

Runs inside the scheduler. What distributed's own clients would do in several messages is done here in one step, together with
the submit or the release that it belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from distributed import Scheduler


def variable_of(run_id: str) -> str:
    """Name of the distributed Variable that has a run's final future."""
    return f"run-{run_id}"


def queue_of(run_id: str) -> str:
    """Name of the distributed Queue that has the futures of the tasks that a run's tasks have started."""
    return f"run-{run_id}"


class Names:
    """The names of all open runs."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def share(self, run_id: str, key: str) -> None:
        """Put the final future into the run's Variable, as ``Variable.set`` would."""
        name = variable_of(run_id)
        self._scheduler.client_desires_keys([key], f"variable-{name}")
        variables = self._scheduler.extensions["variables"]
        variables.variables[name] = {"type": "Future", "value": key}
        if variables.started._waiters:  # somebody asked before the run began
            self._scheduler.loop.add_callback(_wake, variables.started)

    def is_fetched(self, run_id: str, key: str) -> bool:
        """Whether somebody was just given the final future, and has not yet said that they hold it."""
        return bool(self._scheduler.extensions["variables"].waiting.get((key, variable_of(run_id))))

    def drop_variable(self, run_id: str) -> None:
        """The run's final future is not to be had by its name any more."""
        name = variable_of(run_id)
        variables = self._scheduler.extensions["variables"]
        record = variables.variables.pop(name, None)
        self._drop_holder(f"variable-{name}", [] if record is None else [record["value"]])
        if record is not None and not self.is_fetched(run_id, record["value"]):
            # What distributed leaves of every ``Variable.get``.
            variables.waiting.pop((record["value"], name), None)
            variables.waiting_conditions.pop(name, None)

    def enqueue(self, run_id: str, keys: Sequence[str]) -> None:
        """Put the futures of children into the run's Queue, as ``Queue.put`` would, for whoever wants to follow them."""
        name = queue_of(run_id)
        queues = self._scheduler.extensions["queues"]
        if name not in queues.queues:
            queues.create(name=name)
        self._scheduler.client_desires_keys(keys, f"queue-{name}")
        for key in keys:
            queues.future_refcount[name, key] += 1
            queues.queues[name].put_nowait({"type": "Future", "value": key})

    def drop_queue(self, run_id: str, keys: Iterable[str]) -> None:
        """The run's Queue goes, with the futures of ``keys`` that were put into it; who waits for more waits no longer.

        It may be there without any: whoever asks for it makes it.
        """
        name = queue_of(run_id)
        queues = self._scheduler.extensions["queues"]
        queue = queues.queues.pop(name, None)
        for waiter in () if queue is None else queue._getters:
            if not waiter.done():  # as after a timeout of their own; an error of ours not all of them could read
                waiter.set_exception(TimeoutError(f"run {run_id} has ended: no more futures come into its Queue"))
        queues.client_refcount.pop(name, None)
        for key in keys:
            queues.future_refcount.pop((name, key), None)
        self._drop_holder(f"queue-{name}", keys)

    def _drop_holder(self, holder: str, keys: Iterable[str]) -> None:
        if holder in self._scheduler.clients:
            self._scheduler.client_releases_keys(list(keys), holder)
            self._scheduler.clients.pop(holder, None)  # distributed itself never removes these


async def _wake(condition: asyncio.Condition) -> None:
    async with condition:
        condition.notify_all()
