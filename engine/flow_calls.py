"""Flow calls: takes down what a flow calls while it is gone through, and what it returns; no I/O, no clock.

An index is a place in the order of calls. Gone through again with the same answers, a flow makes the same calls in that order.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.arguments import Dumped, ElementOf, Input, ItemOf, dump
from engine.errors import FlowChanged, TooManyTasks, WiringError
from engine.executor import FINAL, Call
from engine.flows import Flow
from engine.handles import Handle, MapHandle, Unmapped
from engine.planning import Advance, Limits, Outcome, PlannedCall, PlannedMap
from engine.runs import FlowRun
from engine.states import State, encode
from engine.tasks import Task

#: What is the same in every call of a map travels by itself where it is larger.
_SHARED_BYTES = 32_768


class FlowCalls:
    """The calls of one run of a flow."""

    takes_calls = True

    def __init__(self, flow: Flow[..., Any], run: FlowRun, traceparent: str, now: float, limits: Limits) -> None:
        self.run = run
        self._flow, self._run_id, self._traceparent, self._limits = flow, run.run_id, traceparent, limits
        #: What the same attempt of the run has called before, by index.
        self._expected: Mapping[str, str] = dict(run.called)
        #: Where the clock of the flow stands: the time of what it heard last.
        self._at = now
        self._called: dict[str, str] = {}
        self._reusable = _reusable(flow, run)
        self._tasks: dict[str, Task[..., Any]] = {}
        self._tasks_made = 0
        self._columns: dict[str, tuple[Handle | MapHandle, ...]] = {}
        self._advance = Advance()

    def call(self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle:
        """See engine.handles.Recorder. Raises WiringError, TooManyTasks."""
        index = self._next(task.name)
        self._count(1)
        dumped = dump((args, kwargs), task.name, self._run_id)
        self._tasks[index] = task
        self._advance.planned.append(PlannedCall(self._new_call(index, task, dumped.data), dumped.inputs))
        return Handle(task.name, index, self._run_id)

    def map(self, task: Task[..., Any], columns: Sequence[Any], fixed: dict[str, Any]) -> MapHandle:
        """See engine.handles.Recorder. Raises WiringError, TooManyTasks."""
        columns = [self._share(column) for column in columns]
        fixed = {name: self._share(Unmapped(value)).value for name, value in fixed.items()}
        index = self._next(task.name)
        known = [column for column in columns if not isinstance(column, MapHandle | Handle | Unmapped)]
        later = tuple(column for column in columns if isinstance(column, MapHandle | Handle))
        length = len(known[0]) if known else None
        rows: tuple[Dumped, ...] | Dumped
        if known:
            self._count(len(known[0]))
            rows = tuple(self._row(task, columns, fixed, place) for place in range(len(known[0])))
        else:
            rows = self._row(task, columns, fixed, 0)
        task.check([None] * len(columns), fixed)
        self._tasks[index] = task
        self._columns[index] = later
        self._walk(later)
        self._advance.planned.append(PlannedMap(self._new_call(index, task, b""), rows, length, later))
        if later:
            measured = [column.length for column in later if isinstance(column, MapHandle)]
            all_known = len(measured) == len(later) and None not in measured
            length = (length if length is not None else measured[0]) if all_known else None
        return MapHandle(task.name, index, self._run_id, length)

    def _next(self, task: str) -> str:
        index = str(len(self._called))
        self._called[index] = task
        if (expected := self._expected.get(index)) is not None and expected != task:
            raise FlowChanged(self._flow.name, _sequence(self._expected), _sequence(self._called))
        return index

    def _check_whole(self) -> None:
        """All that was called before must have been called again, once all is fed that was known."""
        expected, self._expected = self._expected, {}
        if not set(expected) <= set(self._called):
            raise FlowChanged(self._flow.name, _sequence(expected), _sequence(self._called))

    def _count(self, more: int) -> None:
        self._tasks_made += more
        if self._tasks_made > self._limits.max_tasks:
            raise TooManyTasks(self._run_id, self._limits.max_tasks)

    def _share(self, column: Any) -> Any:
        """A large constant becomes the result of a step of its own, so that it does not travel with every call."""
        if not isinstance(column, Unmapped):
            return column
        dumped = dump(((column.value,), {}), "map", self._run_id)
        if len(dumped.data) <= _SHARED_BYTES or dumped.inputs:
            return column
        index = self._next("")
        self._advance.planned.append(PlannedCall(self._new_call(index, None, dumped.data), ()))
        return Unmapped(Handle("", index, self._run_id))

    def _walk(self, columns: Sequence[Handle | MapHandle]) -> None:
        """Have the length of these results reported; what an async flow has called before reports it anyway."""
        walked = {column.index for column in columns if isinstance(column, Handle)}
        if not walked:
            return
        for place, one in enumerate(self._advance.planned):
            if isinstance(one, PlannedCall) and one.call.index in walked:
                call = msgspec.structs.replace(one.call, is_walked=True)
                self._advance.planned[place] = msgspec.structs.replace(one, call=call)

    def _row(self, task: Task[..., Any], columns: Sequence[Any], fixed: dict[str, Any], place: int) -> Dumped:
        args: list[Any] = []
        for column in columns:
            if isinstance(column, MapHandle):
                args.append(ElementOf(column))
            elif isinstance(column, Handle):
                args.append(ItemOf(column))
            else:
                args.append(column.value if isinstance(column, Unmapped) else column[place])
        return dump((tuple(args), fixed), task.name, self._run_id)

    def _new_call(self, index: str, task: Task[..., Any] | None, arguments: bytes, *, is_final: bool = False) -> Call:
        return Call(
            index=index,
            task=task.name if task is not None else "",
            function=task.reference if task is not None else "engine.arguments:collected",
            flow=self._flow.name,
            run_id=self._run_id,
            arguments=arguments,
            dependencies=(),
            places=(),
            attempt=1,
            depth=0,
            is_async=task is not None and task.is_async,
            # What an async flow may look at has to come back with the report.
            returns=is_final or (self._flow.is_async and task is not None),
            is_final=is_final,
            inline_result_bytes=self._limits.inline_result_bytes,
            timeout_seconds=task.timeout_seconds if task is not None else None,
            traceparent=self._traceparent,
            scheduled_at=self._at,
            is_taken=self._flow.is_async or task is None,
            persist=task is not None and task.persist,
            store=self._limits.store,
            reuse=self._reused(task, index),
        )

    def _reused(self, task: Task[..., Any] | None, index: str) -> tuple[str, int] | None:
        reuse = self.run.reuse
        if reuse is None or task is None or f"{task.name}/{index}" not in self._reusable:
            return None
        return reuse.run_id, reuse.attempts

    def _finish(self, returned: Any) -> None:
        # A composite takes the values of its parts; a single handle is the result itself.
        if inspect.isawaitable(returned) and not isinstance(returned, Handle | MapHandle):
            raise WiringError(self._flow.name, "the flow has returned something to await", "Await it in an async flow.")
        dumped = dump(((returned,), {}), "result", self._run_id)
        planned = self._advance.planned
        self._mark_taken(dumped)
        if isinstance(returned, Handle) and not self._flow.is_async:
            for place, one in enumerate(planned):
                if isinstance(one, PlannedCall) and one.call.index == returned.index:
                    planned[place] = msgspec.structs.replace(
                        one, call=msgspec.structs.replace(one.call, returns=True, is_final=True)
                    )
                    self._advance.outcome = Outcome(State.COMPLETED)
                    return
        result = None if dumped.inputs else self._inline(returned)
        if result is None:
            planned.append(PlannedCall(self._new_call("result", None, dumped.data, is_final=True), dumped.inputs))
        # What has neither waited nor called anything is over before anybody could ask for its result.
        is_asked = result is not None and (self._flow.is_async or self._flow.retry is not None or bool(self._called))
        call = self._new_call(FINAL, None, dumped.data) if is_asked else None
        self._advance.outcome = Outcome(State.COMPLETED, result=result, call=call)

    def _mark_taken(self, returned: Dumped) -> None:
        """Tell the calls whose value others take; in an async flow nobody knows, so there all are told."""
        if self._flow.is_async:
            return
        planned = self._advance.planned
        taken = {index_taken(one) for one in returned.inputs} if len(returned.inputs) > 1 else set()
        for one in planned:
            if isinstance(one, PlannedCall):
                taken.update(index_taken(needed) for needed in one.inputs)
            elif isinstance(one, PlannedMap):
                rows = one.rows if isinstance(one.rows, tuple) else (one.rows,)
                taken.update(index_taken(needed) for row in rows for needed in row.inputs)
        for place, one in enumerate(planned):
            if isinstance(one, PlannedCall | PlannedMap) and one.call.index in taken:
                planned[place] = msgspec.structs.replace(one, call=msgspec.structs.replace(one.call, is_taken=True))

    def _inline(self, value: Any) -> bytes | None:
        """A plain value as it travels in COMPLETED; None where it must stay on the cluster, as a task's would."""
        try:
            result = encode(value)
        except Exception:  # whatever it is, the call that keeps it there will say why it did not travel
            return None
        return result if len(result) <= self._limits.inline_result_bytes else None

    def _taken(self) -> Advance:
        taken, self._advance = self._advance, Advance()
        return taken


def _reusable(flow: Flow[..., Any], run: FlowRun) -> frozenset[str]:
    """The calls that may take results of an earlier run; none where they were chosen for another kind of flow than it is."""
    reuse = run.reuse
    return frozenset() if reuse is None or (reuse.is_plain and flow.is_async) else frozenset(reuse.calls)


def index_taken(taken: Input) -> str:
    """The index of the call or map that an input is of."""
    handle = taken.handle if isinstance(taken, ElementOf | ItemOf) else taken
    return handle.index.partition(".")[0]


def _sequence(calls: Mapping[str, str]) -> str:
    """Calls in order, as an error shows them."""
    told = [f"{task}/{index}" for index, task in sorted(calls.items(), key=lambda call: int(call[0]))]
    shown = ", ".join(told[:40])
    return f"{shown} and {len(told) - 40} more" if len(told) > 40 else shown or "nothing"
