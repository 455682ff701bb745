"""How a state change looks."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO
from typing import Any

import msgspec
from rich.console import Console

from engine.cli_changes import as_json, as_line
from engine.states import Envelope, Failure, Origin, State, StateChange

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def change(**values: Any) -> StateChange:
    """A change of a run of the flow ``fulfil``."""
    usual: dict[str, Any] = {"flow": "fulfil", "state": State.RUNNING, "seq": 1, "epoch": 0, "attempt": 1, "at": AT}
    return StateChange(run_id="0123456789abcdef", **(usual | values))


def printed(of: StateChange) -> str:
    """The line as a terminal gets it, colours and all."""
    stream = StringIO()
    Console(file=stream, force_terminal=True, color_system="truecolor", highlight=False, soft_wrap=True).print(as_line(of))
    return stream.getvalue()


def test_a_line_names_state_flow_task_and_run() -> None:
    line = as_line(change(task="price", task_run_id="t", map_index=3, worker="tcp://w")).plain
    assert "RUNNING" in line
    assert "fulfil/price[3]" in line
    assert "01234567" in line
    assert "on tcp://w" in line


def test_the_first_line_of_a_run_has_its_whole_id_and_its_event() -> None:
    origin = Origin(source="s", id="e-1", type="order.created", topic="orders", partition=0, offset=7)
    line = as_line(change(state=State.SCHEDULED, seq=0, event=origin)).plain
    assert "run 0123456789abcdef · order.created e-1" in line


def test_an_event_cannot_steer_the_terminal_nor_write_markup() -> None:
    nasty = "\x1b[2J[bold]x[/bold]\n\x9b"
    failure = Failure("ValueError", nasty)
    origin = Origin(source="s", id=nasty, type=nasty, topic="t", partition=0, offset=0)
    for shown in (
        printed(change(state=State.FAILED, error=failure)),
        printed(change(state=State.SCHEDULED, event=origin)),
        printed(change(state=State.COMPLETED, result=msgspec.Raw(msgspec.json.encode(nasty)))),
        printed(change(flow=nasty, task=nasty, task_run_id="t", reason=nasty, worker=nasty)),
    ):
        assert "\x1b[2J" not in shown
        assert "\x9b" not in shown
        assert "[bold]" in shown
        assert shown.count("\n") == 1


def test_json_is_the_data_of_the_change_exactly() -> None:
    of = change(state=State.COMPLETED, result=msgspec.Raw(b'{"a":"\x7f"}'), traceparent="00-a-b-01")
    value, _ = Envelope.of("shop", of.run_id).write(of, "00-a-b-01")
    data = msgspec.json.decode(value)
    data.pop("traceparent", None)  # a header, not data
    assert msgspec.json.decode(as_json(of)) == data
    assert as_json(of).isprintable()
