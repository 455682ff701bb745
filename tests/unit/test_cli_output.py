"""What commands print cannot steer a terminal."""

from __future__ import annotations

import msgspec
import pytest

from engine.cli_output import json_text, print_error, say, short
from engine.command_errors import NotFound
from engine.terminal import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, Grüße, 東京", "plain text, Grüße, 東京"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("right\u202eto left", "right\\u202eto left"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_shown_not_sent(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_text_is_cut_to_one_line() -> None:
    assert short("x" * 300, 10) == "x" * 9 + "…"
    assert len(short("\x1b" * 300, 10)) == 10
    assert short("ten letter", 10) == "ten letter"


def test_json_keeps_its_meaning_while_it_cannot_steer() -> None:
    value = {"name": "\x1b[31m \x7f \x9b \u202e \u2028 ü"}
    text = json_text(value)
    assert text.replace("ü", "").isprintable()
    assert msgspec.json.decode(text) == value


def test_an_error_is_one_clear_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(NotFound("run", "x\x1b[2J", "Look again."), as_json=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: no run 'x\\x1b[2J'. Look again.\n"


def test_an_error_is_an_object_where_json_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(NotFound("run", "x", "Look again."), as_json=True)
    error = msgspec.json.decode(capsys.readouterr().err)
    assert error == {"error": {"type": "NotFound", "message": "no run 'x'. Look again."}}


def test_lines_for_a_person_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo\x07")
    assert capsys.readouterr().err == "one\ntwo\\x07\n"
