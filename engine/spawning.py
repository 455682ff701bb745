"""Spawning: what a running task may start and wait for; knows nothing of Dask, which the reporter speaks to.

A child is submitted at once, from the worker to the scheduler; the engine hears of it in the same order as of everything
else its parent does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import msgspec

from engine.arguments import Dumped, Input, Wiring, child_index, dump
from engine.errors import TaskCrashed, TaskFailed, TooManyTasks, WiringError
from engine.executor import Call, Report, key_of
from engine.handles import Handle, MapHandle, Unmapped, recorder
from engine.runs import task_run_id_of
from engine.states import State
from engine.tasks import Task
from engine.trace_contexts import attempt_context


class Nursery(Protocol):
    """Starts children and says what they have come to; may be called from any thread."""

    def spawn(self, report: Report) -> None:
        """Submit ``report.spawned`` now, and tell the engine."""
        ...

    def ended(self, call: Call, key: str) -> Future[Any]:
        """Answers the value of a child when it is there; raises ChildFailed where there will be none."""
        ...

    def secede(self, call: Call) -> None:
        """The task is going to wait: somebody else may have its place on the worker."""
        ...


class ChildFailed(Exception):
    """How a child has failed: its report."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report


class Spawner:
    """The recorder of one attempt of a task."""

    takes_calls = False

    def __init__(self, call: Call, nursery: Nursery, address: str, now: float) -> None:
        self._call = call
        self._nursery = nursery
        self._address = address
        self._started_at = now
        self._count = 0
        self._has_seceded = False
        #: Whether anything was started: only then can handles be in what the task returns.
        self.has_children = False
        #: Indices of the children whose failure the task was told of.
        self.handled: list[str] = []

    @property
    def run_id(self) -> str:
        """The run it belongs to."""
        return self._call.run_id

    def call(self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle:
        """See engine.handles.Recorder."""
        child = self._child(task, dump((args, kwargs), task.name, self._call.run_id))
        self._spawn([child])
        return Handle(task.name, child.index, self._call.run_id)

    def map(self, task: Task[..., Any], columns: Sequence[Any], fixed: dict[str, Any]) -> Any:
        """See engine.handles.Recorder: a list of handles, or the one handle of a map over results to come."""
        if any(isinstance(column, Handle | MapHandle) for column in columns):
            # How many there are only a task can see that has them: a step of its own, whose value is the list.
            dumped = dump(((task, list(columns), fixed), {}), task.name, self._call.run_id)
            child = self._child(None, dumped, function="engine.spawning:walk")
            self._spawn([child])
            return Handle("", child.index, self._call.run_id)
        known = next(column for column in columns if not isinstance(column, Unmapped))
        children: list[Call] = []
        for place in range(len(known)):
            row = tuple(column.value if isinstance(column, Unmapped) else column[place] for column in columns)
            if place == 0:
                task.check(row, fixed)
            dumped = dump((row, fixed), task.name, self._call.run_id)
            children.append(self._child(task, dumped, map_index=place))
        self._spawn(children)
        return [Handle(task.name, child.index, self._call.run_id) for child in children]

    def wait(self, handle: Handle) -> Awaitable[Any]:
        """See engine.handles.Recorder."""
        if not self._call.is_async:
            raise WiringError(handle.task, "a handle was awaited in a plain task", "Ask for .result(), or use async def.")
        return self._wait(handle)

    def result(self, handle: Handle) -> Any:
        """See engine.handles.Recorder."""
        if self._call.is_async:
            raise WiringError(handle.task, ".result() would block the worker's event loop", "Await the handle.")
        future = self._nursery.ended(self._call, self._key(handle))
        self._give_way(future)
        try:
            # A thread that waits without end cannot be stopped, at its timeout or when the run is cancelled.
            while not future.done():
                with_timeout(future)
            return future.result()
        except ChildFailed as error:
            raise self._told(handle, error.report) from None

    async def _wait(self, handle: Handle) -> Any:
        future = self._nursery.ended(self._call, self._key(handle))
        self._give_way(future)
        try:
            return await asyncio.wrap_future(future)
        except ChildFailed as error:
            raise self._told(handle, error.report) from None

    def _give_way(self, future: Future[Any]) -> None:
        """Who waits gives its place up, once and for good: what is short enough to matter is not worth a second change."""
        if not future.done() and not self._has_seceded:
            self._has_seceded = True
            self._nursery.secede(self._call)

    def _told(self, handle: Handle, report: Report) -> TaskFailed | TaskCrashed:
        self.handled.append(handle.index)
        failure = report.error
        kind = TaskCrashed if report.state is State.CRASHED else TaskFailed
        if failure is None:
            return kind("Unknown", f"{handle!r} has failed", "")
        return kind(failure.type, failure.message, failure.traceback)

    def _key(self, handle: Handle) -> str:
        if handle.run_id != self._call.run_id:
            cause = f"{handle!r} of another run was waited for"
            raise WiringError(handle.task, cause, "From another run use engine.attach(run_id).")
        return key_of(handle.task, handle.run_id, handle.index)

    def _spawn(self, children: Sequence[Call]) -> None:
        call = self._call
        self.has_children = True
        self._nursery.spawn(
            Report(
                *(call.run_id, call.index, State.RUNNING, call.attempt),
                *(self._started_at, self._started_at, self._address),
                spawned=tuple(children),
            )
        )

    @property
    def _context(self) -> str:
        """The span that those of the children are under: that of the attempt; a step that is no task has none."""
        call = self._call
        if not call.task:
            return call.traceparent
        return attempt_context(call.traceparent, task_run_id_of(call.run_id, call.task, call.index), call.attempt)

    def _child(self, task: Task[..., Any] | None, dumped: Dumped, *, function: str = "", map_index: int | None = None) -> Call:
        parent = self._call
        name = "" if task is None else task.name
        index = child_index(parent.index, parent.attempt - parent.deaths, self._count, name, dumped.data)
        self._count += 1
        dependencies, places = resolved(dumped.inputs)
        return Call(
            index=index,
            task=name,
            function=function if task is None else task.reference,
            flow=parent.flow,
            run_id=parent.run_id,
            arguments=dumped.data,
            dependencies=dependencies,
            places=places,
            attempt=1,
            # The deeper, the sooner: a branch is finished before the next one is begun.
            depth=parent.depth + 1,
            is_async=task is not None and task.is_async,
            returns=False,
            is_final=False,
            inline_result_bytes=parent.inline_result_bytes,
            timeout_seconds=None if task is None else task.timeout_seconds,
            traceparent=self._context,
            scheduled_at=self._started_at,
            is_taken=True,
            persist=task is not None and task.persist,
            store=parent.store,
            map_index=map_index,
            spawned_by=parent.index if parent.task else parent.spawned_by,
            # Its index is a digest of what it is: another run has the same where it started the same.
            reuse=parent.reuse,
        )


def resolved(inputs: Sequence[Input]) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Dependencies and places of what a task hands to a child, or returns."""
    wiring = Wiring()
    for taken in inputs:
        if not isinstance(taken, Handle):  # a flow's, which has no way into a task
            name = getattr(taken, "task", "map")
            raise WiringError(name, f"{taken!r} cannot be taken inside a task", "Hand its elements over.")
        wiring.take(key_of(taken.task, taken.run_id, taken.index))
    return wiring.finish()


def walk(task: Task[..., Any], columns: Sequence[Any], fixed: dict[str, Any]) -> Any:
    """A map inside a task over results that were not there yet: by now they are. Answers its handles unresolved."""
    return task.map(*columns, **fixed)


def with_timeout(future: Future[Any]) -> None:
    """Wait a moment, so that an exception from outside is noticed."""
    try:
        future.result(timeout=0.05)
    except TimeoutError:
        if future.done():
            raise
    except ChildFailed:
        pass  # raised again where it is dealt with


def lose() -> None:
    """Stands in for a value that cannot be put together, because a child has none: the child's report has said why."""
    raise TaskCrashed("LostResult", "a child that its value waits for has failed", "")


def refused(call: Call, limit: int) -> Call:
    """A call beyond what a run may have, as it is run in its place."""
    arguments = dump(((limit,), {}), call.task, call.run_id).data
    function = f"{__name__}:{refuse.__name__}"
    return msgspec.structs.replace(call, function=function, arguments=arguments, dependencies=(), places=())


def refuse(limit: int) -> None:
    """Stands in for a task beyond what a run may have. Raises TooManyTasks."""
    active = recorder.get()
    raise TooManyTasks(active.run_id if isinstance(active, Spawner) else "", limit)
