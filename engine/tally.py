"""What a demo has seen: a tally of events sent, state changes and dead letters. Pure: no I/O, no clock, no drawing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date, datetime

import msgspec

from engine.events import Headers
from engine.nycflights import SOURCE, DemoEvent, Fate
from engine.states import State, StateChange

#: Runs per second are those of the last so many seconds.
RATE_SECONDS = 3.0


class DelayRow(msgspec.Struct, frozen=True):
    """What is shown of the result of the flow delay_report."""

    flight: str
    origin: str
    destination: str
    scheduled_at: datetime
    delay_minutes: int
    causes: list[str]
    aircraft: str | None = None


class RouteRow(msgspec.Struct, frozen=True):
    """What is shown of a day's worst route."""

    destination: str
    median_delay_minutes: float


class DayRow(msgspec.Struct, frozen=True):
    """What is shown of the result of the flow daily_summary."""

    airport: str
    day: date
    flights: int
    cancelled: int
    late: int
    weather: str
    median_delay_minutes: float | None = None
    worst_route: RouteRow | None = None


class DeadLetterRow(msgspec.Struct, frozen=True):
    """What is shown of a dead letter."""

    reason: str
    error: str
    origin: str


class TaskTimes(msgspec.Struct):
    """How long the runs of one task waited and ran, in seconds."""

    waited: list[float] = msgspec.field(default_factory=list)
    ran: list[float] = msgspec.field(default_factory=list)
    retries: int = 0


class Tally:
    """What was sent, what became of it, and how long it took. Seconds count from the sending of a run's event."""

    def __init__(self, events: Sequence[DemoEvent]) -> None:
        self.total = len(events)
        self.expected_runs = sum(event.fate is Fate.RUN for event in events)
        self.expected_dead_letters = sum(event.fate is Fate.DEAD_LETTER for event in events)
        #: Events in order that no flow asked for.
        self.unwanted = self.total - self.expected_runs - self.expected_dead_letters

        self.sent = 0
        #: When the event sent last happened, in its own world.
        self.happened_at: datetime | None = None
        self.running: set[str] = set()
        self.completed = 0
        #: Which runs did not complete, and why.
        self.failures: list[tuple[str, str]] = []
        #: By where the record lay, so that one read twice counts once.
        self.dead_letters: dict[str, DeadLetterRow] = {}
        #: Good events that became dead letters all the same.
        self.refused: set[str] = set()
        self.first_task_seconds: list[float] = []
        self.end_seconds: list[float] = []
        self.tasks: dict[str, TaskTimes] = {}
        self.delays: list[DelayRow] = []
        self.days: list[DayRow] = []

        self._awaited = {event.id for event in events if event.fate is Fate.RUN}
        self._sent_at: dict[str, datetime] = {}
        #: Event ids by run id.
        self._event_ids: dict[str, str] = {}
        self._before_first_task: set[str] = set()
        #: The state each open task run is in, and since when.
        self._task_states: dict[str, tuple[State, datetime]] = {}
        self._ends: deque[datetime] = deque()

    @property
    def finished(self) -> bool:
        """Whether the end of everything that was sent has been seen."""
        return not self.missing()

    @property
    def passed(self) -> bool:
        """Whether it is finished and all went as it should."""
        return self.finished and not self.failures and not self.refused

    def missing(self) -> list[str]:
        """In words, what has not been seen yet."""
        words = []
        if self.sent < self.total:
            words.append(f"events not sent: {self.total - self.sent}")
        if late := len(self._awaited & self._sent_at.keys()):
            example = min(self._awaited & self._sent_at.keys())
            words.append(f"ends of runs: {late}, for example that of {example}")
        if (due := self.expected_dead_letters + len(self.refused) - len(self.dead_letters)) > 0:
            words.append(f"dead letters: {due}")
        return words

    def observe_sent(self, events: Iterable[DemoEvent], at: datetime) -> None:
        """``events`` are about to be sent: told before the sending, so that no answer can come earlier."""
        for event in events:
            self.sent += 1
            self._sent_at[event.id] = at
            self.happened_at = event.at

    def observe(self, change: StateChange) -> None:
        """A state change was read; those of runs that the demo did not cause are passed over."""
        if change.is_flow_run and change.state is State.SCHEDULED:
            if change.event and change.event.source == SOURCE and change.event.id in self._sent_at:
                self._event_ids[change.run_id] = change.event.id
                self._before_first_task.add(change.run_id)
        elif (event_id := self._event_ids.get(change.run_id)) is None:
            return
        elif change.is_flow_run:
            self._observe_run(change, event_id)
        else:
            self._observe_task(change, event_id)

    def observe_dead_letter(self, headers: Headers) -> None:
        """A dead letter was read."""
        texts = {name: content.decode("utf-8", "replace") for name, content in headers}
        origin = texts.get("x-engine-origin", "")
        self.dead_letters[origin] = DeadLetterRow(texts.get("x-engine-reason", ""), texts.get("x-engine-error", ""), origin)
        if (event_id := texts.get("ce_id", "")) in self._awaited:
            self._awaited.discard(event_id)
            self.refused.add(event_id)

    def runs_per_second(self, now: datetime) -> float:
        """Ends of runs a second, over the last few seconds."""
        while self._ends and (now - self._ends[0]).total_seconds() > RATE_SECONDS:
            self._ends.popleft()
        return len(self._ends) / RATE_SECONDS

    def _observe_run(self, change: StateChange, event_id: str) -> None:
        if event_id not in self._awaited:
            return
        if not change.state.is_end:
            self.running.add(change.run_id)
            return
        self._awaited.discard(event_id)
        self.running.discard(change.run_id)
        self._ends.append(change.at)
        self.end_seconds.append(self._since_sent(event_id, change))
        if change.state is not State.COMPLETED:
            error = change.error
            text = f"{error.type}: {error.message}" if error else change.reason or change.state
            self.failures.append((f"{change.flow} of {event_id}", text))
            return
        self.completed += 1
        # A result that is not of this shape, or too large to travel with its change, is counted and not shown.
        with suppress(msgspec.MsgspecError):
            if change.flow == "delay_report":
                self.delays.append(msgspec.json.decode(change.result or b"", type=DelayRow))
            elif change.flow == "daily_summary":
                self.days.append(msgspec.json.decode(change.result or b"", type=DayRow))

    def _observe_task(self, change: StateChange, event_id: str) -> None:
        times = self.tasks.setdefault(change.task or "", TaskTimes())
        task_run_id = change.task_run_id or ""
        before, since = self._task_states.get(task_run_id, (None, change.at))
        seconds = max(0.0, (change.at - since).total_seconds())
        if change.state is State.RUNNING:
            if change.run_id in self._before_first_task:
                self._before_first_task.discard(change.run_id)
                self.first_task_seconds.append(self._since_sent(event_id, change))
            if before is State.SCHEDULED:
                times.waited.append(seconds)
        elif before is State.RUNNING:
            times.ran.append(seconds)
            times.retries += change.state is State.RETRYING
        if change.state.is_end:
            self._task_states.pop(task_run_id, None)
        else:
            self._task_states[task_run_id] = (change.state, change.at)

    def _since_sent(self, event_id: str, change: StateChange) -> float:
        return max(0.0, (change.at - self._sent_at[event_id]).total_seconds())
