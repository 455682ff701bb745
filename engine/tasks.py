"""Tasks: plain functions that become nodes of a graph when called while a flow is wired."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from engine.errors import DeclarationError, WiringError
from engine.handles import Done, Handle, MapHandle, Unmapped, recorder
from engine.retries import Retry
from engine.targets import OnState, read_on_state

P = ParamSpec("P")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A declared task. Called inside a flow it returns a handle and runs nothing; elsewhere it is the function."""

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        retry: Retry | None = None,
        timeout_seconds: float | None = None,
        persist: bool = False,
        on_state: OnState | None = None,
    ) -> None:
        file, line = place_of(function)
        if "<locals>" in function.__qualname__:
            raise DeclarationError(
                file,
                line,
                f"the task {function.__name__} is defined inside a function, where workers cannot find it",
                "Move it to the top of the module.",
            )
        if timeout_seconds is not None and timeout_seconds <= 0:
            raise DeclarationError(file, line, f"timeout_seconds={timeout_seconds} is not positive", "Give seconds.")
        self.function = function
        self.name = name or function.__name__
        if not self.name.replace("_", "").replace(".", "").isalnum():
            raise DeclarationError(file, line, f"{self.name!r} is not a task name", "Use letters, digits, _ and dots.")
        self.retry = retry
        self.timeout_seconds = timeout_seconds
        self.persist = persist
        #: Whom the notifier tells when a run of it gets into a state; of no use anywhere else.
        self.on_state = read_on_state(on_state, file, line)
        self.is_async = inspect.iscoroutinefunction(function)
        self.module = function.__module__
        #: How a worker finds it.
        self.reference = f"{function.__module__}:{function.__qualname__}"
        self.signature = inspect.signature(function)
        self._result_type: Any = None
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Inside a flow: note the call, return a handle (typed as the result it stands for). Elsewhere: run it."""
        active = recorder.get()
        if active is None or not active.takes_calls:
            return self.function(*args, **kwargs)
        self._check(args, kwargs)
        return active.call(self, args, kwargs)  # type: ignore[no-any-return]

    def spawn(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Inside a running task: start this one as a child of the same run, and return its handle at once.

        The handle may be returned unresolved, handed to other children, waited for (``await`` or ``.result()``), or
        dropped: the run ends when all its tasks have. In a flow it is a call; outside any run it runs here and now.
        """
        active = recorder.get()
        self._check(args, kwargs)
        return Done(self.function(*args, **kwargs)) if active is None else active.call(self, args, kwargs)

    def map(self, *columns: Any, **fixed: Any) -> Any:
        """One call for each element; several columns are walked together and must be of one length.

        A column is a sequence (whose elements may be handles), the handle of a result that will be one, or another map:
        then the calls are linked element by element. ``fixed`` arguments, and ``unmapped(x)`` among the columns, are
        the same in every call. Answers a MapHandle. Raises WiringError.
        """
        if not any(not isinstance(column, Unmapped) for column in columns):
            raise WiringError(self.name, "map was given nothing to walk over", "Give at least one sequence or handle.")
        walked = [column if isinstance(column, _UNWALKED) else self._sequence(column) for column in columns]
        lengths = [(f"{column!r:.40}", length) for column in walked if (length := _length_of(column)) is not None]
        if any(length != lengths[0][1] for _, length in lengths):
            told = " and ".join(f"{text} of {length}" for text, length in lengths)
            raise WiringError(self.name, f"map over columns of unequal length: {told}", "Make them equally long.")
        active = recorder.get()
        if active is not None:
            return active.map(self, walked, fixed)
        rows = zip(*(_repeat(c, lengths[0][1]) if isinstance(c, Unmapped) else c for c in walked), strict=True)
        return [self.function(*row, **fixed) for row in rows]

    @property
    def result_type(self) -> Any:
        """What the function says it returns; Any where it says nothing, or nothing that can be resolved."""
        if self._result_type is None:
            try:
                self._result_type = typing.get_type_hints(self.function).get("return", Any)
            except Exception:  # an annotation for readers alone: the value is then plain JSON
                self._result_type = Any
        return self._result_type

    def check(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raises WiringError where the arguments do not fit the signature."""
        self._check(tuple(args), kwargs)

    def _sequence(self, column: Any) -> Sequence[Any]:
        if isinstance(column, Sequence):
            return column
        if not isinstance(column, Iterable):
            kind = type(column).__name__
            raise WiringError(
                self.name, f"map over a value of type {kind}, which has no elements", "Give a sequence, or unmapped(x)."
            )
        return list(column)

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise WiringError(self.name, f"{error}", f"Its signature is {self.name}{self.signature}.") from error

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return resolve, (self.reference,)


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    retry: Retry | None = None,
    timeout_seconds: float | None = None,
    persist: bool = False,
    on_state: OnState | None = None,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | None = None,
    timeout_seconds: float | None = None,
    persist: bool = False,
    on_state: OnState | None = None,
    **unknown: Any,
) -> Any:
    """Declare a task: ``@task`` or ``@task(retry=Retry(attempts=4, wait=exponential(1.0)), timeout_seconds=30)``.

    ``name`` defaults to the function's. ``timeout_seconds`` bounds each attempt. The result of a task with ``persist`` is
    put into the result store (setting ``results``), from where it is taken rather than made again. ``on_state`` is as that of
    ``flow``. Raises DeclarationError.
    """
    refuse_unknown("task", unknown, ("name", "retry", "timeout_seconds", "persist", "on_state"))

    def declare(function: Callable[..., Any]) -> Task[..., Any]:
        return Task(function, name=name, retry=retry, timeout_seconds=timeout_seconds, persist=persist, on_state=on_state)

    return declare if function is None else declare(function)


def refuse_unknown(decorator: str, unknown: dict[str, Any], known: Sequence[str]) -> None:
    """Raises DeclarationError for the first argument of a decorator that does not exist, at the line that gave it."""
    if unknown:
        frame = sys._getframe(2)
        raise DeclarationError(
            frame.f_code.co_filename,
            frame.f_lineno,
            f"{decorator}() has no argument {next(iter(unknown))!r}",
            f"It takes {', '.join(known)}.",
        )


def place_of(function: Callable[..., Any]) -> tuple[str, int]:
    """File and line of a function's declaration."""
    code = inspect.unwrap(function).__code__
    return code.co_filename, code.co_firstlineno


def resolve(reference: str) -> Any:
    """The object a ``module:qualname`` names, importing the module. Raises ImportError or AttributeError."""
    module, _, qualname = reference.partition(":")
    # import_module waits for an import that another thread has under way; sys.modules would give half a module.
    target: Any = importlib.import_module(module)
    for part in qualname.split("."):
        target = getattr(target, part)
    return target


#: Columns of a map that are not walked over here.
_UNWALKED = (Handle, MapHandle, Unmapped)


def _length_of(column: Any) -> int | None:
    """How many calls a column makes; None where it does not say, or not yet."""
    if isinstance(column, MapHandle):
        return column.length
    return None if isinstance(column, Handle | Unmapped) else len(column)


def _repeat(column: Unmapped[Any], length: int) -> list[Any]:
    return [column.value] * length
