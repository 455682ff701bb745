"""A run under way: its progress, what is to come of it, and what must wait until something is on the state topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from engine.executor import Call, Submission
from engine.ledger import Ledger
from engine.progress import Progress
from engine.states import Envelope, StateChange
from engine.trace_contexts import attempt_context, is_sampled


class Driven:
    """One run that the driver leads. It is replaced when its flow is tried again."""

    __slots__ = ("_held", "_timers", "_undecided", "context", "envelope", "has_submitted", "ledger", "progress")

    def __init__(self, progress: Progress, ledger: Ledger, app: str, context: str) -> None:
        self.progress = progress
        self.ledger = ledger
        #: What its records have in common.
        self.envelope = Envelope.of(app, progress.run.run_id)
        #: The run's span.
        self.context = context
        #: Whether the cluster has heard of it from this owner.
        self.has_submitted = False
        #: Retries, sleeps and timeouts that are to come, by index.
        self._timers: dict[str, asyncio.TimerHandle] = {}
        #: Changes that only this engine could tell and that are not on the topic yet, and the calls that follow from them.
        self._undecided = 0
        self._held: list[Call] = []

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.progress.run.run_id

    def context_of(self, change: StateChange) -> str:
        """The span that a change belongs to: that of the attempt, or the run's."""
        if change.task_run_id is None or not change.attempt or not is_sampled(self.context):
            return self.context
        parent = self.progress.graph.context_of(change.task_run_id, self.context)
        return attempt_context(parent, change.task_run_id, change.attempt)

    def submission(self, calls: Sequence[Call]) -> Submission | None:
        """These calls as they are to be submitted; None where there are none, or where they have to wait.

        Without calls, too, an open run is submitted once: its final future is there from then on.
        """
        if self._undecided:
            self._held += calls
            return None
        if not calls and (self.has_submitted or self.progress.run.state.is_end):
            return None
        ledger, is_tried_again = self.ledger, self.progress.policy is not None
        is_anew, self.has_submitted = not self.has_submitted, True
        return Submission(self.run_id, ledger.partition, ledger.epoch, tuple(calls), is_anew, is_tried_again)

    def begin_anew(self) -> None:
        """The cluster knows nothing of it any more."""
        self.has_submitted = False

    def decide(self) -> None:
        """This engine alone knows of something that it is about to tell: what follows waits until it is on the topic.

        Else the next owner, who would decide anew, could find calls on the cluster that follow from another decision.
        """
        self._undecided += 1

    def decided(self) -> Submission | None:
        """One such change is on the topic; answers what may be submitted now."""
        self._undecided -= 1
        if self._undecided:
            return None
        held, self._held = self._held, []
        return self.submission(held)

    def later(self, index: str, seconds: float, action: Callable[[], None]) -> None:
        """Do something for the call ``index``, in place of what was to be done for it."""

        def act() -> None:
            self._timers.pop(index, None)
            action()

        self.drop_timer(index)
        self._timers[index] = asyncio.get_running_loop().call_later(max(0.0, seconds), act)

    def drop_timer(self, index: str) -> None:
        """Nothing is to be done for the call any more."""
        if (timer := self._timers.pop(index, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """Nothing is to come any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
