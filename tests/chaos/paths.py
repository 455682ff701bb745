"""Paths: the way that each run has gone, as the state topic tells it, and what is wrong with it; pure."""

from __future__ import annotations

from tests.chaos.decoding import Change, Topics
from tests.chaos.violations import ENDS, Violation

#: Which state may follow which, of flow runs and of task runs.
FOLLOWS = {
    "": {"SCHEDULED"},
    "SCHEDULED": {"RUNNING", "CANCELLED", "CRASHED"},
    "RUNNING": {"RETRYING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED"},
    "RETRYING": {"RUNNING", "CANCELLED", "CRASHED"},
}


class Path:
    """What the state topic tells of one run."""

    def __init__(self, scheduled: Change) -> None:
        self.scheduled = scheduled
        self.ended: Change | None = None
        self.wrong: list[Violation] = []
        self.states: dict[str, str] = {"": "SCHEDULED"}
        self.last_seq = 0
        #: A producer's repeat may have been written once more, in a trace of its own: either is the run's.
        self.traces = {scheduled.trace_id}
        #: Where its event lay: as above.
        self.origins = {_origin(scheduled)}
        self._trace = ""
        #: The first telling of each step.
        self.said: dict[int, Change] = {0: scheduled}

    @property
    def place(self) -> str:
        """Where the record lies from which it was made; empty where there was none."""
        event = self.scheduled.event
        return "" if event is None else event.replay_place or event.place

    def is_repeat(self, paths: Paths) -> bool:
        """Whether it repeats a run with all that run had, its replay, too; a replay's own run says what it repeats as well."""
        repeats, event = self.scheduled.repeats, self.scheduled.event
        if not repeats or event is None or not event.replay:
            return bool(repeats)
        first = paths.get(repeats)
        return first is not None and first.scheduled.event is not None and first.scheduled.event.replay == event.replay

    def take(self, change: Change) -> None:
        """The next change of the run that counts."""
        if change.is_scheduled:
            self._take_scheduled(change)
            return
        self._trace = self._trace or change.trace_id
        if change.trace_id != self._trace or change.trace_id not in self.traces:
            self._wrong("trace", change, f"is in trace {change.trace_id}, its run in {self._trace} of {sorted(self.traces)}")
        said = self.said.get(change.seq)
        if said is not None:
            if said.says != change.says:
                self._wrong("contradiction", change, f"says something else than offset {said.offset}: {said.says}")
            return
        self.said[change.seq] = change
        if self.ended is not None:
            is_end = not change.task_run_id and change.state in ENDS
            self._wrong("second end" if is_end else "after end", change, f"comes after the end, {self.ended.state}")
            return
        if change.seq != self.last_seq + 1:
            self._wrong("gap", change, f"follows seq {self.last_seq}")
        self.last_seq = max(self.last_seq, change.seq)
        self._step(change)

    def at(self, next_offset: int) -> tuple[str, int] | None:
        """State and seq, as far as the log was read then; None where the run was not open."""
        read = [change for change in self.said.values() if change.offset < next_offset]
        if not read:
            return None
        states, seq = _fold(read), max(change.seq for change in read)
        return None if states[""] in ENDS else (states[""], seq)

    def as_of(self, seq: int) -> dict[str, str]:
        """The states of the run, named "", and of its tasks, when it had told so much."""
        return _fold([change for change in self.said.values() if change.seq <= seq])

    def _take_scheduled(self, change: Change) -> None:
        self.traces.add(change.trace_id)
        self.origins.add(_origin(change))
        mine, other = self.scheduled, change
        if (mine.flow, mine.repeats, _identity(mine)) != (other.flow, other.repeats, _identity(other)):
            self._wrong("merged", change, f"is of another event or flow than offset {mine.offset}")
        if change.partition != mine.partition:
            self._wrong("doubled", change, f"lies in another partition than {mine.partition}/{mine.offset}")

    def _step(self, change: Change) -> None:
        state = self.states.get(change.task_run_id, "")
        if change.state not in FOLLOWS.get(state, ()):
            self._wrong("illegal", change, f"follows {state or 'nothing'}")
        self.states[change.task_run_id] = change.state
        if change.task_run_id or change.state not in ENDS:
            return
        self.ended = change
        for name, left in self.states.items():
            if name and left not in ENDS:
                self._wrong("open task", change, f"ends the run, and {name} is {left}")

    def _wrong(self, kind: str, change: Change, text: str) -> None:
        place = f"{change.partition}/{change.offset}: {change.task_run_id or 'the run'} {change.state} seq {change.seq}"
        self.wrong.append(Violation(kind, change.run_id, f"{place} {text}"))


Paths = dict[str, Path]


def paths_of(topics: Topics) -> Paths:
    """Each run's; changes of runs that nobody has scheduled are unfounded."""
    paths: Paths = {}
    for change in topics.valid:
        path = paths.get(change.run_id)
        if path is not None:
            path.take(change)
        elif change.is_scheduled:
            paths[change.run_id] = Path(change)
        else:
            topics.unfounded.append(change)
    return paths


def _fold(changes: list[Change]) -> dict[str, str]:
    return {change.task_run_id: change.state for change in sorted(changes, key=lambda one: one.seq)}


def _origin(change: Change) -> str:
    return "" if change.event is None else change.event.place


def _identity(change: Change) -> object:
    return change.event and change.event.identity
