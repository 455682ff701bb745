"""Handles of calls that ran where they were made: how their values get into the arguments of other calls; no I/O.

The unpacked lane pickles all arguments and finds handles on the way. Here most arguments are looked at directly; pickling is
left for containers of other kinds.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import io
import operator
import pickle
import types
import uuid
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import msgspec

from engine.errors import TaskFailed, WiringError
from engine.handles import Handle
from engine.states import Failure, State


class Absent:
    """Stands in a handle for the value that is not there: the call FAILED, was CANCELLED, waits for another try, or runs."""

    __slots__ = ("failure", "is_told", "raised", "root", "running", "state")

    def __init__(self, state: State, failure: Failure | None = None, root: Absent | None = None) -> None:
        self.state = state
        self.failure = failure
        #: Of a cancelled call: the failure that it was cancelled for.
        self.root = self if root is None else root
        #: Ends when a call that is RUNNING has.
        self.running: Awaitable[None] | None = None
        #: Whether an async flow was told of the failure: then it is for the flow to deal with.
        self.is_told = False
        #: What the flow was told.
        self.raised: TaskFailed | None = None

    def error(self) -> BaseException:
        """What is raised where the value is asked for."""
        root = self.root
        if root.failure is None:
            return Suspended()
        root.is_told = True
        if root.raised is None:
            root.raised = TaskFailed(root.failure.type, root.failure.message, root.failure.traceback)
        return root.raised


class Suspended(BaseException):
    """Ends a flow that asks for a value which only a later try of the run will have; no user code should catch it."""


class Unavailable(Exception):  # a signal between rooms, which no user ever sees
    """A value that an argument needs is not there."""

    def __init__(self, absent: Absent) -> None:
        super().__init__(absent)
        self.absent = absent


class PackedHandle(Handle):
    """A handle that carries its value. To a flow it looks like any other: the value comes out by ``await`` alone."""

    __slots__ = ("_value",)

    def __init__(self, task: str, index: str, value: Any) -> None:
        self.task = task
        self.index = index
        self._value = value

    def __await__(self) -> Generator[Any, None, Any]:
        """The value, in an ``async`` flow. Raises TaskFailed."""
        while self._value.__class__ is Absent and self._value.running is not None:
            yield from self._value.running.__await__()
        return value_of(self)

    def result(self) -> Any:
        """The value, in a task that has spawned the call. Raises TaskFailed, and WiringError for one that still runs."""
        if self._value.__class__ is Absent and self._value.running is not None:
            raise WiringError(self.task, f"{self!r} still runs on this thread's event loop", "Await it in an async task.")
        return value_of(self)


class PackedMap(list[Any]):
    """The handles of a map whose length the flow knew."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """All values. Raises TaskFailed."""
        values = []
        for handle in self:
            values.append((yield from handle.__await__()))
        return values

    def result(self) -> list[Any]:
        """All values, in a task that has spawned the calls. Raises TaskFailed."""
        return [handle.result() for handle in self]


class PackedRows(PackedHandle):
    """The handle of a map over a result: its value is the list of its elements' handles."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, Any]:
        """All values. Raises TaskFailed."""
        handles = yield from super().__await__()
        return (yield from handles.__await__())

    def result(self) -> Any:
        """All values, in a task that has spawned the calls. Raises TaskFailed."""
        return super().result().result()


def value_of(handle: PackedHandle) -> Any:
    """The value as it is. Raises TaskFailed where the call failed, Suspended where it waits for another try."""
    if handle._value.__class__ is Absent:
        raise handle._value.error()
    return handle._value


def filled(value: Any) -> Any:
    """``value`` with the values of handles in their places; itself where there are none.

    Raises Unavailable, and WiringError for what only pickling could look into and cannot be pickled.
    """
    kind = value.__class__
    if kind is PackedHandle:
        found = value._value
        if found.__class__ is Absent:
            raise Unavailable(found)
        return found
    if (fill := _FILLS.get(kind)) is not None:
        return fill(value)
    return _fill_of(kind)(value)


def filled_all(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``filled`` for positional arguments, most of which are plain."""
    return tuple([value if value.__class__ in _PLAIN else filled(value) for value in args])


def _fill_nothing(value: Any) -> Any:
    return value


def _fill_rows(value: PackedRows) -> Any:
    if value._value.__class__ is Absent:
        raise Unavailable(value._value)
    return filled(value._value)


def _fill_list(value: list[Any]) -> list[Any]:
    items = [item if item.__class__ in _PLAIN else filled(item) for item in value]
    return value if all(map(operator.is_, items, value)) else items


def _fill_map(value: PackedMap) -> list[Any]:
    return list(map(filled, value))


def _fill_tuple(value: tuple[Any, ...]) -> tuple[Any, ...]:
    items = filled_all(value)
    return value if all(map(operator.is_, items, value)) else items


def _fill_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    items = {filled(key): item if item.__class__ in _PLAIN else filled(item) for key, item in value.items()}
    same = all(map(operator.is_, items.values(), value.values())) and all(map(operator.is_, items, value))
    return value if same else items


def _fill_by_fields(fields: tuple[str, ...]) -> Callable[[Any], Any]:
    """For objects whose parts are their fields: looked at one by one, made anew by pickling where one is a handle."""

    def fill(value: Any) -> Any:
        for name in fields:
            part = getattr(value, name, None)
            if part.__class__ not in _PLAIN and filled(part) is not part:
                return _fill_by_pickling(value)
        return value

    return fill


def _fill_of(kind: type) -> Callable[[Any], Any]:
    """How values of a type are filled, found out once for each."""
    fill: Callable[[Any], Any]
    if issubclass(kind, msgspec.Struct):
        fill = _fill_by_fields(kind.__struct_fields__)
    elif dataclasses.is_dataclass(kind):
        fill = _fill_by_fields(tuple(field.name for field in dataclasses.fields(kind)))
    elif issubclass(kind, enum.Enum | BaseException | type):
        fill = _fill_nothing
    else:
        fill = _fill_by_pickling
    _FILLS[kind] = fill
    return fill


def _fill_by_pickling(value: Any) -> Any:
    found: list[Any] = []
    buffers: list[pickle.PickleBuffer] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> int | None:
            if part.__class__ not in _HANDLES:
                return None
            found.append(part)
            return len(found) - 1

    buffer = io.BytesIO()
    try:
        # Large buffers (arrays, frames) hold no handles and are not copied.
        Pickler(buffer, protocol=5, buffer_callback=buffers.append).dump(value)
    except Exception as error:  # whatever user types raise when they are pickled: the flow fails with it, as unpacked
        kind = value.__class__.__qualname__
        raise WiringError(
            kind, f"an argument cannot be pickled: {error}", "Pass plain values, or open it in the task."
        ) from error
    if not found:
        return value

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, place: int) -> Any:
            return filled(found[place])

    return Unpickler(io.BytesIO(buffer.getvalue()), buffers=buffers).load()


_HANDLES = (PackedHandle, PackedRows, PackedMap)
_PLAIN = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, range, slice, type),
        *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
        *(decimal.Decimal, uuid.UUID, msgspec.Raw),
    }
)
_FILLS: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys(_PLAIN, _fill_nothing),
    list: _fill_list,
    tuple: _fill_tuple,
    dict: _fill_dict,
    PackedMap: _fill_map,
    PackedRows: _fill_rows,
}
