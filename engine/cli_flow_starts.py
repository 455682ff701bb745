"""``engine flows run``: starts a run of a flow by hand, which is a record on the state topic like any other run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from engine.cli_actions import acting
from engine.cli_flags import AppFlag, HandlersFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put, say
from engine.cli_runs import watch as watch_run
from engine.command_errors import NotFound, ParametersError, UsageError
from engine.declarations import Declaration, declare
from engine.errors import EventError
from engine.flows import Flow
from engine.loader import load
from engine.schemas import value_of
from engine.starts import parameters_of
from engine.states import utc


async def run(
    flow: Annotated[str, Parameter(help="Name of the flow.")],
    *,
    param: Annotated[
        list[str] | None,
        Parameter(negative=(), help="One parameter, name=value: JSON, or a text as it is; may be given again."),
    ] = None,
    data: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="The parameters as the data of an event would bring them, JSON; - reads standard input.",
        ),
    ] = None,
    key: Annotated[str | None, Parameter(help="Ordering key: runs with the same key take turns.")] = None,
    request_id: Annotated[
        str | None, Parameter(help="Id of this request: the same one for the same flow makes no second run.")
    ] = None,
    watch: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Follow the run to its end, and exit with its fate.")
    ] = False,
    handlers: HandlersFlag = None,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> int:
    """Start a run by hand and print its id. Parameters are checked first: against --handlers, or what its engine declares."""
    settings = settings_of(handlers=handlers, history=history, app=app, kafka=kafka)
    loaded: Flow[..., Any] | None = None
    if handlers:
        flows = load(settings.handlers)
        if (loaded := flows.get(flow)) is None:
            raise NotFound("flow", flow, f"Known: {', '.join(sorted(flows)) or 'none'}.")
    given = msgspec.UNSET if data is None else _json(data)
    async with acting(settings) as actions:
        declared = declare(loaded, utc(time.time())) if loaded is not None else (await actions.declarations()).get(flow)
        parameters = _parameters(param or (), declared)
        if loaded is not None and declared is not None:
            _check(loaded, parameters_of(declared, parameters, given, "", ""))
        run_id = await actions.start(flow, parameters, data=given, key=key, request_id=request_id, declaration=declared)
    if watch:
        if not json:
            say(f"run {run_id}")
        return await watch_run(run_id, app=app, kafka=kafka, json=json)
    if json:
        put(json_text({"run_id": run_id, "flow": flow}))
    else:
        put(run_id)
        say(f"follow it: engine runs watch {run_id}")
    return 0


def _check(flow: Flow[..., Any], parameters: dict[str, Any]) -> None:
    """As the engine will, which knows more than a schema says."""
    try:
        flow.arguments(msgspec.json.encode(parameters))
    except EventError as error:
        raise ParametersError(flow.name, error.cause, "Correct it and start again.") from error


def _parameters(texts: Sequence[str], declared: Declaration | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise UsageError("--param", f"{text!r} is not name=value", "E.g. --param quantity=2")
        found[name] = value_of(value, name, {} if declared is None else declared.parameters)
    return found


def _json(text: str) -> Any:
    data = sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError("--data", f"not JSON: {error}", "Text needs quotes of its own: --data '\"text\"'") from error
