"""Waits: which worker wants to hear of the end of which key, because a task there waits for its child.

Runs inside the scheduler, in its event loop; with the other rooms of the cluster the only importer of distributed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from distributed import Scheduler
from distributed.scheduler import TaskState

from engine.dask_graph import DaskGraph
from engine.executor import Report, encode_reports, index_of, run_of
from engine.states import Failure, State


class Waits:
    """The keys that are waited for."""

    def __init__(self, scheduler: Scheduler, graph: DaskGraph, report_of: Callable[[str], Report | None]) -> None:
        """``report_of`` answers the last report of a key."""
        self._scheduler = scheduler
        self._graph = graph
        self._report_of = report_of
        self._workers: dict[str, set[str]] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._workers

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)

    def add(self, worker: str, key: str) -> None:
        """A task on ``worker`` waits for the end of ``key``."""
        task = self._scheduler.tasks.get(key)
        self._workers.setdefault(key, set()).add(worker)
        if task is None or task.state in ("memory", "erred"):
            self.end(key, task)
        elif task.state == "released":
            self._graph.revive(task)  # lost with its worker when nobody needed it

    def end(self, key: str, task: TaskState | None) -> None:
        """Tell those who wait for ``key`` what it has come to; ``task`` is None where it is not here any more."""
        workers = self._workers.pop(key, ())
        if not workers:
            return
        report: bytes | None = None
        if task is None or task.state != "memory":
            report = encode_reports([self._why(key, task)])
        who_has = [] if task is None or report is not None else [ws.address for ws in task.who_has or ()]
        for worker in workers:
            if worker in self._scheduler.workers:
                self._scheduler.worker_send(worker, {"op": "engine-ended", "key": key, "who_has": who_has, "report": report})

    def forget(self, keys: Iterable[str]) -> None:
        """Nobody is to hear of these any more."""
        for key in keys:
            self._workers.pop(key, None)

    def _why(self, key: str, task: TaskState | None) -> Report:
        """The report of the failure that left ``key`` without a value."""
        blamed = task.exception_blame.key if task is not None and task.exception_blame is not None else key
        known = self._report_of(blamed)
        if known is not None and known.error is not None:
            return known
        failure = Failure("LostResult", "the result is not on the cluster any more")
        return Report(run_of(blamed) or "", index_of(blamed), State.CRASHED, 1, 0.0, time.time(), "", failure)
