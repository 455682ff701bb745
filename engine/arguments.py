"""Arguments: how the arguments of a call become bytes, with places for results that are not there yet; no I/O.

Arguments are pickled once, where the call is made; a handle anywhere inside them (in a list, a dict, a Struct) becomes a
persistent id, which the worker replaces by the result. These bytes go from the engine to its workers alone.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.errors import WiringError
from engine.executor import ITEM, LIST, VALUE, Place
from engine.handles import Handle, MapHandle

#: Larger arguments belong into a task that reads them where it runs.
MAX_ARGUMENT_BYTES = 64 * 1024 * 1024


class ElementOf(msgspec.Struct, frozen=True):
    """Stands, in the arguments of a map, for the element of another map at the same place."""

    handle: MapHandle


class ItemOf(msgspec.Struct, frozen=True):
    """Stands, in the arguments of a map, for the item at the same place of a result that is not there yet."""

    handle: Handle


#: What a persistent id may stand for.
Input = Handle | MapHandle | ElementOf | ItemOf


class Dumped(msgspec.Struct, frozen=True):
    """Arguments as bytes, and what belongs into them, in the order of the persistent ids."""

    data: bytes
    inputs: tuple[Input, ...]


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, task: str, run_id: str) -> None:
        super().__init__(buffer, protocol=5)
        self._task = task
        self._run_id = run_id
        self.places: dict[tuple[type, str], int] = {}
        self.inputs: list[Input] = []

    def persistent_id(self, value: Any) -> int | None:
        kind = type(value)
        if kind is Handle or kind is MapHandle:
            handle = value
        elif kind is ElementOf or kind is ItemOf:
            handle = value.handle
        else:
            return None
        if handle.run_id != self._run_id:
            raise WiringError(
                self._task,
                f"it was given {handle!r}, which belongs to another run ({handle.run_id})",
                "Handles live inside one run; from another one use engine.attach(run_id), or pass the value in an event.",
            )
        place = self.places.setdefault((kind, handle.index), len(self.places))
        if place == len(self.inputs):
            self.inputs.append(value)
        return place


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, values: Sequence[Any]) -> None:
        super().__init__(buffer)
        self._values = values

    def persistent_load(self, place: int) -> Any:
        return self._values[place]


def dump(arguments: Any, task: str, run_id: str) -> Dumped:
    """Arguments of a call of ``task``. Raises WiringError where they do not pickle or hold a foreign handle."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, task, run_id)
    try:
        pickler.dump(arguments)
    except WiringError:
        raise
    except Exception as error:  # whatever user types raise when they are pickled: the flow or task fails with it
        cause = f"an argument cannot travel to a worker: {type(error).__name__}: {error}"
        raise WiringError(task, cause, "Pass plain values, or open it in the task.") from error
    if (size := buffer.tell()) > MAX_ARGUMENT_BYTES:
        cause = f"its arguments take {size:,} bytes, of {MAX_ARGUMENT_BYTES:,} allowed"
        raise WiringError(task, cause, "Pass a reference, or make the data in a task and pass its handle.")
    return Dumped(buffer.getvalue(), tuple(pickler.inputs))


def load(arguments: bytes, values: Sequence[Any]) -> Any:
    """The arguments with ``values`` in their places. Only for bytes that ``dump`` made in this app."""
    return _Unpickler(io.BytesIO(arguments), values).load()


class Wiring:
    """Resolves inputs to dependencies and places, for one call."""

    __slots__ = ("_positions", "dependencies", "places")

    def __init__(self) -> None:
        self.dependencies: list[str] = []
        self.places: list[Place] = []
        self._positions: dict[str, int] = {}

    def take(self, key: str) -> None:
        """The value of one call."""
        self.places.append((VALUE, self._position(key), 0))

    def take_item(self, key: str, item: int) -> None:
        """One item of the value of a call."""
        self.places.append((ITEM, self._position(key), item))

    def take_all(self, keys: Sequence[str]) -> None:
        """The values of all these calls, as a list."""
        start = len(self.dependencies)
        self.dependencies += keys  # not shared with other places: they must stand in a row
        self.places.append((LIST, start, len(self.dependencies)))

    def finish(self) -> tuple[tuple[str, ...], tuple[Place, ...]]:
        """Dependencies, and places where they are not simply one after the other."""
        plain = all(place == (VALUE, number, 0) for number, place in enumerate(self.places))
        return tuple(self.dependencies), () if plain else tuple(self.places)

    def _position(self, key: str) -> int:
        if (known := self._positions.get(key)) is not None:
            return known
        self._positions[key] = position = len(self.dependencies)
        self.dependencies.append(key)
        return position


def child_index(parent: str, attempt: int, number: int, task: str, arguments: bytes) -> str:
    """The index of the ``number``-th task that an attempt of ``parent`` starts.

    A digest of what it is: where a parent is run again after its worker died, what it starts again is found rather than
    run again, but only where it is really the same.
    """
    digest = hashlib.blake2b(arguments, digest_size=8, person=b"engine.child")
    digest.update(f"\0{parent}\0{attempt}\0{number}\0{task}".encode())
    return digest.hexdigest()


def collected(value: Any) -> Any:
    """What a flow or a task returned, its handles replaced by results."""
    return value
