"""Metrics: the name, meaning and labels of each one, and what an engine counts; plain numbers, no I/O, no library.

Counting is on the way of every state change, so it adds to integers and nothing else; whoever asks for metrics pays for the
rest. Labels are bounded: of flows and topics the first ``LABELS`` have one of their own, all further ones share ``OTHER``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from engine.events import Reason
from engine.runs import FlowRun
from engine.states import State, StateChange

#: Flows, and topics, with a label of their own.
LABELS = 100
OTHER = "other"
#: Upper bounds of the histograms, in seconds: from a packed run to one that waits for a day.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200, 86_400)


class Kind(StrEnum):
    """What a metric does over time."""

    COUNTER = "counter"  #: it only grows, until the engine starts anew
    GAUGE = "gauge"  #: it is what it is now
    HISTOGRAM = "histogram"  #: how many observations were at most so large, and their sum


class Metric(msgspec.Struct, frozen=True):
    """One metric, as Prometheus knows it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


EVENTS = Metric(
    "engine_events_total",
    Kind.COUNTER,
    "Records of event topics and replays taken in: started a run, were refused (a dead letter), or matched no trigger.",
    ("topic", "outcome"),
)
DEAD_LETTERS = Metric(
    "engine_dead_letters_total", Kind.COUNTER, "Dead letters written, by the topic of the event.", ("topic", "reason")
)
FLOW_RUNS = Metric(
    "engine_flow_runs_total",
    Kind.COUNTER,
    "Flow runs that entered a state. SCHEDULED counts those that events started, not those started by hand.",
    ("flow", "state"),
)
TASK_RUNS = Metric(
    "engine_task_runs_total",
    Kind.COUNTER,
    "Task runs that entered a state; those of packed runs are not counted.",
    ("flow", "state"),
)
START = Metric(
    "engine_event_to_start_seconds",
    Kind.HISTOGRAM,
    "From the timestamp of an event's record in Kafka to the first RUNNING of a run it started; without replays.",
    ("flow",),
)
DURATION = Metric(
    "engine_flow_run_duration_seconds",
    Kind.HISTOGRAM,
    "From the RUNNING of a flow run's last attempt to its end, whatever that is.",
    ("flow",),
)
OPEN_RUNS = Metric("engine_open_runs", Kind.GAUGE, "Runs that this engine drives: begun and not ended.", ("flow",))
PARKED_RUNS = Metric("engine_parked_runs", Kind.GAUGE, "Open runs that only wait: asleep, or for an event.", ("flow",))
WAITING_RUNS = Metric(
    "engine_waiting_runs", Kind.GAUGE, "Runs in memory that have not begun; those left on the state topic are not counted."
)
UNTOLD_CHANGES = Metric("engine_untold_changes", Kind.GAUGE, "State changes that wait for their write to Kafka.")
PART_READY = Metric("engine_part_ready", Kind.GAUGE, "1 where the part of the engine is ready, as /readyz has it.", ("part",))
REACHABLE = Metric("engine_reachable", Kind.GAUGE, "1 where the service answered for this scrape.", ("service",))
CONSUMER_LAG = Metric(
    "engine_consumer_lag_records",
    Kind.GAUGE,
    "Records from the group's committed offset to the end. Every engine tells it of the whole group: take the max. "
    "The dispatch group commits with its checkpoints, so of it this is what a takeover would read.",
    ("group", "topic", "partition"),
)
DASK_WORKERS = Metric("engine_dask_workers", Kind.GAUGE, "Workers of the Dask cluster.")
DASK_THREADS = Metric("engine_dask_threads", Kind.GAUGE, "Threads of all workers together.")
DASK_TASKS = Metric(
    "engine_dask_tasks",
    Kind.GAUGE,
    "Tasks on the Dask scheduler: queued for a worker, waiting for others or their next attempt, processing on a worker.",
    ("state",),
)
DASK_MEMORY = Metric("engine_dask_memory_bytes", Kind.GAUGE, "Resident memory of all workers together.")
DASK_MEMORY_LIMIT = Metric("engine_dask_memory_limit_bytes", Kind.GAUGE, "Memory limits of all workers together.")
BUILD = Metric("engine_build_info", Kind.GAUGE, "1; which release this is.", ("version", "python"))
PROJECTOR_LAG = Metric(
    "engine_projector_lag_records",
    Kind.GAUGE,
    "Records that the history has not taken in yet; the dashboard tells it.",
    ("topic", "partition"),
)
HISTORY_READABLE = Metric("engine_history_readable", Kind.GAUGE, "1 where the dashboard can read the history database.")

METRICS = (
    *(EVENTS, DEAD_LETTERS, FLOW_RUNS, TASK_RUNS, START, DURATION, OPEN_RUNS, PARKED_RUNS, WAITING_RUNS, UNTOLD_CHANGES),
    *(PART_READY, REACHABLE, CONSUMER_LAG, DASK_WORKERS, DASK_THREADS, DASK_TASKS, DASK_MEMORY, DASK_MEMORY_LIMIT),
    *(BUILD, PROJECTOR_LAG, HISTORY_READABLE),
)

_ENDS = frozenset(state for state in State if state.is_end)
STARTED, REFUSED, UNMATCHED = "started", "refused", "unmatched"


class Labels:
    """What stands for a name: itself, or ``OTHER`` where there are too many."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The label."""
        label = self._known.get(name)
        if label is None:
            if len(self._known) >= LABELS:
                return OTHER  # not remembered: what is bounded is memory, too
            label = self._known[name] = name
        return label


class Histogram:
    """Observations by ``BOUNDS``."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        #: One more than there are bounds: the last has what is above all of them.
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Take one in; clocks that differ make none shorter than nothing."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        if seconds > 0.0:
            self.sum += seconds

    def cumulative(self) -> list[int]:
        """How many were at most each bound, and in the end all of them."""
        total, sums = 0, []
        for count in self.counts:
            total += count
            sums.append(total)
        return sums


class FlowCounts:
    """What was counted of one flow."""

    __slots__ = ("duration", "flow_runs", "start", "task_runs")

    def __init__(self) -> None:
        self.flow_runs = dict.fromkeys(State, 0)
        self.task_runs = dict.fromkeys(State, 0)
        self.start, self.duration = Histogram(), Histogram()


class Counts:
    """What one engine has counted since it started. Flows and topics that are known begin with zeros, for rates to be right."""

    def __init__(self, flows: Iterable[str] = (), topics: Iterable[str] = ()) -> None:
        #: By label.
        self.flows: dict[str, FlowCounts] = {}
        self.events: dict[tuple[str, str], int] = {}
        self.letters: dict[tuple[str, str], int] = {}
        self._flow_labels, self._topic_labels = Labels(), Labels()
        #: By name: found with one look for every state change.
        self._of_flow: dict[str, FlowCounts] = {}
        for flow in flows:
            self._flow(flow)
        for topic in topics:
            self._topic(topic)

    def told(self, run: FlowRun, change: StateChange) -> None:
        """A state change of a run was made."""
        counts = self._of_flow.get(change.flow) or self._flow(change.flow)
        state = change.state
        if change.task_run_id is not None:
            counts.task_runs[state] += 1
            return
        counts.flow_runs[state] += 1
        if state is State.RUNNING:
            event = run.event
            if change.attempt == 1 and event is not None and event.at is not None and event.replay is None:
                counts.start.observe(run.running_at - event.at.timestamp())
        elif run.running_at and state in _ENDS:
            counts.duration.observe(change.at.timestamp() - run.running_at)

    def took(self, topic: str, scheduled: Iterable[str], reasons: Iterable[str]) -> None:
        """A record was taken in: the flows that it started, and why it became dead letters."""
        outcome = UNMATCHED
        for reason in reasons:
            outcome = REFUSED
            self.letter(topic, reason)
        for flow in scheduled:
            outcome = STARTED
            counts = self._of_flow.get(flow) or self._flow(flow)
            counts.flow_runs[State.SCHEDULED] += 1
        self.events[self._topic(topic), outcome] += 1

    def letter(self, topic: str, reason: str) -> None:
        """A dead letter was written, of an event of this topic."""
        self.letters[self._topic(topic), reason] += 1

    def _flow(self, flow: str) -> FlowCounts:
        label = self._flow_labels.of(flow)
        counts = self.flows.get(label)
        if counts is None:
            counts = self.flows[label] = FlowCounts()
        if label == flow:
            self._of_flow[flow] = counts
        return counts

    def _topic(self, topic: str) -> str:
        label = self._topic_labels.of(topic)
        if (label, STARTED) not in self.events:
            self.events.update(dict.fromkeys(((label, outcome) for outcome in (STARTED, REFUSED, UNMATCHED)), 0))
            self.letters.update(dict.fromkeys(((label, reason.value) for reason in Reason), 0))
        return label


class Gauges(msgspec.Struct, frozen=True):
    """How one engine is now."""

    #: By flow: runs begun and not ended, and those of them that only wait.
    open_runs: Mapping[str, int]
    parked_runs: Mapping[str, int]
    waiting_runs: int
    untold_changes: int
    #: Each part and "ok", or what it waits for.
    parts: Mapping[str, str]
