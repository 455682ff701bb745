"""``engine runs ls`` and ``show``: from the history database, or where there is none straight from the topics."""

from __future__ import annotations

import asyncio
import io
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live

from engine.cli_flags import AppFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_histories import history_of, looking
from engine.cli_output import json_text, put, say
from engine.cli_run_views import (
    change_as_data,
    change_as_line,
    run_as_data,
    run_as_header,
    runs_as_table,
    task_as_data,
    tasks_as_table,
)
from engine.cli_times import time_of
from engine.command_errors import NotFound, UsageError
from engine.errors import EventError
from engine.history import Page, RunFilter
from engine.history_schema import RunRow
from engine.states import State
from engine.terminal import printable_lines

#: Of one run; --json has all of them.
_TASKS_SHOWN, _CHANGES_SHOWN = 200, 200
_ALL = 1_000_000
#: Between two looks of --watch.
_LOOK_SECONDS = 2.0


async def ls(
    *,
    flow: Annotated[list[str] | None, Parameter(negative=(), help="Only runs of this flow; may be given again.")] = None,
    state: Annotated[list[State] | None, Parameter(negative=(), help="Only runs in this state; may be given again.")] = None,
    key: Annotated[str | None, Parameter(help="Only runs of this ordering key.")] = None,
    since: Annotated[str | None, Parameter(help="Only runs scheduled since then: a time, or 30m, 2h, 7d ago.")] = None,
    limit: Annotated[int, Parameter(help="At most so many, the newest first.")] = 50,
    cursor: Annotated[str | None, Parameter(help="Go on behind the run with this cursor.")] = None,
    watch: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Look again and again; with --json what is new or has changed.")
    ] = False,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """List runs, the newest first. With --json a line each; the cursor in a line goes on behind it."""
    begin = time_of("--since", since)
    wanted = RunFilter(
        flows=tuple(flow or ()), states=tuple(state or ()), key=key, since=None if begin is None else begin.timestamp()
    )
    seen: dict[str, int] = {}
    async with looking(settings_of(app=app, kafka=kafka, history=history)) as look:
        with _screen(is_on=watch and not json) as screen:
            while True:
                try:
                    page = look.history.runs(wanted, cursor=cursor, limit=max(1, limit))
                except EventError as error:
                    remedy = "Take it from the line of a run, or from the end of a list."
                    raise UsageError("--cursor", error.cause, remedy) from error
                if json:
                    for run in [run for run in page.items if seen.get(run.run_id) != run.seq]:
                        put(json_text(run_as_data(run)))
                elif watch:
                    screen.update(runs_as_table(page.items, screen.console.width), refresh=True)
                else:
                    _print(page, is_filtered=wanted != RunFilter() or cursor is not None)
                if not watch:
                    return
                seen = {run.run_id: run.seq for run in page.items}
                await asyncio.sleep(_LOOK_SECONDS)
                await look.again()


def _print(page: Page[RunRow], *, is_filtered: bool) -> None:
    if page.items:
        console = Console(highlight=False)
        console.print(runs_as_table(page.items, console.width))
    else:
        say("no such runs" if is_filtered else "no runs yet; `engine events send` starts some")
    if page.cursor is not None:
        say(f"there are more: --cursor {page.cursor}")


def _screen(*, is_on: bool) -> Live:
    """What shows a list that changes; where it is off, or output is no terminal, nothing moves."""
    console = Console(highlight=False) if is_on else Console(file=io.StringIO())
    return Live(console=console, auto_refresh=False, vertical_overflow="crop")


async def show(
    run_id: Annotated[str, Parameter(help="The id of the run, or a beginning of it that no other run has.")],
    *,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show one run: its own facts, its task runs with their attempts, its state changes. Exits 3 when there is no such run."""
    settings = settings_of(app=app, kafka=kafka, history=history)
    async with history_of(settings) as found:
        run = found.run(run_id)
        if run is None:
            remedy = f"`engine runs ls` lists those that are kept; it may belong to another app than {settings.app} (--app)."
            raise NotFound("run", run_id, remedy)
        tasks = found.task_runs(run, limit=_ALL if json else _TASKS_SHOWN)
        changes = found.changes(run, limit=_ALL if json else _CHANGES_SHOWN)
    if json:
        data = [task_as_data(task) for task in tasks], [change_as_data(change) for change in changes]
        put(json_text({"run": run_as_data(run), "task_runs": data[0], "changes": data[1]}))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(run_as_header(run))
    if tasks:
        console.print()
        console.print(tasks_as_table(tasks))
    console.print()
    for change in changes:
        console.print(change_as_line(change))
    if run.traceback:
        console.print()
        console.print(printable_lines(run.traceback), markup=False)
    if run.tasks > len(tasks) or run.seq + 1 > len(changes):
        say(
            f"shown: {len(tasks)} of {run.tasks} task runs, {len(changes)} of {run.seq + 1} changes;"
            " --json has all that are kept"
        )
