"""Logs: structlog, JSON or console by whether a terminal is there; standard logging goes the same way."""

from __future__ import annotations

import logging
import sys
import textwrap
import traceback
from collections.abc import MutableMapping
from contextvars import Context, ContextVar
from typing import Any, TextIO

import structlog

from engine.states import StateChange
from engine.terminal import printable, printable_lines
from engine.trace_contexts import trace_id_of

#: Handed out before logging is set up, too: it looks up the configuration at its first line.
logger: Any = structlog.get_logger("engine")


def configure(*, level: str = "INFO", as_json: bool | None = None) -> None:
    """Send all logging of this process to standard error, as JSON unless that is a terminal."""
    as_json = not sys.stderr.isatty() if as_json is None else as_json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    ]
    # JSON escapes all but ASCII. On a terminal what came from outside must not steer it, or pass for a line of ours.
    console = structlog.dev.ConsoleRenderer(exception_formatter=_show_exception)
    renderer: Any = structlog.processors.JSONRenderer() if as_json else console
    exceptions: list[Any] = [structlog.processors.format_exc_info if as_json else _make_printable]
    numeric = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    structlog.configure(
        processors=[*shared, *exceptions, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *exceptions, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # What flows log below that is for their runs' logs alone (engine.log_catcher).
    root.setLevel(logging.INFO)
    handler.setLevel(logging.WARNING)
    # These say at WARNING and above what we say ourselves, in words that name the remedy.
    for name in ("aiokafka", "distributed.client", "distributed.comm", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL if name.startswith("aiokafka") else logging.ERROR)


def _make_printable(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = printable_lines(value) if name in ("exception", "stack") else printable(value)
    return fields


def _show_exception(out: TextIO, exc_info: Any) -> None:
    # Set in, so that no line of it, of which the exception's text may be many, looks like one of ours.
    shown = printable_lines("".join(traceback.format_exception(*exc_info)).rstrip())
    out.write("\n" + textwrap.indent(shown, "    "))


def log_failure(change: StateChange, traceparent: str) -> None:
    """Say that a run or a task run failed, if ``change`` says so; all else is on the state topic for those who ask."""
    if change.error is None or change.cause is not None:
        return
    what = "flow run" if change.is_flow_run else "task run"
    fields = run_fields(change.run_id, change.flow, traceparent, change.task)
    error = f"{change.error.type}: {change.error.message}"
    logger.warning(f"{what} {change.state.lower()}", **fields, attempt=change.attempt, error=error)


def run_fields(run_id: str, flow: str, traceparent: str | None, task: str | None = None) -> dict[str, str]:
    """What every line of a run carries."""
    fields = {"run_id": run_id, "flow": flow, "trace_id": trace_id_of(traceparent)}
    if task is not None:
        fields["task"] = task
    return fields


def context_variables() -> dict[str, ContextVar[Any]]:
    """The variables in which structlog binds ``run_fields``: for those who bind thousands a second, setting one is faster."""
    context = Context()
    context.run(structlog.contextvars.bind_contextvars, **run_fields("", "", None, ""))
    return {variable.name.removeprefix(structlog.contextvars.STRUCTLOG_KEY_PREFIX): variable for variable in context}
