"""The graph of a run: the calls its flow has made so far, and what of it can be submitted; it grows; no I/O.

A map is one entry until it is known how many elements it has; then its elements become nodes, a limited number at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence

import msgspec

from engine.arguments import Dumped, ElementOf, Input, ItemOf, Wiring
from engine.errors import EngineError, TooManyTasks, WiringError
from engine.executor import Call, index_of, key_of
from engine.handles import Handle, MapHandle, element_index
from engine.planning import PlannedCall, PlannedMap
from engine.runs import index_of_task_run, logical, task_run_id_of


class Node(msgspec.Struct, frozen=True):
    """A call that can be submitted, and what the engine alone needs to know of it."""

    call: Call
    task_run_id: str
    #: Task run ids of what it takes; of a map as a whole, the map's.
    parents: tuple[str, ...] = ()


class _Map:
    """A map that has elements, or will have."""

    __slots__ = ("admitted", "is_cancelled", "length", "planned")

    def __init__(self, planned: PlannedMap) -> None:
        self.planned = planned
        self.length: int | None = planned.length if not planned.columns else None
        self.admitted = 0
        self.is_cancelled = False

    @property
    def is_whole(self) -> bool:
        """Whether all its elements are nodes."""
        return self.is_cancelled or self.admitted == self.length


class Graph:
    """Calls by index, and who needs whom."""

    def __init__(self, run_id: str, max_tasks: int, actual: Callable[[str, str], str]) -> None:
        """``actual`` answers the index that the call of a task has on the cluster, given its index in the flow."""
        self.run_id = run_id
        self._actual = actual
        self.nodes: dict[str, Node] = {}
        self.maps: dict[str, _Map] = {}
        self._max_tasks = max_tasks
        #: Calls that need a map whose elements are not all known.
        self._unresolved: dict[str, PlannedCall] = {}
        #: Maps with elements to come, in the order of calls.
        self._growing: dict[str, _Map] = {}
        #: Who takes the value of a call or map; of a map: (index, whether element by element).
        self._takers: dict[str, list[tuple[str, bool]]] = {}
        #: The parents whose value waits for a child's.
        self._tails: dict[str, list[str]] = {}
        self._lengths: dict[str, int] = {}
        #: Calls that will never be nodes. What needs them need not wait for them: it is cancelled, too.
        self._cancelled: set[str] = set()
        #: Maps that cannot be made, and why.
        self.broken: dict[str, EngineError] = {}

    @property
    def is_whole(self) -> bool:
        """Whether all that was planned has become nodes."""
        return not self._unresolved and not self._growing

    @property
    def is_growing(self) -> bool:
        """Whether a map has elements to come."""
        return bool(self._growing)

    def plan_call(self, planned: PlannedCall) -> Node | None:
        """Take a call in; its node, or None while it needs a map whose elements are not all known."""
        index = planned.call.index
        for taken in planned.inputs:
            self._taken(taken, index)
        if all(self._is_known(taken) for taken in planned.inputs):
            return self._resolve(planned)
        self._unresolved[index] = planned
        return None

    def plan_map(self, planned: PlannedMap) -> None:
        """Take a map in; ``admit`` makes its elements."""
        index = planned.call.index
        self.maps[index] = self._growing[index] = _Map(planned)
        if isinstance(planned.rows, Dumped):
            for taken in planned.rows.inputs:
                self._taken(taken, index)
        else:
            for place, row in enumerate(planned.rows):
                for taken in row.inputs:
                    self._taken(taken, index if isinstance(taken, ElementOf) else element_index(index, place))

    def add_child(self, call: Call) -> Node:
        """A task that another one has started."""
        parents: list[str] = []
        for key in call.dependencies:
            task, _, index = key.rsplit("-", 2)
            parents.append(task_run_id_of(self.run_id, task, index))
            self._takers.setdefault(logical(index), []).append((call.index, False))
        node = Node(call, task_run_id_of(self.run_id, call.task, call.index), tuple(parents))
        self.nodes[call.index] = node
        return node

    def add_tail(self, parent: str, children: Sequence[str]) -> None:
        """The value of ``parent`` waits for those of ``children``."""
        for child in children:
            parents = self._tails.setdefault(child, [])
            if parent not in parents:
                parents.append(parent)

    def set_length(self, index: str, length: int | None) -> None:
        """The value of a call has so many elements; None where it has no length at all."""
        if length is not None:
            self._lengths[index] = length
            return
        for map_index, growing in self._growing.items():
            for column in growing.planned.columns:
                if isinstance(column, Handle) and column.index == index:
                    cause = f"map over the result of {column.task} (call {index}), which has no length"
                    self.broken[map_index] = WiringError(growing.planned.call.task, cause, "Return a list from it.")

    def parents(self, inputs: Sequence[Input]) -> tuple[str, ...]:
        """Task run ids of what a call takes; of a map as a whole, the map's."""
        handles = [taken.handle if isinstance(taken, ElementOf | ItemOf) else taken for taken in inputs]
        ids = (self.task_run_id(handle.task, handle.index) for handle in handles if handle.task)
        return tuple(dict.fromkeys(ids))

    def admit(self, count: int) -> list[Node]:
        """The nodes that can be made now, with at most about ``count`` new rows of maps.

        A map whose columns turn out to be of unequal length, or too long, is entered in ``broken``.
        """
        made: list[Node] = []
        for index, growing in list(self._growing.items()):
            if growing.length is None and index not in self.broken:
                self._measure(growing)
            if growing.length is None:
                continue
            upstream = [self.maps[taken.index] for taken in growing.planned.columns if isinstance(taken, MapHandle)]
            end = min([growing.length, *(other.admitted for other in upstream)])
            if not upstream:
                end = min(end, growing.admitted + count)
                count -= end - growing.admitted
            for place in range(growing.admitted, end):
                rows = growing.planned.rows
                if not all(self._is_known(taken) for taken in (rows if isinstance(rows, Dumped) else rows[place]).inputs):
                    break
                made.append(self._element(growing.planned, place))
                growing.admitted = place + 1
            if growing.is_whole:
                del self._growing[index]
        for index, planned in list(self._unresolved.items()):
            if all(self._is_known(taken) for taken in planned.inputs):
                del self._unresolved[index]
                made.append(self._resolve(planned))
        return made

    def cancel(self, index: str) -> PlannedCall | None:
        """A call or map that will have no node, because what it needs has failed; the call, where it is one."""
        if index in self.maps:
            self.maps[index].is_cancelled = True
            self._growing.pop(index, None)
        elif index not in self.nodes:
            self._cancelled.add(index)
        return self._unresolved.pop(index, None)

    def downstream(self, index: str) -> list[str]:
        """Indices of the calls, maps and elements that need the value of ``index``, directly or not."""
        reached: dict[str, None] = {}
        stack = [index]
        while stack:
            current = stack.pop()
            for needed in self._needing(current):
                if needed not in reached:
                    reached[needed] = None
                    stack.append(needed)
            for parent in self._tails.get(current, ()):
                stack.append(parent)
                reached.setdefault(parent, None)
        reached.pop(index, None)
        return list(reached)

    def with_needed(self, indices: Iterable[str], known: Container[str]) -> list[str]:
        """These calls and all that they need, without what is ``known``; what is needed by the last comes first."""
        needed: dict[str, None] = {}
        stack = list(indices)
        while stack:
            index = stack.pop()
            if index not in needed and index not in known and (node := self.nodes.get(index)) is not None:
                needed[index] = None
                stack += [logical(index_of(key)) for key in node.call.dependencies]
        return list(reversed(needed))

    def name_of(self, index: str) -> str:
        """The id of the task run at that index; a map stands as ``run/task/index``."""
        node = self.nodes.get(index)
        task = self.maps[index].planned.call.task if index in self.maps else ""
        return task_run_id_of(self.run_id, task, index) if node is None else node.task_run_id

    def context_of(self, task_run_id: str, default: str) -> str:
        """The span that those of a task run are under."""
        node = self.nodes.get(logical(index_of_task_run(task_run_id)))
        return default if node is None else node.call.traceparent

    def elements(self, index: str) -> Iterator[str]:
        """Indices of the elements of a map that are nodes."""
        return (element_index(index, place) for place in range(self.maps[index].admitted))

    def _needing(self, index: str) -> Iterator[str]:
        for taker, _ in self._takers.get(index, ()):
            yield taker
        base, is_element, place = index.partition(".")
        if is_element:
            for taker, is_elementwise in self._takers.get(base, ()):
                yield element_index(taker, int(place)) if is_elementwise else taker
        elif index in self.maps:
            yield from self.elements(index)

    def _taken(self, taken: Input, by: str) -> None:
        handle = taken.handle if isinstance(taken, ElementOf | ItemOf) else taken
        self._takers.setdefault(handle.index, []).append((by, isinstance(taken, ElementOf)))

    def _is_known(self, taken: Input) -> bool:
        if isinstance(taken, Handle):
            return taken.index in self.nodes or taken.index in self._cancelled
        return not isinstance(taken, MapHandle) or (taken.index in self.maps and self.maps[taken.index].is_whole)

    def _measure(self, growing: _Map) -> None:
        lengths: dict[str, int] = {}
        if growing.planned.length is not None:
            lengths["a sequence"] = growing.planned.length
        for column in growing.planned.columns:
            is_map = isinstance(column, MapHandle)
            length = self.maps[column.index].length if is_map else self._lengths.get(column.index)
            if length is None:
                return
            lengths[f"the result of {column.task} (call {column.index})"] = length
        if len(set(lengths.values())) > 1:
            told = " and ".join(f"{name} of {length}" for name, length in lengths.items())
            cause = f"map over columns of unequal length: {told}"
            call = growing.planned.call
            self.broken[call.index] = WiringError(call.task, cause, "Make them equally long.")
            return
        length = next(iter(lengths.values()))
        if len(self.nodes) + length > self._max_tasks:
            self.broken[growing.planned.call.index] = TooManyTasks(self.run_id, self._max_tasks)
            return
        growing.length = length

    def _element(self, planned: PlannedMap, place: int) -> Node:
        row = planned.rows if isinstance(planned.rows, Dumped) else planned.rows[place]
        index = element_index(planned.call.index, place)
        return self._make(msgspec.structs.replace(planned.call, index=index, map_index=place, arguments=row.data), row.inputs)

    def _resolve(self, planned: PlannedCall) -> Node:
        return self._make(planned.call, planned.inputs)

    def _make(self, call: Call, inputs: Sequence[Input]) -> Node:
        index = call.index
        wiring = Wiring()
        parents: dict[str, None] = {}
        depth = 0
        for taken in inputs:
            handle = taken.handle if isinstance(taken, ElementOf | ItemOf) else taken
            needed = handle.index
            if isinstance(taken, ElementOf):
                needed = element_index(needed, call.map_index or 0)
                wiring.take(self._key(handle.task, needed))
            elif isinstance(taken, ItemOf):
                wiring.take_item(self._key(handle.task, needed), call.map_index or 0)
            elif isinstance(taken, MapHandle):
                wiring.take_all([self._key(handle.task, element) for element in self.elements(needed)])
                needed = element_index(needed, 0)
            else:
                wiring.take(self._key(handle.task, needed))
            if (node := self.nodes.get(needed)) is not None:
                depth = max(depth, node.call.depth + 1)
            if handle.task:
                parents[self.task_run_id(handle.task, handle.index if taken is handle else needed)] = None
        actual = self._actual(call.task, index)
        if inputs or actual != index:
            dependencies, places = wiring.finish()
            call = msgspec.structs.replace(call, index=actual, dependencies=dependencies, places=places, depth=depth)
        node = self.nodes[index] = Node(call, task_run_id_of(self.run_id, call.task, actual), tuple(parents))
        return node

    def _key(self, task: str, index: str) -> str:
        return key_of(task, self.run_id, self._actual(task, index))

    def task_run_id(self, task: str, index: str) -> str:
        """The id of the task run that a call of the flow makes in this attempt."""
        return task_run_id_of(self.run_id, task, self._actual(task, index))
