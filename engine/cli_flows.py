"""``engine flows ls`` and ``show``: what the handlers declare, or where none are named, what running engines have declared."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from engine.broker import Broker
from engine.cli_console import CommandConsole
from engine.cli_flags import AppFlag, HandlersFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_histories import Look, declared, looking
from engine.cli_output import json_text, put
from engine.cli_watch import Shown, WatchFlag
from engine.cli_watch import show as repeatedly
from engine.command_errors import NotFound, UsageError
from engine.declarations import Declaration, Trigger, declare
from engine.history_rows import FlowRow
from engine.kafka import KafkaBroker
from engine.loader import load
from engine.measures import duration
from engine.settings import Settings
from engine.states import utc
from engine.terminal import printable


async def ls(
    handlers: HandlersFlag = None,
    *,
    watch: WatchFlag = False,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """List flows: signature, triggers and where each stands. Of the handlers, or else of the engines, with how their last
    runs did."""
    settings = settings_of(handlers=handlers, history=history, app=app, kafka=kafka)
    if watch and settings.handlers:
        raise UsageError("--watch", "what handlers declare does not change", "Name no handlers: then engines are asked.")
    async with _flows(settings) as flows:

        async def look() -> Shown:
            found, done = await flows.all(), flows.done()
            return Shown(
                lambda: ((name, _description(flow) | _counted(done.get(name))) for name, flow in found.items()),
                lambda width: _table(found, done) if found else None,
                "" if found else "no flows: no engine has declared any; of handlers: engine flows ls handlers/flights.py",
            )

        await repeatedly(look, watch=watch, json=json, again=flows.again)


class _Loaded:
    """The flows of handlers."""

    def __init__(self, handlers: Sequence[str]) -> None:
        self._declared = {name: declare(flow, utc(time.time())) for name, flow in load(handlers).items()}

    async def all(self) -> dict[str, Declaration]:
        return self._declared

    def done(self) -> dict[str, FlowRow]:
        return {}

    async def again(self) -> None:
        return


class _Running:
    """The flows of engines, as the history or the topic has them."""

    def __init__(self, settings: Settings, broker: Broker, look: Look) -> None:
        self._settings, self._broker, self._look = settings, broker, look
        self.again = look.again

    async def all(self) -> dict[str, Declaration]:
        return await declared(self._settings, self._broker, self._look)

    def done(self) -> dict[str, FlowRow]:
        return {row.flow: row for row in self._look.history.flows()}


@asynccontextmanager
async def _flows(settings: Settings) -> AsyncIterator[_Loaded | _Running]:
    if settings.handlers:
        yield _Loaded(settings.handlers)
        return
    broker = KafkaBroker(settings)
    try:
        async with looking(settings) as look:
            yield _Running(settings, broker, look)
    finally:
        await broker.close()


def _table(flows: Mapping[str, Declaration], done: Mapping[str, FlowRow]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("flow", "started by", *(("runs", "ok", "p50") if done else ()), "where"):
        table.add_column(column, overflow="fold")
    for name, flow in flows.items():
        row = done.get(name)
        rate = "" if row is None or row.success_rate is None else f"{row.success_rate:.0%}"
        p50 = "" if row is None or row.p50_seconds is None else duration(row.p50_seconds)
        table.add_row(
            Text(printable(flow.signature), "bold"),
            Text("\n".join(_trigger(trigger) for trigger in flow.triggers) or "nothing", "cyan"),
            *((str(row.runs if row is not None else 0), rate, p50) if done else ()),
            Text(_place(flow), "dim"),
        )
    return table


def _counted(row: FlowRow | None) -> dict[str, Any]:
    """Of the last runs that ended, for a program; nothing where none did, or nobody knows."""
    if row is None:
        return {}
    return {name: getattr(row, name) for name in ("runs", "success_rate", "p50_seconds", "p95_seconds")}


async def show(
    name: Annotated[str, Parameter(help="Name of the flow.")],
    handlers: HandlersFlag = None,
    *,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show one flow: signature, triggers, place, and the JSON schema of its parameters."""
    async with _flows(settings_of(handlers=handlers, history=history, app=app, kafka=kafka)) as found:
        flows = await found.all()
    flow = flows.get(name)
    if flow is None:
        known = f"Known: {', '.join(sorted(flows))}." if flows else "No engine has declared any: name the handlers."
        raise NotFound("flow", name, known)
    if json:
        put(json_text(_description(flow) | {"parameters": flow.parameters, "data": flow.data}))
        return
    console = CommandConsole(soft_wrap=True)
    console.print(Text(printable(flow.signature), "bold"))
    if flow.doc:
        console.print(Text("\n".join(printable(line) for line in flow.doc.splitlines()), "dim"))
    for trigger in flow.triggers:
        console.print(Text.assemble("started by  ", (_trigger(trigger), "cyan")))
    console.print(Text.assemble("declared    ", _place(flow)))
    console.print(Text("the data of its events, as JSON schema:"))
    console.print(Text(msgspec.json.format(msgspec.json.encode(flow.data)).decode()))


def _description(flow: Declaration) -> dict[str, Any]:
    return {
        "flow": flow.name,
        "signature": printable(flow.signature),
        "triggers": [_described(trigger) for trigger in flow.triggers],
        "file": flow.file,
        "line": flow.line,
    }


def _described(trigger: Trigger) -> dict[str, str]:
    found: dict[str, str] = msgspec.to_builtins(trigger)
    return found


def _trigger(trigger: Trigger) -> str:
    described = _described(trigger)
    topic = described.pop("topic")
    return printable(" ".join([topic, *_assignments(described.items())]))


def _assignments(items: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name}={text}" for name, text in items]


def _place(flow: Declaration) -> str:
    path = Path(flow.file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return printable(f"{shown}:{flow.line}")
