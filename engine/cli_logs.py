"""``engine runs logs``: what the tasks and the flow of a run have logged, from the history or straight from the topic."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter
from rich.text import Text

from engine import logs as own_logs
from engine.cli_console import CommandConsole
from engine.cli_flags import AppFlag, HistoryFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put, say
from engine.command_errors import NotFound
from engine.history import History
from engine.history_opener import is_there
from engine.kafka import KafkaBroker
from engine.log_feeds import LAST_RECORDS, Feed, HistoryFeed, TopicFeed
from engine.log_rows import LogFilter, LogRow
from engine.runs import is_run_id
from engine.states import utc
from engine.terminal import printable, printable_lines

Level = Literal["debug", "info", "warning", "error", "critical"]
_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red", "critical": "bold red"}
#: Lines are written beside the states: those said just before the end of a run may come so long after it.
_SETTLING_SECONDS = 2.0


async def logs(
    run_id: Annotated[str, Parameter(help="The id of the run; with a history database a beginning of it is enough.")],
    *,
    follow: Annotated[bool, Parameter(negative=(), show_default=False, help="Go on until the run has ended.")] = False,
    task: Annotated[str | None, Parameter(help="Only lines of this task (price) or task run (price/0.3).")] = None,
    level: Annotated[Level | None, Parameter(help="Only lines of this level and above.")] = None,
    limit: Annotated[int, Parameter(help="At most so many of those that are there, the latest.")] = 1_000,
    history: HistoryFlag = None,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show what the tasks and the flow of a run have logged, in its order. With --json a line each."""
    own_logs.configure(level="WARNING")
    settings = settings_of(app=app, kafka=kafka, history=history)
    wanted = LogFilter(task=task, level=level)
    topic: TopicFeed | None = None
    feed: Feed
    if is_there(settings.history_path):
        feed = HistoryFeed(History.open(settings.history_path), run_id, wanted, settings.app)
    else:
        if not is_run_id(run_id):
            remedy = "Without a history database its whole id is needed: `engine runs ls` has it."
            raise NotFound("run", run_id, remedy)
        feed = topic = TopicFeed(settings, KafkaBroker(settings), run_id, wanted)
    console = CommandConsole(soft_wrap=True)
    try:
        found = await feed.latest(max(1, limit))
        if topic is not None and topic.is_cut:
            say(f"no history database (setting history): read the last {LAST_RECORDS:,} records alone; older lines are missing")
        _show(console, found, json=json)
        if follow:
            await _follow(console, feed, json=json)
        elif not found:
            say("no such lines")
    finally:
        await feed.close()


async def _follow(console: CommandConsole, feed: Feed, *, json: bool) -> None:
    settled_at: float | None = None
    while True:
        # Asked first: what was said before the end is then among the lines that follow, or will be soon.
        has_ended = await feed.has_ended()
        lines = await feed.more()
        _show(console, lines, json=json)
        now = time.monotonic()
        if lines or not has_ended:
            settled_at = None
        elif settled_at is None:
            settled_at = now + _SETTLING_SECONDS
        elif now >= settled_at:
            return


def _show(console: CommandConsole, lines: list[LogRow], *, json: bool) -> None:
    for line in lines:
        if json:
            put(json_text(msgspec.structs.asdict(line) | {"at": utc(line.at)}))
        else:
            console.print(as_text(line))


def as_text(line: LogRow) -> Text:
    """Time, level, who says it and what; further lines of a message are set in, so that none passes for one of its own."""
    at = datetime.fromtimestamp(line.at).astimezone()
    name = printable(line.name or "(flow)") + (f" #{line.attempt}" if line.attempt > 1 else "")
    return Text.assemble(
        (f"{at:%H:%M:%S}.{at.microsecond // 1000:03}  ", "dim"),
        (f"{printable(line.level):<8}  ", _STYLES.get(line.level, "")),
        (f"{name:<20}  ", "bold"),
        (f"{printable(line.logger)}: ", "dim"),
        printable_lines(line.message).replace("\n", "\n    "),
    )
