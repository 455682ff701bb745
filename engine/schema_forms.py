"""Forms made from the JSON schema of a flow's parameters, and the parameters that a filled one means; pure.

Fields of objects inside objects are fields of the form, too; lists, unions and what is too deep are written as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.command_errors import ParametersError

#: Before each name of a field of the form, so that none collides with what else the form sends.
PREFIX = "p:"
_MAX_DEPTH = 4
_MAX_FIELDS = 80
_KINDS = {"string": "text", "integer": "number", "number": "number", "boolean": "boolean"}

Schema = Mapping[str, Any]


class Field(msgspec.Struct, frozen=True):
    """One input of a form."""

    #: Names from the outermost parameter inwards.
    path: tuple[str, ...]
    #: text, number, boolean, choice or json.
    kind: str
    is_required: bool
    #: What it holds at first.
    value: str = ""
    choices: tuple[str, ...] = ()
    #: What belongs there, for a person.
    about: str = ""

    @property
    def name(self) -> str:
        """Of the input: the path as a JSON pointer has it."""
        return PREFIX + "/".join(part.replace("~", "~0").replace("/", "~1") for part in self.path)

    @property
    def label(self) -> str:
        """For a person."""
        return ".".join(self.path) or "parameters"


def fields_of(schema: Schema) -> list[Field]:
    """The fields of a form for an object; one for all of it, as JSON, where the schema does not say what is in it."""
    found: list[Field] = []
    _Walk(schema.get("$defs", {}), found).object(schema, (), 0)
    if not found and not _resolve(schema, schema.get("$defs", {})).get("properties"):
        kind = _resolve(schema, schema.get("$defs", {})).get("type")
        return [] if kind == "object" and "properties" in _resolve(schema, {}) else [Field((), "json", False, "{}")]
    return found


def parameters_of(flow: str, fields: Sequence[Field], given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What a filled form means; what is empty and need not be there is left out. Raises ParametersError."""
    made: dict[str, Any] = {}
    for field in fields:
        text = "".join(given.get(field.name, [""])[:1])
        if not text and (not field.is_required or field.name not in given):
            continue
        value = _value(flow, field, text)
        if not field.path:
            if not isinstance(value, dict):
                raise ParametersError(flow, "expected an object in JSON", 'Write {"name": value, …}.')
            return value
        place = made
        for part in field.path[:-1]:
            place = place.setdefault(part, {})
        place[field.path[-1]] = value
    return made


class _Walk:
    def __init__(self, definitions: Mapping[str, Schema], found: list[Field]) -> None:
        self._definitions, self._found = definitions, found

    def object(self, schema: Schema, path: tuple[str, ...], depth: int) -> None:
        resolved = _resolve(schema, self._definitions)
        required = set(resolved.get("required", ()))
        for name, inner in resolved.get("properties", {}).items():
            self._property((*path, name), inner, name in required, depth)

    def _property(self, path: tuple[str, ...], schema: Schema, is_required: bool, depth: int) -> None:
        if len(self._found) >= _MAX_FIELDS:
            return
        resolved, may_be_null = self._plain(schema)
        value = _default(schema) or _default(resolved)
        about = str(resolved.get("description", ""))[:200]
        if "enum" in resolved:
            choices = tuple(one if isinstance(one, str) else _json(one) for one in resolved["enum"])
            self._found.append(Field(path, "choice", is_required and not may_be_null, value, choices, about))
            return
        kind = _KINDS.get(str(resolved.get("type")))
        if kind is not None:
            about = about or _bounds(resolved)
            self._found.append(Field(path, kind, is_required and not may_be_null, value, (), about))
            return
        is_object = bool(resolved.get("properties"))
        if is_object and is_required and not may_be_null and depth < _MAX_DEPTH:
            self.object(resolved, path, depth + 1)
            return
        shape = "[…]" if resolved.get("type") == "array" else "{…}" if resolved.get("type") == "object" else "any JSON"
        self._found.append(Field(path, "json", is_required and not may_be_null, value, (), about or f"JSON: {shape}"))

    def _plain(self, schema: Schema) -> tuple[Schema, bool]:
        """A schema without references, and without null beside one other."""
        resolved = _resolve(schema, self._definitions)
        choices = [_resolve(one, self._definitions) for one in resolved.get("anyOf", ())]
        real = [one for one in choices if one.get("type") != "null"]
        if len(real) == 1 and len(choices) == 2:
            return real[0], True
        return resolved, False


def _value(flow: str, field: Field, text: str) -> Any:
    if field.kind == "text":
        return text
    if field.kind == "choice":
        # Values that are no text stand there as JSON.
        try:
            found = msgspec.json.decode(text)
        except msgspec.MsgspecError:
            return text
        return text if isinstance(found, str) else found
    if field.kind == "boolean" and text in ("true", "false"):
        return text == "true"
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ParametersError(flow, f"{field.label} is no JSON: {error}", "Correct the field.") from error
    if field.kind == "number" and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ParametersError(flow, f"{field.label} is no number", "Correct the field.")
    return value


def _resolve(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    seen = 0
    while isinstance(reference := schema.get("$ref"), str) and seen < _MAX_FIELDS:
        schema = definitions.get(reference.removeprefix("#/$defs/"), {})
        seen += 1
    return schema


def _default(schema: Schema) -> str:
    value = schema.get("default")
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _bounds(schema: Schema) -> str:
    words = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    found = [f"{sign} {schema[word]}" for word, sign in words if word in schema]
    return ", ".join([*found, *([str(schema["format"])] if "format" in schema else [])])


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
