"""Graphs: running a flow's function to learn which tasks it calls, and what may be submitted when; no I/O.

Arguments are pickled once, here; a handle anywhere inside them (in a list, a dict, a Struct) becomes a persistent id,
which the worker replaces by the result. These bytes go from the engine to its workers alone.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.errors import WiringError
from engine.executor import Call
from engine.flows import Flow
from engine.retries import Retry
from engine.runs import FlowRun, task_run_id_of
from engine.states import encode
from engine.tasks import Handle, Task, recorder


class Node(msgspec.Struct, frozen=True):
    """A call and what the engine alone needs to know of it."""

    call: Call
    task_run_id: str
    map_index: int | None
    #: Task run ids of the calls whose results it takes.
    parents: tuple[str, ...]
    retry: Retry | None


class Graph(msgspec.Struct, frozen=True):
    """What a flow run consists of."""

    #: In call order: a node's index is its place, and it depends on earlier ones only.
    nodes: tuple[Node, ...]
    #: The call that puts a composite result together; it is no task run.
    collect: Call | None
    #: The encoded result of a flow that returns no handle; None where a call returns it.
    result: bytes | None

    @property
    def calls(self) -> tuple[Call, ...]:
        """All that is to be submitted."""
        calls = tuple(node.call for node in self.nodes)
        return calls if self.collect is None else (*calls, self.collect)

    def downstream(self, index: int) -> list[int]:
        """Indices of the nodes that need the result of ``index``, directly or not, in call order."""
        reached = {index}
        for node in self.nodes[index + 1 :]:
            if not reached.isdisjoint(node.call.dependencies):
                reached.add(node.call.index)
        reached.discard(index)
        return sorted(reached)


def wire(flow: Flow[..., Any], run: FlowRun, *, traceparent: str, now: float, inline_result_bytes: int) -> Graph:
    """The graph of a run, by calling the flow's function. Raises whatever that raises, EventError and WiringError."""
    wiring = _Wiring(flow.name, run, traceparent, now, inline_result_bytes)
    token = recorder.set(wiring)
    try:
        returned = flow.function(**flow.arguments(run.parameters))
    finally:
        recorder.reset(token)
    return wiring.finish(returned)


class _Wiring:
    """Notes the calls of one flow run."""

    def __init__(self, flow: str, run: FlowRun, traceparent: str, now: float, inline_result_bytes: int) -> None:
        self._flow, self._run, self._traceparent, self._now = flow, run, traceparent, now
        self._inline_result_bytes = inline_result_bytes
        self._nodes: list[Node] = []

    def call(self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], map_index: int | None) -> Handle:
        """Note one call of ``task``. Raises WiringError where its arguments do not pickle."""
        index = len(self._nodes)
        try:
            arguments, dependencies = dump((args, kwargs))
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise WiringError(
                task.name,
                f"an argument cannot travel to a worker: {error}",
                "Pass plain values, or open it in the task.",
            ) from error
        call = self._new_call(
            task.name, task.reference, arguments, dependencies, is_async=task.is_async, timeout_seconds=task.timeout_seconds
        )
        parents = tuple(self._nodes[dependency].task_run_id for dependency in dependencies)
        task_run_id = task_run_id_of(self._run.run_id, task.name, index)
        self._nodes.append(Node(call, task_run_id, map_index, parents, task.retry))
        return Handle(task.name, index)

    def finish(self, returned: Any) -> Graph:
        """The whole graph, once the flow has returned."""
        self._mark({index for node in self._nodes for index in node.call.dependencies}, is_taken=True)
        if isinstance(returned, Handle):
            self._mark({returned.index}, returns=True)
            return Graph(tuple(self._nodes), None, None)
        arguments, dependencies = dump(((returned,), {}))
        self._mark(set(dependencies), is_taken=True)
        if not dependencies and (result := self._inline(returned)) is not None:
            return Graph(tuple(self._nodes), None, result)
        collect = self._new_call("", "engine.graph:collected", arguments, dependencies, returns=True)
        return Graph(tuple(self._nodes), collect, None)

    def _new_call(
        self,
        task: str,
        function: str,
        arguments: bytes,
        dependencies: tuple[int, ...],
        *,
        is_async: bool = False,
        returns: bool = False,
        timeout_seconds: float | None = None,
    ) -> Call:
        return Call(
            index=len(self._nodes),
            task=task,
            function=function,
            flow=self._flow,
            run_id=self._run.run_id,
            arguments=arguments,
            dependencies=dependencies,
            attempt=1,
            depth=self._depth(dependencies),
            is_async=is_async,
            returns=returns,
            inline_result_bytes=self._inline_result_bytes,
            timeout_seconds=timeout_seconds,
            traceparent=self._traceparent,
            scheduled_at=self._now,
        )

    def _inline(self, value: Any) -> bytes | None:
        """A plain value as it travels in COMPLETED; None where it must stay on the cluster, as a task's would."""
        try:
            result = encode(value)
        except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
            return None
        return result if len(result) <= self._inline_result_bytes else None

    def _mark(self, indices: set[int], **fields: bool) -> None:
        for index in indices:
            node = self._nodes[index]
            self._nodes[index] = msgspec.structs.replace(node, call=msgspec.structs.replace(node.call, **fields))

    def _depth(self, dependencies: Sequence[int]) -> int:
        return 1 + max((self._nodes[index].call.depth for index in dependencies), default=-1)


def collected(value: Any) -> Any:
    """What a flow returned, its handles replaced by results."""
    return value


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, protocol=5)
        self.dependencies: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not Handle:
            return None
        return self.dependencies.setdefault(value.index, len(self.dependencies))


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, results: Sequence[Any]) -> None:
        super().__init__(buffer)
        self._results = results

    def persistent_load(self, place: int) -> Any:
        return self._results[place]


def dump(arguments: Any) -> tuple[bytes, tuple[int, ...]]:
    """Arguments as bytes, and the indices of the calls whose results belong into them, in order of their places."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(arguments)
    return buffer.getvalue(), tuple(pickler.dependencies)


def load(arguments: bytes, results: Sequence[Any]) -> Any:
    """The arguments with ``results`` in the places of the handles. Only for bytes that ``dump`` made in this app."""
    return _Unpickler(io.BytesIO(arguments), results).load()
