"""engine.demo: progress, summary, and the way from sending to the exit code."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from engine.broker import Outgoing, Record
from engine.demo import line, progress, run_demo, summary
from engine.errors import KafkaUnavailable
from engine.nycflights import SOURCE, DemoEvent, Fate
from engine.states import Origin, State, StateChange
from engine.tally import DayRow, DeadLetterRow, DelayRow, RouteRow, Tally, TaskTimes

START = datetime(2013, 3, 8, 17, 24, tzinfo=UTC)


def demo_event(id: str, fate: Fate = Fate.RUN) -> DemoEvent:
    return DemoEvent(Outgoing("flights", id.encode(), b"{}"), id, fate, START)


EVENTS = [demo_event("UA1"), demo_event("UA2"), demo_event("no-id", Fate.DEAD_LETTER)]


def text_of(renderable: Any, *, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def tally() -> Tally:
    tally = Tally(EVENTS)
    tally.observe_sent(EVENTS, START)
    return tally


def test_progress_shows_the_clock_of_the_flights_and_every_number(tally: Tally) -> None:
    tally.first_task_seconds += [0.004, 0.012, 1.5]
    shown = text_of(progress(tally, START))
    assert "Fri 8 March 2013, 17:24" in shown
    for name in ("sent", "running", "done", "failed", "dead letters", "runs/s", "event → first task"):
        assert name in shown
    assert "3/3" in shown
    assert "p50 12 ms · p99 1.50 s" in shown


def test_progress_can_be_drawn_before_anything_was_sent() -> None:
    assert "0/0" in text_of(progress(Tally([]), START))
    assert "0/3" in line(Tally(EVENTS), START)


def test_summary_names_the_most_delayed_first_and_no_more_than_eight(tally: Tally) -> None:
    tally.delays += [DelayRow(f"UA{n}", "EWR", "ORD", START, n, ["snow"] if n % 2 else []) for n in range(90, 110)]
    shown = text_of(summary(tally))
    assert shown.index("UA109") < shown.index("UA108") < shown.index("UA102")
    assert "UA101" not in shown
    assert "1 h 49" in shown
    assert "snow" in shown
    assert "none in weather or aircraft" in shown


def test_summary_shows_days_dead_letters_failures_times_and_the_next_commands(tally: Tally) -> None:
    tally.days += [
        DayRow("JFK", date(2013, 3, 8), 300, 12, 150, "wind up to 30 mph", 21.5, RouteRow("BOS", 95.0)),
        DayRow("EWR", date(2013, 3, 8), 2, 2, 0, "no reports"),
    ]
    tally.dead_letters["flights/1/7"] = DeadLetterRow("malformed-event", "id is missing", "flights/1/7")
    tally.failures.append(("delay_report of UA1", "ValueError: [red]no markup[/red]"))
    tally.tasks["look_up"] = TaskTimes(waited=[0.001], ran=[0.002, 0.003], retries=1)
    shown = text_of(summary(tally, [("engine look", "to look")]))
    assert shown.index("EWR") < shown.index("JFK")
    for words in (
        "BOS, 1 h 35",
        "22 min",
        "malformed-event",
        "id is missing",
        "flights/1/7",
        "delay_report of UA1",
        "ValueError: [red]no markup[/red]",
        "task look_up  1 retried",
        "1.0 ms",
        "engine look",
        "to look",
    ):
        assert words in shown


class FakeEngine:
    """Answers every event as an engine would, through the two streams that the demo reads."""

    def __init__(self, *, silent_on: str = "", end: State = State.COMPLETED) -> None:
        self.silent_on, self.end = silent_on, end
        self.changes: asyncio.Queue[StateChange] = asyncio.Queue()
        self.dead_letters: asyncio.Queue[Record] = asyncio.Queue()

    async def send(self, records: Sequence[Outgoing]) -> None:
        for record in records:
            id = (record.key or b"").decode()
            if id == "no-id":
                headers = (("x-engine-reason", b"malformed-event"), ("x-engine-origin", b"flights/0/2"))
                self.dead_letters.put_nowait(Record("d", 0, 0, None, None, headers, 0))
            elif id != self.silent_on:
                self.answer(id)

    def answer(self, id: str) -> None:
        now = datetime.now(UTC)
        origin = Origin(SOURCE, id, "flight.departed", "flights", 0, 0)
        for state, event in ((State.SCHEDULED, origin), (State.RUNNING, None), (self.end, None)):
            self.changes.put_nowait(
                StateChange(run_id=id, flow="delay_report", state=state, seq=0, epoch=0, attempt=1, at=now, event=event)
            )

    async def run(self, console: Console, **options: Any) -> int:
        return await run_demo(
            send=self.send,
            changes=stream(self.changes),
            dead_letters=stream(self.dead_letters),
            events=EVENTS,
            console=console,
            events_per_second=1_000,
            **options,
        )


async def stream(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while True:
        yield await queue.get()


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def console(request: pytest.FixtureRequest) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=request.param)


async def test_the_demo_ends_with_0_when_every_event_came_to_its_end(console: Console) -> None:
    assert await FakeEngine().run(console) == 0
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 events sent" in shown
    assert "2 flow runs completed" in shown
    assert "missing" not in shown


async def test_the_demo_ends_with_1_when_a_run_failed(console: Console) -> None:
    assert await FakeEngine(end=State.FAILED).run(console) == 1


async def test_the_demo_says_what_is_missing_when_nothing_more_comes(console: Console) -> None:
    assert await FakeEngine(silent_on="UA2").run(console, stall_seconds=0.2) == 1
    assert "missing: ends of runs: 1, for example that of UA2" in console.file.getvalue()  # type: ignore[attr-defined]


async def test_an_error_of_the_sender_ends_the_demo_and_leaves_no_task_behind(console: Console) -> None:
    engine = FakeEngine()

    async def refuse(records: Sequence[Outgoing]) -> None:
        raise KafkaUnavailable("127.0.0.1:1", "refused")

    engine.send = refuse  # type: ignore[method-assign]
    with pytest.raises(KafkaUnavailable):
        await engine.run(console)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_streams_that_end_early_end_the_demo(console: Console) -> None:
    async def nothing() -> AsyncIterator[Any]:
        return
        yield

    code = await run_demo(send=FakeEngine().send, changes=nothing(), dead_letters=nothing(), events=EVENTS, console=console)
    assert code == 1


def test_a_summary_of_nothing_can_be_drawn() -> None:
    assert "0 events sent" in text_of(summary(Tally([])))


def test_the_numbers_of_a_summary_are_those_of_the_tally(tally: Tally) -> None:
    tally.end_seconds += [timedelta(milliseconds=20).total_seconds()]
    assert "20 ms" in text_of(summary(tally))
