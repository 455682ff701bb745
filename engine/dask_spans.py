"""Dask's own spans, kept small: all tasks are in one that never ends, which remembers no task groups of the past.

Dask files each task under a span. It keeps every span for good, with the groups of its tasks, and begins another one whenever
all work has ended: on a quiet cluster that is one for each run. Runs inside the scheduler, in its event loop.
"""

from __future__ import annotations

from collections.abc import Iterable

from distributed import Scheduler
from distributed.scheduler import TaskGroup, TaskPrefix, TaskState

#: So many groups are remembered before those that have gone are looked for: Dask goes through them for each new one.
_MOST_GROUPS = 25
_NAME = "engine-spans"


class Spans:
    """The one span of a scheduler. Where spans were taken out of Dask there is nothing to do."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._extension = scheduler.extensions.get("spans")
        self._most = _MOST_GROUPS
        #: A group of which something is always left to do: with it in the default span that one is never done.
        self._endless = TaskGroup(_NAME, TaskPrefix(_NAME))
        self._endless.states["waiting"] = 1
        if self._extension is not None:
            self._span = self._extension._ensure_default_span()
            self._endless.span_id = self._span.id
            self._span.groups.add(self._endless)

    def observe(self, tasks: Iterable[TaskState]) -> None:
        """Tasks that Dask did not make itself. A worker that has run something without a span ends at its next heartbeat."""
        if self._extension is not None:
            self._extension.observe_tasks(tasks, code=(), span_metadata={})

    def forget(self) -> None:
        """Let go of groups whose tasks have all gone; call often, it looks seldom."""
        remembered = self._span.groups if self._extension is not None else set()
        # A computation is Dask's word for all that was asked for before the cluster was idle again.
        asked = self._scheduler.computations[-1].groups if self._scheduler.computations else set()
        if max(len(remembered), len(asked)) <= self._most:
            return
        there = {*self._scheduler.task_groups.values(), self._endless}
        for groups in (remembered, asked, *(group.dependencies for group in there)):
            groups.intersection_update(there)
        self._most = max(_MOST_GROUPS, 2 * len(remembered), 2 * len(asked))
