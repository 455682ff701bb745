"""engine.logs: one way for all lines, and what every line of a run carries."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from engine.logs import configure, log_failure, logger, run_fields
from engine.states import Failure, State, StateChange, utc

TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Undo what is set up for the whole process."""
    loggers = {name: logging.getLogger(name) for name in ("", "aiokafka", "distributed.client", "distributed.comm", "asyncio")}
    levels = {name: found.level for name, found in loggers.items()}
    handlers = loggers[""].handlers[:]
    yield
    loggers[""].handlers[:] = handlers
    for name, level in levels.items():
        loggers[name].setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_json_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    logger.info("run begun", partition=3)
    [line] = lines(capsys)
    assert line["event"] == "run begun"
    assert line["partition"] == 3
    assert line["level"] == "info"
    assert line["at"].endswith("Z")


def test_bound_fields_of_a_run_are_on_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure(as_json=True)
    structlog.contextvars.bind_contextvars(**run_fields("r1", "fulfil", TRACEPARENT, "price"))
    logger.warning("odd")
    [line] = lines(capsys)
    assert {key: line[key] for key in ("run_id", "flow", "task", "trace_id")} == {
        "run_id": "r1",
        "flow": "fulfil",
        "task": "price",
        "trace_id": "0123456789abcdef0123456789abcdef",
    }


def test_a_run_without_a_trace_has_an_empty_trace_id() -> None:
    assert run_fields("r1", "fulfil", None) == {"run_id": "r1", "flow": "fulfil", "trace_id": ""}


def test_an_exception_is_one_field_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(as_json=True)
    try:
        int("broken")
    except ValueError:
        logger.exception("it failed")
    [line] = lines(capsys)
    assert "ValueError: invalid literal" in line["exception"]


def test_standard_logging_goes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    configure(as_json=True)
    logging.getLogger("somebody.else").warning("disk %s", "full")
    [line] = lines(capsys)
    assert (line["event"], line["logger"], line["level"]) == ("disk full", "somebody.else", "warning")


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="WARNING", as_json=True)
    logger.info("chatter")
    logger.error("trouble")
    assert [line["event"] for line in lines(capsys)] == ["trouble"]


def test_a_terminal_gets_readable_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure(as_json=False)
    logger.info("run begun", partition=3)
    shown = capsys.readouterr().err
    assert "run begun" in shown
    assert "{" not in shown


def test_a_failed_task_is_one_line_that_names_run_flow_task_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    values: dict[str, Any] = {"run_id": "r", "flow": "fulfil", "seq": 4, "epoch": 0, "attempt": 2, "at": utc(1.0)}
    failure = Failure("ValueError", "no such line")
    log_failure(StateChange(state=State.RUNNING, task="price", task_run_id="r/price/0", **values), TRACEPARENT)
    log_failure(StateChange(state=State.FAILED, task="price", task_run_id="r/price/0", error=failure, **values), TRACEPARENT)
    [line] = lines(capsys)
    assert (line["event"], line["level"], line["error"]) == ("task run failed", "warning", "ValueError: no such line")
    assert (line["run_id"], line["flow"], line["task"], line["trace_id"]) == ("r", "fulfil", "price", TRACEPARENT[3:35])


NASTY = "\x1b[2J\x1b]0;owned\x07\n2026-01-01 [info] all is well\r\x00\x9b31m\u202edesrever\u2028\ud800"


def steering(text: str) -> set[str]:
    """What of it could steer a terminal, the colours of the console aside."""
    return {c for c in re.sub(r"\x1b\[[0-9;]*m", "", text) if not c.isprintable() and c != "\n"}


@pytest.mark.parametrize("as_json", [True, False])
def test_what_comes_from_outside_neither_steers_the_terminal_nor_passes_for_a_line(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    configure(as_json=as_json)
    logger.warning("dead letter", error=NASTY, origin="orders/0/1")
    logger.warning(NASTY)
    logging.getLogger("somebody.else").warning("odd: %s", NASTY)
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 3
    assert not steering(shown)
    assert "\x1b[2J" not in shown
    assert "\x1b]0" not in shown


def test_an_exception_with_such_a_text_is_shown_as_lines_that_steer_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    configure(as_json=False)
    try:
        {}[NASTY], [].pop(NASTY)  # type: ignore[call-overload,index]
    except KeyError as error:
        error.args = (ValueError(NASTY),)
        logger.exception("it failed")
        logging.getLogger("somebody.else").exception("it failed, too")
    shown = capsys.readouterr().err
    assert [line for line in shown.splitlines() if "it failed" not in line and not line.startswith("    ")] == []
    assert "all is well" in shown
    assert not steering(shown)
    assert "\x1b[2J" not in shown
