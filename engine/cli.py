"""The command ``engine``: which commands there are, and what becomes of their errors; each command is a module of its own.

A command is imported when it is run, so that help and mistakes in typing cost nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from cyclopts import App, CycloptsError

from engine.cli_output import print_error
from engine.errors import EngineError

#: Of a command line that cannot be meant.
USAGE = 2
#: What a shell reports for a program that Ctrl-C ended, and for one whose reader has gone.
INTERRUPTED = 130
READER_GONE = 141

_COMMANDS = {
    "demo": ("engine.cli_demo:demo", "See it work: real flights through a real Kafka and real Dask workers."),
    "dev": ("engine.cli_dev:dev", "Run it all on this machine: Kafka, Dask workers and the engine, with reload."),
    "run": ("engine.cli_run:run", "Run the engine alone, against a Kafka and a Dask that run already."),
    "notify": ("engine.cli_notify:notify", "Tell people and programs of state changes, as flows, tasks and rules ask for."),
    "dashboard": ("engine.cli_dashboard:dashboard", "See it all: serve the pages and the API, and keep the history."),
    "doctor": ("engine.cli_doctor:doctor", "Check Kafka, Dask and the handlers; name the remedy of what is wrong."),
}
_GROUPS = {
    "events": (
        "Send events, and see what became of them.",
        {
            "send": ("engine.cli_events:send", "Send one event, or a file of them, to a topic."),
            "ls": ("engine.cli_event_lists:ls", "List the last events of a topic: the runs each made, or why none."),
            "tail": ("engine.cli_event_lists:tail", "Show the last events of a topic, and with --follow those that come."),
        },
    ),
    "states": ("See state changes.", {"tail": ("engine.cli_states:tail", "Show state changes as they happen.")}),
    "runs": (
        "Look at runs, stop them, and repeat them.",
        {
            "ls": ("engine.cli_run_lists:ls", "List runs, the newest first."),
            "show": ("engine.cli_run_lists:show", "Show one run: its tasks with their attempts, and its state changes."),
            "logs": ("engine.cli_logs:logs", "Show what the tasks and the flow of a run have logged."),
            "watch": ("engine.cli_runs:watch", "Follow one run; exits with its fate."),
            "cancel": ("engine.cli_cancel:cancel", "Stop open runs and all their tasks."),
            "retry": ("engine.cli_repeats:retry", "Run again what ended FAILED, CRASHED or CANCELLED, as new runs."),
            "rerun": (
                "engine.cli_repeats:rerun",
                "Run again what has ended, however it did, as a new run; all of it, or from a task.",
            ),
        },
    ),
    "dead-letters": (
        "See to what could not become a run, or failed as one.",
        {
            "ls": ("engine.cli_dead_letters:ls", "List dead letters."),
            "show": ("engine.cli_dead_letters:show", "Show one whole: reason, key, headers, value."),
            "replay": ("engine.cli_dead_letters:replay", "Have letters taken in once more."),
            "drop": ("engine.cli_dead_letters:drop", "Mark letters as done with."),
            "resume": ("engine.cli_dead_letters:resume", "Go on with a topic that dead_letter_limit has stopped."),
        },
    ),
    "history": (
        "Keep runs, dead letters and workers in a database, to be looked at.",
        {
            "run": ("engine.cli_history:run", "Fill the history database from the topics, until stopped."),
            "rebuild": ("engine.cli_history:rebuild", "Make the history database anew from the topics."),
        },
    ),
    "flows": (
        "Look at flows, and start runs of them.",
        {
            "ls": ("engine.cli_flows:ls", "List flows and their triggers: of handlers, or of the engines that run."),
            "show": ("engine.cli_flows:show", "Show one flow: its triggers and the schema of its parameters."),
            "run": ("engine.cli_flow_starts:run", "Start a run by hand."),
        },
    ),
}

_EPILOGUE = (
    "Settings come from flags, ENGINE_* variables, engine.toml, in this order. "
    "Exit codes: 0 ok, 1 the run failed, 2 usage, 3 not found, 4 cannot connect, 130 interrupted."
)


def build() -> App:
    """All commands, none of them imported yet."""
    # Help is plain text: brackets in it mean themselves.
    app = App("engine", help="Kafka events become Dask task graphs.", help_epilogue=_EPILOGUE, version=_version)
    app.help_format = "plaintext"
    for name, (place, about) in _COMMANDS.items():
        app.command(place, name=name, help=about)
    for group, (about, commands) in _GROUPS.items():
        part = App(group, help=about, help_format="plaintext")
        for name, (place, what) in commands.items():
            part.command(place, name=name, help=what)
        app.command(part)
    return app


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: with its own code, with that of the EngineError that ended it, or 130 on Ctrl-C."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in tokens
    app = build()
    app.suppress_keyboard_interrupt = False
    try:
        code = app(tokens, result_action="return_value", exit_on_error=False, print_error=not as_json)
        sys.stdout.flush()
    except CycloptsError as error:
        # For a person cyclopts has printed it, with what may have been meant.
        if as_json:
            print_error(error, as_json=True)
        code = USAGE
    except EngineError as error:
        code = error.exit_code
        if code != INTERRUPTED:
            print_error(error, as_json=as_json)
    except KeyboardInterrupt:
        code = INTERRUPTED  # nothing to say: who pressed it knows
    except BrokenPipeError:
        # `| head` has seen enough. Python would flush once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = READER_GONE
    sys.exit(code if isinstance(code, int) else 0)


def _version() -> str:
    try:
        return version("kafka-dask-engine")
    except PackageNotFoundError:
        return "not installed"  # run from a checkout
