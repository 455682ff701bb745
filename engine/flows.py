"""Flows: what a handler declares, and how an event's data becomes the parameters of a flow; pure."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import msgspec

from engine.errors import DeclarationError, EventError
from engine.events import Event, RawEvent, Reason, decode_data
from engine.retries import Retry
from engine.states import encode
from engine.targets import OnState, read_on_state
from engine.tasks import place_of, refuse_unknown, resolve

P = ParamSpec("P")
R = TypeVar("R")


class On(msgspec.Struct, frozen=True):
    """Which events start a flow: a trigger as declared by ``on``."""

    topic: str
    #: Exact, or a prefix where it ends in ``.*``; None accepts every type, the empty one of bare records too.
    type: str | None = None
    source: str | None = None
    where: Callable[[Event[Any]], object] | None = None
    key: Callable[[Event[Any]], str] | None = None


def on(
    topic: str,
    *,
    type: str | None = None,
    source: str | None = None,
    where: Callable[[Any], object] | None = None,
    key: Callable[[Any], str] | None = None,
    **unknown: Any,
) -> On:
    """A trigger: events of ``topic`` whose ``type`` (exact, or ``"order.*"``) and ``source`` match, where ``where`` is true.

    ``where`` and ``key`` get the event with its data decoded to the flow's parameters. Runs with the same ``key`` start in
    the order of their events, one after the other; runs without one start at once. Raises DeclarationError.
    """
    refuse_unknown("on", unknown, ("topic", "type", "source", "where", "key"))
    return On(topic, type, source, where, key)


class Flow(Generic[P, R]):
    """A declared flow. Called by hand it runs its function, with tasks as plain functions."""

    def __init__(
        self,
        function: Callable[P, R],
        triggers: tuple[On, ...],
        name: str | None = None,
        *,
        pack: bool = False,
        retry: Retry | None = None,
        on_failure: Literal["dead-letter"] | None = None,
        max_open_runs: int | None = None,
        on_state: OnState | None = None,
    ) -> None:
        self.retry = retry
        #: What becomes of the event of a run that ends FAILED or CRASHED.
        self.on_failure = on_failure
        #: How many of its runs each engine may have begun and not ended; None where only the engine's own limit counts.
        self.max_open_runs = max_open_runs
        self.function = function
        self.triggers = triggers
        self.name = name or function.__name__
        #: Whether a whole run, its tasks included, executes inside one Dask task, many runs to a parcel.
        self.pack = pack
        self.module = function.__module__
        #: How a worker finds it.
        self.reference = f"{function.__module__}:{function.__qualname__}"
        self.is_async = inspect.iscoroutinefunction(function)
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function
        self.place = place_of(function)
        #: Whom the notifier tells when a run gets into a state; of no use anywhere else.
        self.on_state = read_on_state(on_state, *self.place)
        self._check_function()
        self.signature = inspect.signature(function)
        hints = self._hints()
        #: The parameter that takes the event as it is, where there is one.
        self._event_parameter = self._find_event(hints)
        #: Whether the event's data as a whole is the only parameter's value, rather than an object of parameters.
        self._is_whole = len(hints) == 1 and self._event_parameter is None and _is_object(next(iter(hints.values())))
        try:
            #: The parameters as one value: fields named and typed as the function's parameters.
            self.parameters_type: Any = self._parameters_type(hints)
            self._parameters_decoder = msgspec.json.Decoder(self.parameters_type)
            #: What an event's data is decoded to before predicates see it.
            self.data_type: Any = self._data_type(hints)
            msgspec.json.Decoder(self.data_type)
        except TypeError as error:
            self._refuse(f"a parameter cannot be decoded from an event: {error}", "Use types that msgspec knows.")

    @property
    def takes_event(self) -> bool:
        """Whether its only parameter is the event itself."""
        return self._event_parameter is not None

    @property
    def takes_whole(self) -> bool:
        """Whether its only parameter is the event's data as a whole."""
        return self._is_whole

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now: outside the engine a flow is plain Python."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<flow {self.name}>"

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        # By name, as tasks: whom it tells of its states is nobody's business elsewhere.
        return resolve, (self.reference,)

    def read_event(self, event: RawEvent) -> Event[Any]:
        """The event with its data decoded for this flow. Raises EventError."""
        return msgspec.structs.replace(event, data=self._decode(event))

    def _decode(self, event: RawEvent) -> Any:
        if not event.data and not self._is_whole and self._event_parameter is None:
            # No data is an object without fields: enough for a flow whose parameters all have defaults.
            return decode_data(msgspec.structs.replace(event, data=b"{}", datacontenttype=None), self.data_type)
        return decode_data(event, self.data_type)

    def bind(self, event: Event[Any]) -> bytes:
        """The parameters that an event read by ``read_event`` gives, as a JSON object. Raises EventError."""
        try:
            if self._event_parameter is not None:
                return encode({self._event_parameter: event})
            if self._is_whole:
                return encode({self.parameters_type.__struct_fields__[0]: event.data})
            return encode(event.data)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            # Some values can be read and not be written; the record goes to the dead letters.
            raise EventError(Reason.INVALID_PARAMETERS, f"the parameters cannot be encoded: {error}") from error

    def arguments(self, parameters: bytes) -> dict[str, Any]:
        """Keyword arguments from encoded parameters. Raises EventError where they do not fit (the flow has changed)."""
        try:
            values = self._parameters_decoder.decode(parameters)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise EventError(Reason.INVALID_PARAMETERS, str(error)) from error
        return {name: getattr(values, name) for name in values.__struct_fields__}

    def _check_function(self) -> None:
        if "<locals>" in self.function.__qualname__:
            self._refuse(
                f"the flow {self.name} is defined inside a function, where the engine cannot find it",
                "Move it to the top of the module.",
            )
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            self._refuse(f"the flow {self.name} is a generator", "Return what it makes, or hand it to a task.")
        earlier = getattr(self.function, "__globals__", {}).get(self.function.__name__)
        if isinstance(earlier, Flow) and earlier.place != self.place and self.module != "__main__":
            self._refuse(
                f"there is a flow {self.name} already, at {earlier.place[0]}:{earlier.place[1]}", "Rename one of them."
            )

    def _hints(self) -> dict[str, Any]:
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except NameError as error:
            self._refuse(f"an annotation cannot be resolved: {error}", "Define the type above the flow, at module level.")
        found: dict[str, Any] = {}
        for parameter in self.signature.parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                self._refuse(
                    f"the parameter {parameter} cannot be bound from an event", "Give each parameter a name of its own."
                )
            if parameter.name not in hints:
                self._refuse(
                    f"the parameter {parameter.name!r} of the flow {self.name} has no type",
                    f"Annotate it, e.g. {parameter.name}: str.",
                )
            found[parameter.name] = hints[parameter.name]
        return found

    def _find_event(self, hints: dict[str, Any]) -> str | None:
        found = [name for name, hint in hints.items() if (typing.get_origin(hint) or hint) is Event]
        if found and len(hints) > 1:
            self._refuse(
                f"the flow {self.name} takes the whole event and other parameters too",
                "Take either; the event has all.",
            )
        return found[0] if found else None

    def _parameters_type(self, hints: dict[str, Any]) -> Any:
        fields: list[Any] = []
        for name, hint in hints.items():
            default = self.signature.parameters[name].default
            if default is inspect.Parameter.empty:
                fields.append((name, hint))
            elif isinstance(default, list | dict | set):
                fields.append((name, hint, msgspec.field(default_factory=default.copy)))
            else:
                fields.append((name, hint, default))
        return msgspec.defstruct("Parameters", fields, kw_only=True, module=self.module, frozen=True)

    def _data_type(self, hints: dict[str, Any]) -> Any:
        if self._event_parameter is not None:
            return (typing.get_args(hints[self._event_parameter]) or (Any,))[0]
        if self._is_whole:
            return next(iter(hints.values()))
        return self.parameters_type

    def _refuse(self, cause: str, remedy: str) -> typing.NoReturn:
        raise DeclarationError(*self.place, cause, remedy)


def flow(
    *triggers: On,
    name: str | None = None,
    pack: bool = False,
    retry: Retry | None = None,
    on_failure: Literal["dead-letter"] | None = None,
    max_open_runs: int | None = None,
    on_state: OnState | None = None,
    **unknown: Any,
) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Declare a flow: ``@flow(on("orders", type="order.created"))``. Several triggers may start it.

    With ``pack`` a whole run executes inside one Dask task, many runs to a parcel: for small, frequent events. With ``retry``
    a run that fails is gone through again, where what has completed keeps its result. With ``on_failure="dead-letter"`` the
    event of a run that ends FAILED or CRASHED becomes a dead letter, to be replayed. Of its runs each engine has at most
    ``max_open_runs`` under way, not counting those that sleep or await an event; the others wait, and no other flow with them.
    ``on_state={State.FAILED: notify(env="SLACK_URL")}`` has `engine notify` tell somebody when a run gets into a state: a value
    is ``notify(…)``, ``webhook(…)``, a function that takes the StateChange, or a list of them.

    Parameters are bound by name and type: one Struct takes the event's data whole, ``Event[T]`` the event itself,
    anything else one field of the data each. Raises DeclarationError.
    """
    refuse_unknown("flow", unknown, ("triggers", "name", "pack", "retry", "on_failure", "max_open_runs", "on_state"))

    def declare(function: Callable[P, R]) -> Flow[P, R]:
        for trigger in triggers:
            if not isinstance(trigger, On):
                raise DeclarationError(*place_of(function), f"{trigger!r} is not a trigger", "Write @flow(on(topic)).")
        if on_failure not in (None, "dead-letter"):
            raise DeclarationError(*place_of(function), f"on_failure={on_failure!r} is unknown", 'It may be "dead-letter".')
        if max_open_runs is not None and (type(max_open_runs) is not int or max_open_runs < 1):
            raise DeclarationError(
                *place_of(function),
                f"max_open_runs is {max_open_runs!r}",
                "Give a whole number of runs, at least 1, or leave it out.",
            )
        return Flow(
            function,
            triggers,
            name,
            pack=pack,
            retry=retry,
            on_failure=on_failure,
            max_open_runs=max_open_runs,
            on_state=on_state,
        )

    return declare


def _is_object(hint: Any) -> bool:
    """Whether a type is an object with named fields, so that one parameter of it takes the data whole."""
    kind = typing.get_origin(hint) or hint
    if isinstance(hint, types.UnionType) or kind is typing.Union:
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        return bool(members) and all(_is_object(member) for member in members)
    return isinstance(kind, type) and (
        issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind) or typing.is_typeddict(kind)
    )
