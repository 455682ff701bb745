"""``engine flows ls`` and ``show``: what the handlers declare; needs neither Kafka nor Dask."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.cli_flags import HandlersFlag, JsonFlag, settings_of
from engine.cli_output import json_text, put, say
from engine.command_errors import NotFound
from engine.flows import Flow, On
from engine.loader import load
from engine.terminal import printable


def ls(handlers: HandlersFlag = None, *, json: JsonFlag = False) -> None:
    """List the flows that the handlers declare: signature, triggers and where each stands."""
    flows = load(settings_of(handlers=handlers).handlers)
    if json:
        for flow in flows.values():
            put(json_text(_description(flow)))
        return
    if not flows:
        say("no flows: name the handlers, e.g. engine flows ls handlers/flights.py, or set ENGINE_HANDLERS")
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("flow", "started by", "where"):
        table.add_column(column, overflow="fold")
    for flow in flows.values():
        table.add_row(
            Text(_signature(flow), "bold"),
            Text("\n".join(_trigger(trigger) for trigger in flow.triggers) or "nothing", "cyan"),
            Text(_place(flow), "dim"),
        )
    Console(highlight=False).print(table)


def show(
    name: Annotated[str, Parameter(help="Name of the flow.")],
    handlers: HandlersFlag = None,
    *,
    json: JsonFlag = False,
) -> None:
    """Show one flow: signature, triggers, place, and the JSON schema of its parameters."""
    flows = load(settings_of(handlers=handlers).handlers)
    flow = flows.get(name)
    if flow is None:
        known = f"Known: {', '.join(sorted(flows))}." if flows else "No handlers are loaded: name them, or set ENGINE_HANDLERS."
        raise NotFound("flow", name, known)
    data = _schema(flow.data_type)
    if json:
        put(json_text(_description(flow) | {"parameters": _schema(flow.parameters_type), "data": data}))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(_signature(flow), "bold"))
    if flow.__doc__:
        console.print(Text("\n".join(printable(line.strip()) for line in flow.__doc__.strip().splitlines()), "dim"))
    for trigger in flow.triggers:
        console.print(Text.assemble("started by  ", (_trigger(trigger), "cyan")))
    console.print(Text.assemble("declared    ", _place(flow)))
    console.print(Text("the data of its events, as JSON schema:"))
    console.print(Text(msgspec.json.format(msgspec.json.encode(data)).decode()))


def _description(flow: Flow[..., Any]) -> dict[str, Any]:
    file, line = flow.place
    return {
        "flow": flow.name,
        "signature": _signature(flow),
        "triggers": [_described(trigger) for trigger in flow.triggers],
        "file": file,
        "line": line,
    }


def _described(trigger: On) -> dict[str, str]:
    parts = {
        "topic": trigger.topic,
        "type": trigger.type,
        "source": trigger.source,
        "where": _function(trigger.where),
        "key": _function(trigger.key),
    }
    return {name: text for name, text in parts.items() if text is not None}


def _trigger(trigger: On) -> str:
    described = _described(trigger)
    topic = described.pop("topic")
    return printable(" ".join([topic, *_assignments(described.items())]))


def _assignments(items: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name}={text}" for name, text in items]


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
    # Annotations are strings where the module postpones them, and repr would show them quoted.
    parameters = [
        f"{parameter.name}: {parameter.annotation}"
        if isinstance(parameter.annotation, str) and parameter.default is parameter.empty
        else str(parameter)
        for parameter in flow.signature.parameters.values()
    ]
    return printable(f"{flow.name}({', '.join(parameters)})")


def _place(flow: Flow[..., Any]) -> str:
    file, line = flow.place
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return printable(f"{shown}:{line}")
