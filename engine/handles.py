"""Handles: what stands for a result that is not there yet, and who takes down the calls that make it; no I/O."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from engine.errors import WiringError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Callee(Protocol):
    """What a recorder needs to know of the task that is called."""

    @property
    def name(self) -> str:
        """Its name, part of its keys and ids."""
        ...

    @property
    def reference(self) -> str:
        """How a worker finds it: ``module:qualname``."""
        ...

    @property
    def function(self) -> Callable[..., Any]:
        """The plain function."""
        ...


class Recorder(Protocol):
    """Takes down the calls made while a flow is wired or a task runs."""

    #: Whether a task that is simply called is taken down (in a flow) or runs as the plain function (in a task).
    takes_calls: bool

    def call(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note one call; answers its handle."""
        ...

    def map(self, task: Any, columns: Sequence[Any], fixed: dict[str, Any]) -> Any:
        """Note a call for each row of ``columns``; answers what stands for all their results."""
        ...

    def wait(self, handle: Any) -> Awaitable[Any]:
        """What ``await handle`` waits for."""
        ...

    def result(self, handle: Any) -> Any:
        """What ``handle.result()`` answers."""
        ...


#: The recorder of the flow that is being wired, or of the task that runs, in this context; None everywhere else.
recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


class Handle:
    """Stands for the result of one call. Hand it to other tasks, return it, or ``await`` it where that is possible."""

    __slots__ = ("index", "run_id", "task")

    def __init__(self, task: str, index: str, run_id: str) -> None:
        self.task = task
        self.index = index
        self.run_id = run_id

    def __repr__(self) -> str:
        return f"<handle of {self.task}, call {self.index}>"

    def __await__(self) -> Generator[Any, None, Any]:
        """The value, in an ``async`` flow or task. Raises TaskFailed or TaskCrashed."""
        return _recorder_of(self).wait(self).__await__()

    def result(self) -> Any:
        """The value, inside a plain task, which gives its place on the worker up while it waits.

        Raises TaskFailed or TaskCrashed.
        """
        return _recorder_of(self).result(self)

    def _no_value(self, *_: object) -> NoReturn:
        raise WiringError(
            self.task,
            "its result was looked at, but a handle has no value yet",
            "Hand the handle to another task and look at the value there, or await it in an async flow.",
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy, pickle and inspect ask of every object
            raise AttributeError(name)
        return self._no_value()

    __bool__ = __iter__ = __len__ = __getitem__ = __int__ = __float__ = __call__ = _no_value
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __sub__ = __mul__ = __truediv__ = _no_value


class MapHandle:
    """Stands for the results of a map, in order. Where the length is known it is a sequence of handles."""

    __slots__ = ("index", "length", "run_id", "task")

    def __init__(self, task: str, index: str, run_id: str, length: int | None) -> None:
        self.task = task
        self.index = index
        self.run_id = run_id
        #: None where it is that of a result that is not there yet.
        self.length = length

    def __repr__(self) -> str:
        return f"<handles of {self.task}, map {self.index}, length {'unknown' if self.length is None else self.length}>"

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """All values. Raises TaskFailed or TaskCrashed for the first element that has none."""
        return _recorder_of(self).wait(self).__await__()

    def result(self) -> list[Any]:
        """All values, inside a plain task."""
        values: list[Any] = _recorder_of(self).result(self)
        return values

    def __len__(self) -> int:
        return self._known_length()

    def __bool__(self) -> bool:
        return self._known_length() > 0

    def __iter__(self) -> Iterator[Handle]:
        return (self.element(place) for place in range(self._known_length()))

    def __getitem__(self, place: int) -> Handle:
        length = self._known_length()
        return self.element(range(length)[place])

    def element(self, place: int) -> Handle:
        """The handle of one element."""
        return Handle(self.task, element_index(self.index, place), self.run_id)

    def _known_length(self) -> int:
        if self.length is None:
            raise WiringError(
                self.task,
                f"the length of {self!r} was asked for, but it is that of a result that is not there yet",
                "Map over it again or hand it to a task as a whole; in an async flow, await it.",
            )
        return self.length


class Unmapped(Generic[T]):
    """An argument of a map that is the same in every call."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


def unmapped(value: T) -> Unmapped[T]:
    """Keep ``value``, although a sequence or a handle, whole in every call of a map: ``f.map(xs, unmapped(table))``."""
    return Unmapped(value)


class Done(Generic[T]):
    """The handle of a call made outside any run, where tasks are plain functions: it has its value already."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def result(self) -> T:
        """The value."""
        return self._value

    def __await__(self) -> Generator[Any, None, T]:
        return self._value
        yield  # makes it a generator, as await needs one


def element_index(map_index: str, place: int) -> str:
    """The index of an element of a map: the map's own place in the order of calls, and the element's in the map."""
    return f"{map_index}.{place}"


def _recorder_of(handle: Handle | MapHandle) -> Recorder:
    active = recorder.get()
    if active is None:
        raise WiringError(
            handle.task,
            f"{handle!r} was waited for outside of any run",
            "Wait for handles inside the flow or task that made them; from elsewhere use engine.attach(run_id).",
        )
    return active
