"""The OpenAPI document of the HTTP API, made from its endpoints and their types; pure."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from engine.api_items import ErrorItem

_REFERENCE = "#/components/schemas/{name}"
_VARIABLE = re.compile(r"\{(\w+)\}")


class Endpoint(msgspec.Struct, frozen=True):
    """One method of one path: ``answers`` gets the parameters of the path, the query and the body, in this order."""

    method: str
    #: Below the root of the API, e.g. ``/runs/{run_id}``.
    path: str
    summary: str
    answers: Callable[..., Awaitable[Any]]
    #: What ``answers`` gives.
    gives: Any
    query: Any = None
    body: Any = None
    status: int = 200
    #: Statuses of errors that belong to it, beside those of all.
    errors: tuple[int, ...] = ()


def document(endpoints: Sequence[Endpoint], root: str) -> dict[str, Any]:
    """An OpenAPI 3.1 document, whose paths begin with ``root``."""
    types = [ErrorItem, *(one.gives for one in endpoints), *(one.body for one in endpoints if one.body is not None)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    known = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kafka-dask-engine",
            "version": "1",
            "description": "Runs, flows, events and dead letters of an engine. What changes something is a record on a topic.",
        },
        "servers": [{"url": root}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # Where the engine listens on loopback alone it asks for none.
        "security": [{"token": []}, {}],
    }


def _operation(one: Endpoint, known: dict[int, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _VARIABLE.findall(one.path)
    ]
    if one.query is not None:
        parameters += _query_parameters(one.query)
    errors = sorted({400, 401, 403, 404, 503, *one.errors, *((408, 413, 415) if one.body is not None else ())})
    made: dict[str, Any] = {
        "operationId": f"{one.method.lower()}_{re.sub(r'[^a-z]+', '_', one.path.lower()).strip('_')}",
        "summary": one.summary,
        "parameters": parameters,
        "responses": {
            str(one.status): {"description": "Done.", "content": _content(known[id(one.gives)])},
            **{str(status): {"description": "Not done.", "content": _content(known[id(ErrorItem)])} for status in errors},
        },
    }
    if one.body is not None:
        made["requestBody"] = {"required": True, "content": _content(known[id(one.body)])}
    return made


def _query_parameters(kind: Any) -> list[dict[str, Any]]:
    _, components = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    properties = components[kind.__name__].get("properties", {})
    return [{"name": name, "in": "query", "schema": _inlined(schema, components)} for name, schema in properties.items()]


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    """Types of queries are small: they stand where they are used."""
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str):
            return _inlined(components[reference.rpartition("/")[2]], components)
        return {name: _inlined(value, components) for name, value in schema.items()}
    return [_inlined(one, components) for one in schema] if isinstance(schema, list) else schema


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
