"""``engine runs ls`` and ``show``: from the history database, or where there is none straight from the topics."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.text import Text

from engine.cli_flags import AppFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_histories import looking
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
from engine.cli_watch import Shown, WatchFlag
from engine.cli_watch import show as repeatedly
from engine.command_errors import NotFound, UsageError
from engine.errors import EventError
from engine.history import History, Page, RunFilter
from engine.history_schema import RunRow
from engine.states import State
from engine.terminal import printable_lines

#: Of one run; --json has all of them.
_TASKS_SHOWN, _CHANGES_SHOWN = 200, 200
_ALL = 1_000_000
#: While it is watched, the last ones.
_CHANGES_WATCHED = 12


async def ls(
    *,
    flow: Annotated[list[str] | None, Parameter(negative=(), help="Only runs of this flow; may be given again.")] = None,
    state: Annotated[list[State] | None, Parameter(negative=(), help="Only runs in this state; may be given again.")] = None,
    key: Annotated[str | None, Parameter(help="Only runs of this ordering key.")] = None,
    since: Annotated[str | None, Parameter(help="Only runs scheduled since then: a time, or 30m, 2h, 7d ago.")] = None,
    limit: Annotated[int, Parameter(help="At most so many, the newest first.")] = 50,
    cursor: Annotated[str | None, Parameter(help="Go on behind the run with this cursor.")] = None,
    watch: WatchFlag = False,
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
    async with looking(settings_of(app=app, kafka=kafka, history=history)) as look:

        async def list_runs() -> Shown:
            try:
                page = look.history.runs(wanted, cursor=cursor, limit=max(1, limit))
            except EventError as error:
                remedy = "Take it from the line of a run, or from the end of a list."
                raise UsageError("--cursor", error.cause, remedy) from error
            return _listed(page, is_filtered=wanted != RunFilter() or cursor is not None)

        await repeatedly(list_runs, watch=watch, json=json, again=look.again)


def _listed(page: Page[RunRow], *, is_filtered: bool) -> Shown:
    runs = page.items
    words = "" if page.cursor is None else f"there are more: --cursor {page.cursor}"
    if not runs:
        words = "no such runs" if is_filtered else "no runs yet; `engine events send` starts some"
    return Shown(
        lambda: ((run.run_id, run_as_data(run)) for run in runs),
        lambda width: runs_as_table(runs, width) if runs else None,
        words,
    )


async def show(
    run_id: Annotated[str, Parameter(help="The id of the run, or a beginning of it that no other run has.")],
    *,
    watch: Annotated[bool, Parameter(negative=(), show_default=False, help="Look again and again until it has ended.")] = False,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show one run: its own facts, its task runs with their attempts, its state changes. Exits 3 when there is no such run."""
    settings = settings_of(app=app, kafka=kafka, history=history)
    async with looking(settings) as look:

        async def show_run() -> Shown:
            run = look.history.run(run_id)
            if run is None:
                remedy = (
                    f"`engine runs ls` lists those that are kept; it may belong to another app than {settings.app} (--app)."
                )
                raise NotFound("run", run_id, remedy)
            return _shown(look.history, run, watch=watch, json=json)

        await repeatedly(show_run, watch=watch, json=json, again=look.again, soft_wrap=True)


def _shown(history: History, run: RunRow, *, watch: bool, json: bool) -> Shown:
    tasks = history.task_runs(run, limit=_ALL if json else _TASKS_SHOWN)
    # While one watches, the last changes are of interest; a terminal has no room for more.
    after = run.seq - _CHANGES_WATCHED if watch and not json and run.ended_at is None else -1
    changes = history.changes(run, after=after, limit=_ALL if json else _CHANGES_SHOWN)

    def drawn(width: int) -> Group:
        parts: list[RenderableType] = [run_as_header(run)]
        parts += [Text(), tasks_as_table(tasks)] if tasks else []
        parts += [Text(), *(change_as_line(change) for change in changes)]
        parts += [Text(), Text(printable_lines(run.traceback))] if run.traceback else []
        return Group(*parts)

    def items() -> list[tuple[str, Any]]:
        data = [task_as_data(task) for task in tasks], [change_as_data(change) for change in changes]
        return [(run.run_id, {"run": run_as_data(run), "task_runs": data[0], "changes": data[1]})]

    counts = f"{len(tasks)} of {run.tasks} task runs, {len(changes)} of {run.seq + 1} changes"
    is_whole = run.tasks <= len(tasks) and run.seq + 1 <= len(changes)
    words = "" if is_whole or json else f"shown: {counts}; --json has all that are kept"
    return Shown(items, drawn, words, is_over=run.ended_at is not None)
