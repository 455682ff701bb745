"""Starts: runs that nobody's event makes but a person, from parameters that fit the declaration of their flow; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from engine.command_errors import ParametersError
from engine.declarations import Binds, Declaration
from engine.runs import digest
from engine.schemas import fields, problem
from engine.states import State, StateChange, utc

#: Parameters are parsed by whoever asks, so the text of a mistake is all that is kept of it.
_MAX_CAUSE = 500


def parameters_of(
    declaration: Declaration, parameters: Mapping[str, Any], data: Any, request_id: str, source: str
) -> dict[str, Any]:
    """The parameters of a start: those given by name, and the rest from ``data`` (or UNSET), as an event would bring it.

    Raises ParametersError, which names the field, where they do not fit.
    """
    made = dict(parameters) if data is msgspec.UNSET else {**_bound(declaration, data, request_id, source), **parameters}
    known = fields(declaration.parameters)
    remedy = f"It is {declaration.signature}; `engine flows show {declaration.name}` has the schema."
    cause = problem(made, declaration.parameters)
    if known and (unknown := [name for name in made if name not in known]):
        cause = f"there is no parameter {unknown[0][:100]!r}; known: {', '.join(known)}"
    if cause is not None:
        raise ParametersError(declaration.name, cause[:_MAX_CAUSE], remedy)
    return made


def start(app: str, flow: str, parameters: Mapping[str, Any], key: str | None, request_id: str, now: float) -> StateChange:
    """The SCHEDULED of a run without an event. The same request makes the same run, however often it is sent."""
    return StateChange(
        # No event has an empty source, so no event's run has this id.
        run_id=digest(app, flow, "", request_id),
        flow=flow,
        state=State.SCHEDULED,
        seq=0,
        epoch=0,
        attempt=0,
        at=utc(now),
        parameters=msgspec.Raw(msgspec.json.encode(parameters)),
        key=key,
    )


def _bound(declaration: Declaration, data: Any, request_id: str, source: str) -> dict[str, Any]:
    names = list(fields(declaration.parameters))
    if declaration.binds is Binds.WHOLE and names:
        return {names[0]: data}
    if declaration.binds is Binds.EVENT and names:
        return {names[0]: {"id": request_id, "source": source, "data": data}}
    if isinstance(data, dict):
        return data
    remedy = f"Give an object with the fields of {declaration.signature}."
    raise ParametersError(declaration.name, "the data is no object", remedy)
