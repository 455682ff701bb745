"""What `engine demo` shows: progress while the events fly, then what came of them.

`progress`, `line` and `summary` draw a tally and do nothing else; `run_demo` sends, reads and prints.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.broker import Outgoing, Record
from engine.nycflights import DemoEvent
from engine.states import StateChange
from engine.tally import DayRow, DeadLetterRow, DelayRow, Tally

ACCENT = "cyan"
#: How often the live display is drawn anew.
TICK_SECONDS = 0.1
#: How often a line is printed where there is no terminal.
LINE_SECONDS = 2.0
#: How many flights, dead letters and failed runs the summary names.
MOST_ROWS = 8
#: Columns of the progress bar.
WIDTH = 76

#: What the summary names to look further: command and what it does.
NEXT_COMMANDS: tuple[tuple[str, str], ...] = (
    ("engine dev handlers.flights", "Kafka, workers and these flows again, to stay; then, in another terminal:"),
    ("engine flows ls handlers.flights", "which event starts which flow"),
    ("engine states tail", "every state change as it happens"),
    ("engine events send flights --help", "send an event of your own"),
)


def line(tally: Tally, now: datetime) -> str:
    """The progress in one line of plain text."""
    return "  ".join(f"{name} {value}" for name, value, _ in _numbers(tally, now))


def progress(tally: Tally, now: datetime) -> RenderableType:
    """The progress as a live display."""
    at = tally.happened_at
    title = Text.assemble(("Flights out of New York", "bold"), (f"   {at:%a} {at.day} {at:%B %Y, %H:%M}" if at else "", "dim"))
    ends = tally.completed + len(tally.failures) + len(tally.dead_letters)
    expected = tally.expected_runs + tally.expected_dead_letters
    bar = ProgressBar(expected or 1, ends, width=WIDTH, complete_style=ACCENT, finished_style=ACCENT)
    numbers = Table.grid(padding=(0, 2))
    # Fixed least widths keep the columns where they are while the numbers grow.
    for _, value, _ in _numbers(tally, now):
        numbers.add_column(justify="right", no_wrap=True, min_width=len(value))
    numbers.add_row(*(Text(name, "dim") for name, _, _ in _numbers(tally, now)))
    numbers.add_row(*(Text(value, style) for _, value, style in _numbers(tally, now)))
    return Padding(Group(title, bar, Text(), numbers), (1, 2), expand=False)


def summary(tally: Tally, next_commands: Sequence[tuple[str, str]] = NEXT_COMMANDS) -> RenderableType:
    """What came of it, for a reader who sees it for the first time."""
    parts: list[RenderableType] = []
    if tally.delays:
        parts += [_heading("The most delayed departures"), _delays(tally.delays)]
    if tally.days:
        parts += [_heading("The day at each airport"), _days(tally.days)]
    if tally.dead_letters:
        parts += [
            _heading("Dead letters: events that could not become runs"),
            _dead_letters(tally.dead_letters.values()),
        ]
    if tally.failures:
        parts += [_heading("Runs that did not complete"), _table(("run", "…why"), tally.failures[:MOST_ROWS])]
    parts += [_heading("Where the time went"), _times(tally)]
    commands = [(Text(command, ACCENT), Text(what, "dim")) for command, what in next_commands]
    parts += [_heading("To look further"), _table(None, commands)]
    return Padding(Group(_verdict(tally), *parts), (1, 2), expand=False)


async def run_demo(
    *,
    send: Callable[[Sequence[Outgoing]], Awaitable[Any]],
    changes: AsyncIterator[StateChange],
    dead_letters: AsyncIterator[Record],
    events: Iterable[DemoEvent],
    console: Console,
    events_per_second: float = 100.0,
    stall_seconds: float = 60.0,
    next_commands: Sequence[tuple[str, str]] = NEXT_COMMANDS,
) -> int:
    """Send the events, show what becomes of them, and answer the exit code.

    0 when every event came to its expected end; 1 when a run failed, a good event became a dead letter, or nothing was
    seen for ``stall_seconds``. Raises what ``send`` and the two readers raise; those are cancelled at the end and it is
    the caller who closes what they read from.
    """
    # Reading the tables takes a second of CPU, which the event loop must not lose: Kafka's heartbeats run on it.
    all_events = await asyncio.to_thread(list, events)
    tally = Tally(all_events)
    loop = asyncio.get_running_loop()
    seen_at = loop.time()

    async def produce() -> None:
        nonlocal seen_at
        size = max(1, round(events_per_second * TICK_SECONDS))
        for start in range(0, len(all_events), size):
            batch = all_events[start : start + size]
            tally.observe_sent(batch, datetime.now(UTC))
            await send([event.record for event in batch])
            seen_at = loop.time()
            await asyncio.sleep(size / events_per_second)

    async def follow_changes() -> None:
        nonlocal seen_at
        async for change in changes:
            tally.observe(change)
            seen_at = loop.time()

    async def follow_dead_letters() -> None:
        nonlocal seen_at
        async for record in dead_letters:
            tally.observe_dead_letter(record.headers)
            seen_at = loop.time()

    at_work = {asyncio.create_task(part()) for part in (produce, follow_changes, follow_dead_letters)}
    display = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    printed_at = loop.time()
    try:
        if display:
            display.start()
        while at_work and not tally.finished and loop.time() - seen_at < stall_seconds:
            done, at_work = await asyncio.wait(at_work, timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
            if display:
                display.update(progress(tally, datetime.now(UTC)), refresh=True)
            elif loop.time() - printed_at >= LINE_SECONDS:
                printed_at = loop.time()
                console.print(line(tally, datetime.now(UTC)), highlight=False, soft_wrap=True)
    finally:
        if display:
            display.stop()
        for part in at_work:
            part.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)
    console.print(summary(tally, next_commands), highlight=False)
    for words in tally.missing():
        console.print(f"missing: {words}", style="red", highlight=False, markup=False)
    return 0 if tally.passed else 1


def _numbers(tally: Tally, now: datetime) -> list[tuple[str, str, str]]:
    """Name, value and style of each number of the progress."""
    return [
        ("sent", f"{tally.sent}/{tally.total}", "bold"),
        ("running", f"{len(tally.running):4}", "bold"),
        ("done", f"{tally.completed:4}", f"bold {ACCENT}"),
        ("failed", str(len(tally.failures)), "bold red" if tally.failures else "dim"),
        ("dead letters", str(len(tally.dead_letters)), "bold"),
        ("runs/s", f"{tally.runs_per_second(now):.0f}", "bold"),
        ("event → first task", _spread(tally.first_task_seconds), "bold"),
    ]


def _verdict(tally: Tally) -> Text:
    tasks = sum(len(times.ran) for times in tally.tasks.values())
    words = [f"{tally.sent} events sent", f"{tally.completed} flow runs completed with {tasks} tasks"]
    if tally.failures:
        words.append(f"{len(tally.failures)} failed")
    words.append(f"{len(tally.dead_letters)} dead letters")
    if tally.unwanted:
        words.append(f"{tally.unwanted} cancelled flights, which no flow asks for")
    return Text(" · ".join(words), "bold")


def _delays(delays: Sequence[DelayRow]) -> Table:
    rows = []
    for row in sorted(delays, key=lambda row: -row.delay_minutes)[:MOST_ROWS]:
        causes = Text(", ".join(row.causes)) if row.causes else Text("none in weather or aircraft", "dim")
        flight = (row.flight, f"{row.origin} → {row.destination}", f"{row.scheduled_at:%H:%M}")
        rows.append((*flight, Text(_minutes(row.delay_minutes), ACCENT), causes, Text(row.aircraft or "–", "dim")))
    return _table(("flight", "route", "scheduled", ">late by", "…likely causes", "…aircraft"), rows)


def _days(days: Sequence[DayRow]) -> Table:
    rows = []
    for row in sorted(days, key=lambda row: (row.day, row.airport)):
        worst = row.worst_route
        rows.append(
            (
                row.airport,
                f"{row.day:%a} {row.day.day} {row.day:%b}",
                str(row.flights),
                str(row.cancelled),
                str(row.late),
                Text("–" if row.median_delay_minutes is None else _minutes(row.median_delay_minutes), ACCENT),
                "–" if worst is None else f"{worst.destination}, {_minutes(worst.median_delay_minutes)}",
                Text(row.weather, "dim"),
            )
        )
    head = ("airport", "day", ">flights", ">cancelled", ">late", ">median", "worst route", "…weather")
    return _table(head, rows)


def _dead_letters(dead_letters: Iterable[DeadLetterRow]) -> Table:
    rows = [(Text(row.reason, ACCENT), row.error, Text(row.origin, "dim")) for row in dead_letters]
    return _table(("reason", "…what was wrong", "where it lay"), rows[:MOST_ROWS])


def _times(tally: Tally) -> Table:
    """Two spans of whole runs, then each task with how long it waited for a worker and how long it ran."""
    rows: list[tuple[str | Text, ...]] = []
    for name, seconds in (("event → first task", tally.first_task_seconds), ("event → end of run", tally.end_seconds)):
        rows.append((name, str(len(seconds)), "", "", *_median_and_tail(seconds)))
    for name, times in sorted(tally.tasks.items(), key=lambda item: -sum(item[1].ran)):
        title = Text.assemble(f"task {name}", (f"  {times.retries} retried" if times.retries else "", "dim"))
        rows.append((title, str(len(times.ran)), *_median_and_tail(times.waited), *_median_and_tail(times.ran)))
    return _table(("", ">count", ">waited p50", ">p99", ">took p50", ">p99"), rows)


def _heading(text: str) -> RenderableType:
    return Padding(Text(text, f"bold {ACCENT}"), (1, 0, 0, 0))


def _table(head: Sequence[str] | None, rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table without lines. A name that begins with > heads numbers, one that begins with … text that may be folded."""
    table = Table(box=None, show_header=head is not None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for name in head or ():
        justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        table.add_column(name.lstrip(">…"), justify=justify, no_wrap=not name.startswith("…"))
    for row in rows:
        # As Text, because rich would read brackets in an error message as markup.
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def _median_and_tail(seconds: Sequence[float]) -> tuple[str, str]:
    return (_duration(_percentile(seconds, 50)), _duration(_percentile(seconds, 99))) if seconds else ("–", "–")


def _spread(seconds: Sequence[float]) -> str:
    return "p50 {} · p99 {}".format(*_median_and_tail(seconds))


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def _minutes(minutes: float) -> str:
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest:02}" if hours > 0 else f"{round(minutes)} min"
