"""How a command acts: opens what ``engine.actions`` needs and frees it again; asks before it acts on many runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console

from engine import logs
from engine.actions import Actions
from engine.cli_histories import histories_of
from engine.cli_output import say
from engine.cli_run_views import runs_as_table
from engine.cli_times import time_of
from engine.command_errors import UsageError
from engine.history import History, RunFilter
from engine.history_schema import RunRow
from engine.kafka import KafkaBroker
from engine.settings import Settings
from engine.states import State
from engine.telemetry import Tracer

FlowsFlag = Annotated[
    list[str] | None, Parameter(name="--flow", negative=(), help="All runs of this flow; may be given again.")
]
StatesFlag = Annotated[
    list[State] | None, Parameter(name="--state", negative=(), help="All runs in this state; may be given again.")
]
SinceFlag = Annotated[str | None, Parameter(help="All runs scheduled since then: a time, or 30m, 2h, 7d ago.")]
LimitFlag = Annotated[int | None, Parameter(help="At most so many of them, the newest first.")]
YesFlag = Annotated[bool, Parameter(negative=(), show_default=False, help="Do not ask.")]

#: Of those that are about to be acted on.
_SHOWN = 10
_PAGE = 1_000


class Choice(msgspec.Struct, frozen=True):
    """What the flags say of which runs are meant, where no id is given."""

    flows: Sequence[str] = ()
    states: Sequence[State] = ()
    since: str | None = None
    limit: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no flag was given."""
        return not self.flows and not self.states and self.since is None and self.limit is None

    def rows(self, history: History, states: Sequence[State]) -> list[RunRow]:
        """The runs, of those in ``states`` unless flags name others. Raises UsageError."""
        begin = time_of("--since", self.since)
        wanted = RunFilter(
            flows=tuple(self.flows),
            states=tuple(self.states) or tuple(states),
            since=None if begin is None else begin.timestamp(),
        )
        found: list[RunRow] = []
        cursor: str | None = None
        while self.limit is None or len(found) < self.limit:
            page = history.runs(wanted, cursor=cursor, limit=min(_PAGE, (self.limit or _PAGE + len(found)) - len(found)))
            found += page.items
            cursor = page.cursor
            if cursor is None:
                break
        return found


def choice_of(
    run_id: str | None, flows: list[str] | None, states: list[State] | None, since: str | None, limit: int | None
) -> Choice:
    """Checks that either an id or flags are given. Raises UsageError."""
    choice = Choice(tuple(flows or ()), tuple(states or ()), since, limit)
    if run_id is not None and not choice.is_empty:
        raise UsageError("RUN_ID and filters", "give either", "An id alone, or --flow, --state, --since, --limit.")
    if run_id is None and choice.is_empty:
        raise UsageError("which runs", "neither an id nor a filter was given", "All of the last hour: --since 1h.")
    if limit is not None and limit < 1:
        raise UsageError("--limit", f"{limit} is no number of runs", "Give 1 or more.")
    return choice


def confirm(what: str, rows: Sequence[RunRow], *, yes: bool) -> bool:
    """Whether to go on with these: says which, and asks. Raises UsageError where nobody can be asked."""
    if yes or not rows:
        return bool(rows)
    console = Console(highlight=False, stderr=True)
    console.print(runs_as_table(rows[:_SHOWN], console.width))
    if len(rows) > _SHOWN:
        say(f"and {len(rows) - _SHOWN:,} more")
    if not sys.stdin.isatty():
        raise UsageError(
            "--yes", f"it was not given, and this many runs would be {what}: {len(rows):,}", "Look at them, then add --yes."
        )
    say(f"This many runs will be {what}: {len(rows):,}. Go on? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@asynccontextmanager
async def acting(settings: Settings) -> AsyncIterator[Actions]:
    """What a person can do to an app. Raises KafkaUnavailable."""
    logs.configure(level="WARNING")
    broker = KafkaBroker(settings)
    tracer = Tracer.from_environment(f"engine-{settings.app}")
    sink = broker.sink()
    actions = Actions(settings, broker, sink, tracer, histories_of(settings))
    try:
        await sink.start()
        yield actions
    finally:
        await actions.close()
        await sink.close()
        await broker.close()
        await asyncio.to_thread(tracer.close)
