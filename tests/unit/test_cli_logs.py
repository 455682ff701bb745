"""engine.cli_logs: how lines look, whatever is in them."""

from __future__ import annotations

import msgspec

from engine.cli_logs import as_text
from engine.log_rows import LogRow

LINE = LogRow("r", 1, 1_700_000_000.123, "warning", "orders", "price/0.3", 2, "no tea", "")


def test_a_line_says_when_who_and_what() -> None:
    shown = as_text(LINE).plain
    assert ".123  warning   price/0.3 #2" in shown
    assert shown.endswith("orders: no tea")
    assert "warning   (flow)  " in as_text(msgspec.structs.replace(LINE, name=None, attempt=1)).plain


def test_nothing_in_a_line_steers_the_terminal_or_passes_for_another_line() -> None:
    nasty = "\x1b[2J\x1b]0;owned\x07\n12:00:00.000  info      all is well\r\x9b31m\u202edesrever\u2028x"
    line = msgspec.structs.replace(LINE, logger=nasty, name=nasty, level=nasty, message=nasty)
    shown = as_text(line).plain
    assert {c for c in shown if not c.isprintable()} == {"\n"}
    _, second = shown.split("\n")
    assert second.startswith("    12:00:00.000")
    assert "[/red]" in as_text(msgspec.structs.replace(LINE, message="[/red] stays")).plain
