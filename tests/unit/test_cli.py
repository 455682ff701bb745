"""The command line: what is asked for, what is refused, and the exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.cli import build, main

HANDLERS = '''
import msgspec
from engine import Event, flow, on, task

class Order(msgspec.Struct):
    id: str
    lines: list[int] = []

@task
def price(line: int) -> int:
    return line

@flow(on("orders", type="order.*", source="shop", where=lambda event: event.data.lines, key=lambda event: event.data.id))
def fulfil(order: Order):
    """Prices an order."""
    return price.map(order.lines)

@flow(on("orders"), on("returns"))
def count(event: Event[Order]):
    return price(1)
'''


def run(*arguments: str) -> object:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    return exit_info.value.code


@pytest.fixture
def handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A handler file of a name of its own, because modules are imported once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"orders_{tmp_path.name}".replace("-", "_")
    file = tmp_path / f"{name}.py"
    file.write_text(HANDLERS)
    return str(file)


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "dev", "run", "doctor", "events send", "states tail", "runs watch", "runs retry", "runs rerun"),
        *("flows ls", "flows show", "dead-letters ls", "dead-letters show", "dead-letters replay", "dead-letters drop"),
        *("dead-letters resume", "runs ls", "runs show", "runs logs", "history run", "history rebuild"),
        *("runs cancel", "flows run", "events ls", "events tail", "notify"),
    ],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == 0
    assert f"Usage: engine {command}" in capsys.readouterr().out


def test_help_imports_neither_kafka_nor_dask() -> None:
    code = (
        "import sys\nfrom engine.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print({'aiokafka', 'distributed', 'dask', 'opentelemetry', 'structlog'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["states", "tail", "--nonsense"],
        ["states", "tail", "--state", "SLEEPING"],
        ["states", "tail", "--kafka"],
        ["runs", "watch"],
        ["runs", "ls", "--since", "yesterday"],
        ["runs", "ls", "--state", "SLEEPING"],
        ["history", "run"],
        ["notify", "no-such-file.py"],
        ["history", "rebuild", "--history", "mysql://me:word@db/x"],
        ["dev", "--workers", "many"],
        ["run", "--http", "0.0.0.0:80"],
        ["run", "--app", "no spaces"],
        ["run", "no-such-file.py"],
        ["demo", "--flights", "0"],
        ["events", "send", "t"],
        ["events", "send", "t", "--data", "{"],
        ["events", "send", "t", "--data", "1", "--id", "i"],
        ["events", "send", "t", "--data", "1", "--file", "f"],
        ["events", "send", "t", "--file", "f", "--type", "y", "--id", "i"],
        ["events", "send", "t", "--data", "1", "--header", "novalue"],
        ["events", "send", "t", "--data", "1", "--traceparent", "00-1-2-3"],
    ],
)
def test_what_cannot_be_meant_is_refused_with_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["events", "send", "t", "--data", "-"], "data"),
        (["flows", "run", "f", "--data", "-"], "data"),
        (["dead-letters", "replay", "0/1", "--value", "-"], "value"),
    ],
)
def test_a_hyphen_alone_stands_for_standard_input(arguments: list[str], name: str) -> None:
    _, bound, _ = build().parse_args(arguments, exit_on_error=False, print_error=False)
    assert bound.arguments[name] == "-"


def test_a_jaeger_that_is_not_there_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENGINE_JAEGER", "/nowhere/jaeger")
    assert run("dev", "--jaeger") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "cannot start Jaeger: the setting jaeger names /nowhere/jaeger" in " ".join(err.split())
    assert "https://www.jaegertracing.io/download/" in err


def test_a_refusal_is_an_object_where_json_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("states", "tail", "--nonsense", "--json") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "nonsense" in msgspec.json.decode(err)["error"]["message"]


def test_flows_are_listed_with_signature_triggers_and_place(handlers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flows", "ls", handlers, "--json") == 0
    fulfil, count = (msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines())
    assert fulfil["flow"] == "fulfil"
    assert fulfil["signature"].startswith("fulfil(order: ")
    (trigger,) = fulfil["triggers"]
    assert (trigger["topic"], trigger["type"], trigger["source"]) == ("orders", "order.*", "shop")
    assert trigger["where"] == trigger["key"] == "line 13"
    assert (fulfil["file"], fulfil["line"]) == (handlers, 13)
    assert [trigger["topic"] for trigger in count["triggers"]] == ["orders", "returns"]


def test_flows_are_listed_for_a_person(handlers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flows", "ls", "--handlers", handlers) == 0
    shown = capsys.readouterr().out
    assert "fulfil(" in shown
    assert "returns" in shown


def test_handlers_come_from_the_environment_too(
    handlers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINE_HANDLERS", handlers)
    assert run("flows", "ls", "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_flow_is_shown_with_the_schema_of_its_data(handlers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flows", "show", "fulfil", handlers, "--json") == 0
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert shown["data"]["$defs"]["Order"]["required"] == ["id"]
    assert "order" in shown["parameters"]["$defs"]["Parameters"]["properties"]
    assert run("flows", "show", "fulfil", handlers) == 0
    assert "Prices an order." in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_an_unknown_flow_is_not_found(handlers: str, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flows", "show", "nope", handlers, *(["--json"] if as_json else [])) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "Known: count, fulfil." in err
    assert err.startswith('{"error":' if as_json else "error: no flow 'nope'")


def test_a_bad_handler_is_named_with_file_and_line(handlers: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(handlers).write_text("from engine import flow, on\n\n@flow(on('t'))\ndef wrong(untyped):\n    pass\n")
    assert run("flows", "ls", handlers) == 2
    assert f"{handlers}:3" in capsys.readouterr().err
