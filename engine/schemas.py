"""Schemas: whether a value fits a JSON schema as msgspec makes them, and what a text on a command line means there; pure.

Of JSON Schema it knows the words that say what parameters are; others pass. Whether they bind, the engine has the last word.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

#: Deeper values are not looked into: a schema may refer to itself.
_MAX_DEPTH = 64
_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_BOUNDS: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("minimum", operator.ge, "at least"),
    ("maximum", operator.le, "at most"),
    ("exclusiveMinimum", operator.gt, "more than"),
    ("exclusiveMaximum", operator.lt, "less than"),
)


def problem(value: Any, schema: Mapping[str, Any], place: str = "") -> str | None:
    """The first thing that does not fit and where, e.g. ``order.lines[0].count: expected integer``; None where all does."""
    return _Check(schema.get("$defs", {})).look(value, schema, place, 0)


def fields(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The properties of a schema of an object, references resolved; empty where it is none."""
    resolved = _Check(schema.get("$defs", {})).resolve(schema)
    found: dict[str, Mapping[str, Any]] = resolved.get("properties", {})
    return found


def value_of(text: str, name: str, schema: Mapping[str, Any]) -> Any:
    """What a text means as the property ``name`` of an object: itself where only that fits, else the JSON that it is."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return text
    wanted = fields(schema).get(name)
    if wanted is None or isinstance(value, str):
        return value
    check = _Check(schema.get("$defs", {}))
    fits_text = check.look(text, wanted, "", 0) is None
    return text if fits_text and check.look(value, wanted, "", 0) is not None else value


class _Check:
    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions

    def resolve(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        seen = 0
        while isinstance(reference := schema.get("$ref"), str) and seen < _MAX_DEPTH:
            schema = self._definitions.get(reference.removeprefix("#/$defs/"), {})
            seen += 1
        return schema

    def look(self, value: Any, schema: Mapping[str, Any], place: str, depth: int) -> str | None:
        schema = self.resolve(schema)
        if depth > _MAX_DEPTH:
            return None
        if (choices := schema.get("anyOf")) is not None:
            return self._any(value, choices, place, depth)
        kinds = schema.get("type")
        if kinds is not None and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
            expected = kinds if isinstance(kinds, str) else " or ".join(kinds)
            return _at(place, f"expected {expected}, got {_kind(value)}")
        if "enum" in schema and value not in schema["enum"]:
            return _at(place, f"expected one of {_shown(schema['enum'])}")
        if "const" in schema and value != schema["const"]:
            return _at(place, f"expected {_shown(schema['const'])}")
        if isinstance(value, dict):
            return self._object(value, schema, place, depth)
        if isinstance(value, list | tuple):
            return self._array(value, schema, place, depth)
        # Patterns are left to the engine: one that takes for ever to match would hold up whoever asks here.
        return _scalar(value, schema, place)

    def _any(self, value: Any, choices: list[Any], place: str, depth: int) -> str | None:
        found = [self.look(value, choice, place, depth + 1) for choice in choices]
        if None in found:
            return None
        # Of a value or null the value's own problem says more.
        real = [text for text, choice in zip(found, choices, strict=True) if self.resolve(choice).get("type") != "null"]
        return real[0] if len(real) == 1 else _at(place, f"fits none of {len(choices)} types; the first: {found[0]}")

    def _object(self, value: dict[str, Any], schema: Mapping[str, Any], place: str, depth: int) -> str | None:
        known = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                return _at(place, f"the field {name!r} is missing")
        others = schema.get("additionalProperties", True)
        for name, one in value.items():
            inner = f"{place}.{name}" if place else name
            if name in known:
                found = self.look(one, known[name], inner, depth + 1)
            elif others is False:
                found = _at(place, f"there is no field {name!r}; known: {', '.join(known) or 'none'}")
            else:
                found = self.look(one, others, inner, depth + 1) if isinstance(others, dict) else None
            if found is not None:
                return found
        return None

    def _array(self, value: Any, schema: Mapping[str, Any], place: str, depth: int) -> str | None:
        if (text := _length(value, schema, "minItems", "maxItems", "elements")) is not None:
            return _at(place, text)
        first = schema.get("prefixItems", [])
        rest = schema.get("items", {})
        for number, one in enumerate(value):
            wanted = first[number] if number < len(first) else rest
            found = self.look(one, wanted, f"{place}[{number}]", depth + 1) if isinstance(wanted, dict) else None
            if found is not None:
                return found
        return None


def _scalar(value: Any, schema: Mapping[str, Any], place: str) -> str | None:
    if isinstance(value, str):
        if (text := _length(value, schema, "minLength", "maxLength", "characters")) is not None:
            return _at(place, text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        for word, holds, shown in _BOUNDS:
            if word in schema and not holds(value, schema[word]):
                return _at(place, f"expected {shown} {schema[word]}, got {value}")
    return None


def _length(value: Any, schema: Mapping[str, Any], least: str, most: str, what: str) -> str | None:
    if len(value) < schema.get(least, 0):
        return f"expected at least {schema[least]} {what}, got {len(value)}"
    if most in schema and len(value) > schema[most]:
        return f"expected at most {schema[most]} {what}, got {len(value)}"
    return None


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS.get(kind, (object,)))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return next((kind for kind, types in _KINDS.items() if isinstance(value, types)), type(value).__name__)


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:200]


def _at(place: str, text: str) -> str:
    return f"{place}: {text}" if place else text
