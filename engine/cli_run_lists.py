"""``engine runs ls`` and ``show``: from the history database, or where there is none straight from the topics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from engine import logs
from engine.cli_flags import AppFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
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
from engine.history import History, RunFilter
from engine.history_store import IN_MEMORY, HistoryStore
from engine.kafka import KafkaBroker
from engine.projector import Projector
from engine.settings import Settings
from engine.states import State
from engine.terminal import printable_lines

#: Without a database so many records are read of each topic, the latest: some seconds.
LAST_RECORDS = 200_000
#: Of one run; --json has all of them.
_TASKS_SHOWN, _CHANGES_SHOWN = 200, 200
_ALL = 1_000_000


async def ls(
    *,
    flow: Annotated[list[str] | None, Parameter(negative=(), help="Only runs of this flow; may be given again.")] = None,
    state: Annotated[list[State] | None, Parameter(negative=(), help="Only runs in this state; may be given again.")] = None,
    key: Annotated[str | None, Parameter(help="Only runs of this ordering key.")] = None,
    since: Annotated[str | None, Parameter(help="Only runs scheduled since then: a time, or 30m, 2h, 7d ago.")] = None,
    limit: Annotated[int, Parameter(help="At most so many, the newest first.")] = 50,
    cursor: Annotated[str | None, Parameter(help="Go on behind the run with this cursor.")] = None,
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
    async with _history(settings_of(app=app, kafka=kafka, history=history)) as found:
        try:
            page = found.runs(wanted, cursor=cursor, limit=max(1, limit))
        except EventError as error:
            raise UsageError("--cursor", error.cause, "Take it from the line of a run, or from the end of a list.") from error
    if json:
        for run in page.items:
            put(json_text(run_as_data(run)))
        return
    if page.items:
        Console(highlight=False).print(runs_as_table(page.items))
    else:
        say("no such runs" if wanted != RunFilter() or cursor else "no runs yet; `engine events send` starts some")
    if page.cursor is not None:
        say(f"there are more: --cursor {page.cursor}")


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
    async with _history(settings) as found:
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


@asynccontextmanager
async def _history(settings: Settings) -> AsyncIterator[History]:
    logs.configure(level="WARNING")
    if _is_file(settings.history_path):
        with History.open(settings.history_path) as found:
            yield found
        return
    broker = KafkaBroker(settings)
    store = HistoryStore(IN_MEMORY, settings.app)
    projector = Projector(settings, broker, store, last_records=LAST_RECORDS, with_logs=False)
    try:
        records = await projector.catch_up()
        if projector.is_cut:
            say(f"no history database (setting history): read the last {records:,} records alone; older runs are missing")
        yield History(store.connection, IN_MEMORY)
    finally:
        await projector.close()
        await broker.close()


def _is_file(path: str) -> bool:
    return bool(path) and Path(path).is_file()
