"""The final futures of runs: each in its run's Variable from the begin of the run until its end is on the state topic.

Mostly it is the call that gives the flow's result. Where that is not known when the run begins (an async flow has not returned,
a flow may be tried again, a map has no length yet) it is *promised*: a task that waits until the run has ended, and then gives
its result, or fails or is cancelled as the run is. Nothing runs for a promise that nobody has asked for.

Runs inside the scheduler, in its event loop.
"""

from __future__ import annotations

from distributed import Scheduler

from engine.dask_graph import DaskGraph
from engine.dask_names import Names
from engine.dask_runs import HeldRun
from engine.errors import TaskCrashed, TaskFailed
from engine.executor import FINAL, RunEnd, key_of

#: Who was given a run's final future just before its end has so long to say that they hold it.
_FETCHING_SECONDS = 10.0


class Finals:
    """The final futures of all runs but packed ones."""

    def __init__(self, scheduler: Scheduler, graph: DaskGraph, names: Names) -> None:
        self._scheduler, self._graph, self._names = scheduler, graph, names
        #: Results of ended runs that stay for a while: their keys, and the timers that end it.
        self._kept: dict[str, tuple[str, object]] = {}

    def promise(self, run_id: str, held: HeldRun) -> None:
        """None of its calls is sure to give the run's result: something else stands for it until it ends."""
        held.promise = held.shared = key_of("", run_id, FINAL)
        self._graph.hold_back(held.promise)
        self._names.share(run_id, held.promise)

    def end(self, run_id: str, held: HeldRun, end: RunEnd, keep_seconds: float) -> None:
        """The run has ended: let go of all it has, after ``keep_seconds`` of its result."""
        shared = held.shared
        if shared is not None and self._names.is_fetched(run_id, shared):
            # Dask has nothing to say to whoever wants a key that it knows no more: they would wait for ever.
            keep_seconds = max(keep_seconds, _FETCHING_SECONDS)
        if held.promise is not None and (keep_seconds > 0 or self._graph.is_wanted(held.promise)):
            self._keep_promise(held, held.promise, end)
        if shared is None or keep_seconds <= 0:
            if shared is not None:
                self._names.drop_variable(run_id)
            self._graph.release(held.all_keys())
            return
        self._graph.release([key for key in held.all_keys() if key != shared])  # what only led to the result
        self._kept[run_id] = shared, self._scheduler.loop.call_later(keep_seconds, self.let_go, run_id)

    def _keep_promise(self, held: HeldRun, promise: str, end: RunEnd) -> None:
        if end.error is not None:
            kind = TaskCrashed if end.is_crash else TaskFailed
            self._graph.fail(promise, kind(end.error.type, end.error.message, end.error.traceback))
            return
        given = end.result or held.final
        if given is None or not self._graph.stand_for(promise, given):
            self._graph.cancel([promise])

    def let_go(self, run_id: str) -> None:
        """The result of an ended run is not kept any more."""
        key, timer = self._kept.pop(run_id, (None, None))
        if key is not None:
            self._scheduler.loop.remove_timeout(timer)
            self._names.drop_variable(run_id)
            self._graph.release([key])
