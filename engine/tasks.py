"""Tasks: plain functions that become nodes of a graph when called while a flow is wired."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, overload

from engine.errors import DeclarationError, WiringError
from engine.retries import Retry

P = ParamSpec("P")
R = TypeVar("R")


class Handle:
    """Stands for the result of a task call inside a flow; it has no value while the graph is wired."""

    __slots__ = ("index", "task")

    def __init__(self, task: str, index: int) -> None:
        self.task = task
        self.index = index

    def __repr__(self) -> str:
        return f"<handle of {self.task}, call {self.index}>"

    def _no_value(self, *_: object) -> NoReturn:
        raise WiringError(
            self.task,
            "its result was looked at inside the flow, but a flow only wires the graph",
            "Hand the handle to another task and look at the value there.",
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy, pickle and inspect ask of every object
            raise AttributeError(name)
        return self._no_value()

    __bool__ = __iter__ = __len__ = __getitem__ = __int__ = __float__ = __call__ = _no_value
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __sub__ = __mul__ = __truediv__ = _no_value


class Recorder(Protocol):
    """Takes down the calls made while a flow is wired (engine.graph has it)."""

    def call(self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], map_index: int | None) -> Handle:
        """Note one call."""
        ...


#: The recorder of the flow that is being wired in this context; None everywhere else, workers included.
recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


class Task(Generic[P, R]):
    """A declared task. Called inside a flow it returns a handle and runs nothing; elsewhere it is the function."""

    def __init__(
        self, function: Callable[P, R], *, name: str | None, retry: Retry | None, timeout_seconds: float | None
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
        self.is_async = inspect.iscoroutinefunction(function)
        self.module = function.__module__
        #: How a worker finds it.
        self.reference = f"{function.__module__}:{function.__qualname__}"
        self.signature = inspect.signature(function)
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Inside a flow: note the call, return a handle (typed as the result it stands for). Elsewhere: run it."""
        active = recorder.get()
        if active is None:
            return self.function(*args, **kwargs)
        self._check(args, kwargs)
        return active.call(self, args, kwargs, None)  # type: ignore[return-value]

    def map(self, *iterables: Iterable[Any], **fixed: Any) -> list[R]:
        """One call for each element; several iterables are walked together and must be of one length.

        ``fixed`` arguments are the same in every call. Elements may be handles. Raises WiringError.
        """
        if not iterables:
            raise WiringError(self.name, "map was given nothing to walk over", "Give at least one sequence.")
        columns: list[Sequence[Any]] = []
        for iterable in iterables:
            if isinstance(iterable, Handle):
                raise WiringError(
                    self.name,
                    f"map over {iterable!r}: how long that result will be is not known while the flow is wired",
                    "Map over a sequence that the flow has, or take the whole result as one argument.",
                )
            columns.append(iterable if isinstance(iterable, Sequence) else list(iterable))
        lengths = [len(column) for column in columns]
        if len(set(lengths)) > 1:
            raise WiringError(self.name, f"map over sequences of unequal length {lengths}", "Make them equally long.")
        active = recorder.get()
        results: list[Any] = []
        for map_index, args in enumerate(zip(*columns, strict=True)):
            if active is None:
                results.append(self.function(*args, **fixed))
                continue
            if map_index == 0:  # all calls have one shape: looking at the first is enough
                self._check(args, fixed)
            results.append(active.call(self, args, fixed, map_index))
        return results

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
    *, name: str | None = None, retry: Retry | None = None, timeout_seconds: float | None = None
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | None = None,
    timeout_seconds: float | None = None,
    **unknown: Any,
) -> Any:
    """Declare a task: ``@task`` or ``@task(retry=Retry(attempts=4, wait=exponential(1.0)), timeout_seconds=30)``.

    ``name`` defaults to the function's. ``timeout_seconds`` bounds each attempt. Raises DeclarationError.
    """
    refuse_unknown("task", unknown, ("name", "retry", "timeout_seconds"))

    def declare(function: Callable[..., Any]) -> Task[..., Any]:
        return Task(function, name=name, retry=retry, timeout_seconds=timeout_seconds)

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
