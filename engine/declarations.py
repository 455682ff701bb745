"""Declarations: what is said of a flow to those who do not load its handler, as a record on the state topic; pure.

An engine writes one for each of its flows when it starts, and again before retention takes it. The newest counts.
"""

from __future__ import annotations

import inspect
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from engine.errors import EventError
from engine.events import Headers, Reason
from engine.flows import Flow, On

FLOW = "engine.flow"
_TYPE = FLOW.encode()


class Binds(StrEnum):
    """What of an event becomes the parameters."""

    FIELDS = "fields"  #: each field of its data the parameter of that name
    WHOLE = "whole"  #: its data the only parameter
    EVENT = "event"  #: the event itself the only parameter


class Trigger(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which events start the flow."""

    topic: str
    #: Exact, or a prefix where it ends in ``.*``; None accepts every type.
    type: str | None = None
    source: str | None = None
    #: The name of the function that has a say, or its line; None where there is none.
    where: str | None = None
    key: str | None = None

    def concerns(self, topic: str, type: str, source: str) -> bool:
        """Whether an event of this topic, type and source is one that ``where`` is asked about."""
        if topic != self.topic or (self.source is not None and source != self.source):
            return False
        if self.type is None:
            return True
        return type.startswith(self.type[:-1]) if self.type.endswith(".*") else type == self.type


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """How its runs are dealt with."""

    is_async: bool = False
    pack: bool = False
    #: Attempts of the whole flow.
    attempts: int = 1
    max_open_runs: int | None = None
    on_failure: str | None = None


class Declaration(msgspec.Struct, frozen=True, omit_defaults=True):
    """A flow, as its engine has loaded it."""

    name: str
    #: As a person writes it: ``fulfil(order: Order)``.
    signature: str
    at: datetime
    #: JSON schemas of the parameters, an object, and of the data of its events.
    parameters: dict[str, Any]
    data: dict[str, Any]
    triggers: tuple[Trigger, ...] = ()
    binds: Binds = Binds.FIELDS
    options: Options = Options()
    doc: str | None = None
    module: str = ""
    #: Where it stands: file and line.
    file: str = ""
    line: int = 0


def declare(flow: Flow[..., Any], at: datetime) -> Declaration:
    """What is said of a flow."""
    file, line = flow.place
    return Declaration(
        name=flow.name,
        signature=_signature(flow),
        at=at,
        parameters=_schema(flow.parameters_type),
        data=_schema(flow.data_type),
        triggers=tuple(_trigger(trigger) for trigger in flow.triggers),
        binds=Binds.EVENT if flow.takes_event else Binds.WHOLE if flow.takes_whole else Binds.FIELDS,
        options=Options(
            flow.is_async,
            flow.pack,
            1 if flow.retry is None else flow.retry.attempts,
            flow.max_open_runs,
            flow.on_failure,
        ),
        doc="\n".join(line.strip() for line in flow.__doc__.strip().splitlines()) if flow.__doc__ else None,
        module=flow.module,
        file=file,
        line=line,
    )


def write_declaration(app: str, declaration: Declaration) -> tuple[bytes, Headers]:
    """Value and headers of its record, whose key is the name of the flow."""
    at = declaration.at.isoformat().replace("+00:00", "Z").encode()
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{declaration.name}/{declaration.at.timestamp():.6f}".encode()),
        ("ce_source", f"/engine/{app}".encode()),
        ("ce_type", _TYPE),
        ("ce_subject", declaration.name.encode()),
        ("ce_time", at),
        ("content-type", b"application/json"),
    )
    return msgspec.json.encode(declaration), headers


def read_declaration(value: bytes | None) -> Declaration:
    """What a record says. Raises EventError."""
    try:
        return msgspec.json.decode(value or b"", type=Declaration)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventError(Reason.MALFORMED_DATA, f"a record of type {FLOW} cannot be read: {error}") from error


def is_declaration(ce_type: bytes) -> bool:
    """Whether a record of this type declares a flow."""
    return ce_type == _TYPE


def without_schemas(declaration: Declaration) -> Declaration:
    """The same, for a topic that does not take so large a record."""
    return msgspec.structs.replace(declaration, parameters={}, data={}, doc=None)


def _trigger(trigger: On) -> Trigger:
    return Trigger(trigger.topic, trigger.type, trigger.source, _function(trigger.where), _function(trigger.key))


def _function(function: Any) -> str | None:
    """Where a predicate stands: a lambda has no better name than its line."""
    if function is None:
        return None
    code = getattr(function, "__code__", None)
    name = getattr(function, "__name__", type(function).__name__)
    return f"line {code.co_firstlineno}" if name == "<lambda>" and code is not None else str(name)


def _schema(type: Any) -> dict[str, Any]:
    try:
        return msgspec.json.schema(type)
    except TypeError as error:
        # It decodes, but has no schema (a type with rules of its own): then that is what there is to say.
        return {"description": str(error)}


def _signature(flow: Flow[..., Any]) -> str:
    return f"{flow.name}({', '.join(map(_parameter, flow.signature.parameters.values()))})"


def _parameter(parameter: inspect.Parameter) -> str:
    if not isinstance(parameter.annotation, str):
        return str(parameter)
    # Annotations are strings where the module postpones them, and would be shown quoted.
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {parameter.annotation}{default}"
