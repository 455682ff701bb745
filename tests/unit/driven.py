"""Runs led in tests as the engine does it, without an engine: reports in, changes, calls and feeds out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine import task
from engine.executor import Call, Report
from engine.flows import Flow
from engine.planning import Advance, PlannedWait
from engine.progress import Progress
from engine.recovery import heard
from engine.runs import FlowRun
from engine.states import State, StateChange
from engine.steps import Step
from tests.unit.recorded import BAD, RUN_ID, Gone, declared, scheduled


@task
def t(*needed: Any) -> Any:
    """What it returns is never asked for: tests say what was reported."""


def dag(*dependencies: tuple[int, ...], returns: int | None = None, collect: tuple[int, ...] | None = None) -> Any:
    """A flow whose call i takes the results of ``dependencies[i]``; it returns a call, a composite of calls, or 7."""

    def fulfil() -> Any:
        handles: list[Any] = []
        for needed in dependencies:
            handles.append(t(*(handles[index] for index in needed)))
        if collect is not None:
            return [handles[index] for index in collect]
        return 7 if returns is None else handles[returns]

    return fulfil


ONE = dag((), returns=0)
CHAIN = dag((), (0,), returns=1)
DIAMOND = dag((), (0,), (0,), (1, 2), returns=3)


def rebuilt(log: Sequence[StateChange]) -> FlowRun:
    """The run as another owner knows it from the log."""
    run = FlowRun(scheduled(), 5)
    for change in log:
        run.apply(change)
    return run


def short(changes: Sequence[StateChange]) -> list[str]:
    return [f"{'run' if c.task_run_id is None else c.task_run_id.rpartition('/')[2]} {c.state}" for c in changes]


class Driven:
    """A run under way, with everything that was told of it."""

    def __init__(
        self, body: Callable[..., Any] | Flow[..., Any], log: Sequence[StateChange] = (), *, window: int = 1_000, epoch: int = 9
    ) -> None:
        flow = body if isinstance(body, Flow) else declared(body)
        self.run = rebuilt(log)
        self.progress = Progress(self.run, epoch, is_async=flow.is_async, window=window)
        self.told: list[StateChange] = []
        self.submitted: list[str] = []
        self.calls: dict[str, Call] = {}
        self.sleeps: dict[str, float] = {}
        self.waits: dict[str, PlannedWait] = {}
        self.fetches: list[str] = []
        self.step = Step()
        self.take(self.progress.begin(10.0))
        self.gone = Gone(flow, heard(self.run), run=self.run, at=self.run.running_at)
        self.go_on(self.gone.last)

    def take(self, step: Step) -> Step:
        self.step = step
        self.told += step.changes
        self.submitted = [call.index for call in step.submit]
        self.calls |= {call.index: call for call in step.submit}
        self.sleeps |= dict(step.sleeps)
        self.waits |= {wait.index: wait for wait in step.waits}
        for index in step.dropped:
            self.sleeps.pop(index, None)
            self.waits.pop(index, None)
        if step.feeds:
            self.go_on(self.gone.feed(*step.feeds))
        return step

    def go_on(self, advance: Advance) -> None:
        if advance.fetch is not None:
            self.fetches.append(advance.fetch)
        self.take(self.progress.plan(advance.planned, advance.outcome, advance.handled, 10.0))

    def hear(self, index: str | int, state: State, *, attempt: int = 1, started_at: float = 11.0, **fields: Any) -> list[str]:
        """What is told after a report."""
        if state in (State.FAILED, State.CRASHED):
            fields.setdefault("error", BAD)
        before = len(self.told)
        self.take(self.progress.report(Report(RUN_ID, f"{index}", state, attempt, started_at, 12.0, "tcp://w", **fields), 13.0))
        return short(self.told[before:])

    def do(self, step: Step) -> list[str]:
        """What is told after anything else."""
        before = len(self.told)
        self.take(step)
        return short(self.told[before:])

    def retry(self, index: str | int) -> list[tuple[str, int]]:
        """What is submitted when the wait before the next attempt is over."""
        return [(call.index, call.attempt) for call in self.take(self.progress.retry(f"{index}")).submit]
