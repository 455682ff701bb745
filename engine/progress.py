"""Progress: how one open run goes on, reports in, state changes and calls to submit out; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from engine.blame import Blame
from engine.endings import ending
from engine.executor import Call, Report
from engine.failures import failure_of
from engine.graph import Graph, Node
from engine.parking import Parking
from engine.planning import Feed, Outcome, Planned, PlannedCall, PlannedEnd, PlannedMap, PlannedWait
from engine.recovery import BAD, above_open_children, failures
from engine.retries import Retry
from engine.runs import FlowRun, logical
from engine.states import ABSENT, Failure, State, StateChange, utc
from engine.steps import Step
from engine.tries import Tries

_UPSTREAM = "upstream"


class Progress:
    """One attempt of a run that this engine drives.

    The same steps lead on whether the run is new or was begun by another owner.
    """

    def __init__(
        self,
        run: FlowRun,
        epoch: int,
        *,
        is_async: bool = False,
        retry: Retry | None = None,
        max_tasks: int = 100_000,
        window: int = 1_000,
    ) -> None:
        """``window`` is about how many elements of maps may be on the cluster at a time."""
        self.run = run
        self.graph = Graph(run.run_id, max_tasks, run.actual_index)
        self.parking = Parking(run, epoch)
        #: Set when the run's own end has been made, or its next attempt is waited for; nothing follows here.
        self.is_ended = False
        #: Whether the result stayed on the cluster.
        self.keeps_result = False
        self._epoch = epoch
        self._is_async = is_async
        self._window = window
        #: When its flow is tried again, and how its function has ended.
        self.policy = retry
        self.outcome: Outcome | None = None
        #: What the call said that the flow's result is of.
        self._result: Report | None = None
        self._tries = Tries()
        #: Calls that have not ended, or whose value has not been heard of.
        self._pending: set[str] = set()
        self._submitted: set[str] = set()
        #: Elements of maps among what is pending.
        self._elements = 0
        self._blame = Blame()
        #: Calls whose value was lost after it had been told of.
        self._remade: set[str] = set()
        #: The tasks above open children that are known from the log: they have to be heard of again.
        self._above = above_open_children(run)
        #: What was heard of calls before they were nodes here: another owner made them, and it is told but once.
        self._early: dict[str, list[Report]] = {}

    @property
    def is_parked(self) -> bool:
        """Whether nothing of it is on the cluster: it waits for time or an event, and takes nobody's place."""
        return not self._pending and len(self.parking) > 0

    def begin(self, now: float) -> Step:
        """Start the run, or its next attempt, or go on with it after a change of owner."""
        step = Step()
        if self.run.state in (State.SCHEDULED, State.RETRYING):
            step.changes.append(self.run.advance(State.RUNNING, now, self._epoch))
        for index, state, failure in failures(self.run):
            self._blame.fail(index, state, failure)
        self._blame.handle(self.run.handled)
        return step

    def plan(self, planned: Sequence[Planned], outcome: Outcome | None, handled: Iterable[str], now: float) -> Step:
        """The flow has gone on: it has called these, dealt with the failures of ``handled``, and perhaps ended."""
        step = Step()
        if self.is_ended:
            return step  # it was cancelled while its flow was gone through
        made: list[Node] = []
        self._blame.handle(handled)
        for one in planned:
            if isinstance(one, PlannedCall):
                node = self.graph.plan_call(one)
                if node is not None:
                    made.append(node)
                else:
                    self._schedule_unresolved(step, one, now)
            elif isinstance(one, PlannedMap):
                self.graph.plan_map(one)
            elif isinstance(one, PlannedEnd):
                step.changes += self.parking.drop(one.index, now)
                step.dropped.append(one.index)
            elif (parked := self.parking.park(one, now)) is not None:
                step.changes += parked[0]
                step.sleeps += [(one.index, parked[1])] if parked[1] is not None else []
                step.waits += [one] if isinstance(one, PlannedWait) else []
        if outcome is not None:
            self.outcome = outcome
        self._settle(step, made, now)
        return step

    def report(self, report: Report, now: float) -> Step:
        """Something was heard of a call. Reports may come twice, late, or from an attempt that is over."""
        step = Step()
        self._take(step, report, now)
        return step

    def retry(self, index: str) -> Step:
        """The wait before the next attempt of a call is over."""
        again = [] if self.is_ended else self._tries.go_on(index, self.graph, self._pending.__contains__)
        self._submitted.difference_update(again[:1])
        return Step(submit=self._calls(again))

    def wake(self, index: str, now: float, *, event: bytes | None = None, error: Failure | None = None) -> Step:
        """A sleep is over, an event has been found, or waiting for one is over: without it, or with an error."""
        woken = None if self.is_ended else self.parking.wake(index, now, event, error)
        if woken is None:
            return Step()
        if error is not None:
            self._blame.fail(index, State.FAILED, error)
        return Step(changes=[woken[0]], feeds=[woken[1]], dropped=[index], is_decision=True)

    def remake(self, index: str) -> Step:
        """A value that an async flow needs is lost: the call is run again, whose end was told before."""
        self._pending.add(index)
        self._remade.add(index)
        self._submitted.discard(index)
        return Step(submit=self._calls([index]))

    def resubmit(self) -> Step:
        """The cluster has lost everything: what is pending, and what that needs, once more."""
        if self.is_ended:
            return Step()
        self._submitted.clear()
        self._early.clear()
        return Step(submit=self._calls(self._tries.lose(self.graph, self._pending)))

    def _take(self, step: Step, report: Report, now: float) -> None:
        if self.is_ended:
            return
        index = logical(report.index)
        node = self.graph.nodes.get(index)
        if node is None:
            self._early.setdefault(index, []).append(report)
            return
        made = [self.graph.add_child(call) for call in report.spawned if call.index not in self.graph.nodes]
        if self._is_news(index, node, report):
            self._hear(step, index, node, report)
        if report.tail and report.index == node.call.index:
            # Also where its end is no news: only the report says what its value waits for.
            self.graph.add_tail(index, report.tail)
            if (lost := self._blame.cause(report.tail)) is not None:
                self._cancel(step, [index, *self.graph.downstream(index)], report.at, lost)
        for child in made:
            self._submitted.add(child.call.index)  # by its parent
        self._settle(step, made, now)

    # --- What can be submitted ------------------------------------------------------------------------------------------

    def _settle(self, step: Step, made: list[Node], now: float) -> None:
        """Make nodes of what can be, submit them, and end the run where nothing is left: after every step."""
        entered = [self._enter(step, node, now) for node in made]
        while not self.graph.is_whole:
            room = self._window - self._elements
            more = self.graph.admit(room if room > self._window // 4 else 0)
            for index, error in self.graph.broken.items():
                if index not in self._blame:
                    self._blame.fail(index, State.FAILED, failure_of(error))
                    self._cancel(step, [index, *self.graph.downstream(index)], now, index)
            if not more:
                break
            entered += [self._enter(step, node, now) for node in more]
        if entered:
            step.submit += self._calls([index for index in entered if index in self._pending])
        for index in entered if self._early else ():
            for report in self._early.pop(index, ()):
                self._take(step, report, now)
        self._finish(step, now)

    def _enter(self, step: Step, node: Node, now: float) -> str:
        """A call has become a node: tell it, unless the log has it already, and wait for its end."""
        call = node.call
        index = logical(call.index)
        known = self.run.tasks.get(node.task_run_id) if call.task else None
        if known is None and call.task:
            by = self.graph.nodes[logical(call.spawned_by)].task_run_id if call.spawned_by else None
            step.changes.append(self._tell(node, State.SCHEDULED, now, 0, parents=node.parents, spawned_by=by))
        state = known.state if known is not None else None
        if known is not None and known.attempt and not call.spawned_by:
            # A wait between two attempts is not held again: it began with the owner that is gone. Which attempt a child is at
            # the cluster says: where that has lost it, its parent starts it as new.
            self._tries.see(index, known.attempt + (state is State.RETRYING))
        blamed = self._blame.cause_for(call, node.parents)
        if state in BAD or state is State.CANCELLED:
            self._blame.lose(index, blamed or index)
            self._cancel(step, self.graph.downstream(index), now, blamed or index)
        elif blamed is not None and state is not State.COMPLETED:
            self._cancel(step, [index], now, blamed)
        elif state is not State.COMPLETED or call.is_walked or call.is_final or call.index in self._above:
            # A completed one, too, where it has something to say that the log does not: its value, or its children.
            self._pending.add(index)
            self._elements += "." in index
        return index

    def _schedule_unresolved(self, step: Step, planned: PlannedCall, now: float) -> None:
        """It needs a map that is not whole yet; it is scheduled all the same, as its flow has called it."""
        call = planned.call
        node = Node(call, self.graph.task_run_id(call.task, call.index))
        if call.task and node.task_run_id not in self.run.tasks:
            step.changes.append(self._tell(node, State.SCHEDULED, now, 0, parents=self.graph.parents(planned.inputs)))

    def _calls(self, indices: Iterable[str]) -> tuple[Call, ...]:
        """These calls, and what they need that this owner has not submitted: what the cluster has is attached to."""
        needed = self.graph.with_needed(self._tries.ready(indices, self.graph), self._submitted)
        self._submitted.update(needed)
        return tuple(self.graph.nodes[index].call.at_attempt(self._tries.of(index)) for index in needed)

    # --- What becomes of calls ------------------------------------------------------------------------------------------

    def _is_news(self, index: str, node: Node, report: Report) -> bool:
        if report.index != node.call.index or self._tries.is_late(index, report.attempt):
            return False
        if node.call.spawned_by and report.retry_in_seconds is not None and self.run.has_ended(node.task_run_id):
            return True  # its parent, run again, has started it again and may wait for it
        if index not in self._pending:
            # A result that was told of is gone, and failed when it was made again, while it is still needed.
            is_lost = report.state in BAD and self.run.state_of(node.task_run_id) is State.COMPLETED
            if not is_lost or self._pending.isdisjoint(self.graph.downstream(index)):
                return False
            self._pending.add(index)
        if report.attempt > self._tries.of(index):
            # Submitted by an owner that died before its RETRYING was on the topic.
            self._tries.see(index, report.attempt)
        return True

    def _hear(self, step: Step, index: str, node: Node, report: Report) -> None:
        self._blame.handle(report.handled)
        if report.retry_in_seconds is not None:
            self._tries.see(index, report.attempt)
            self._tries.wait(index)
            step.retries.append((index, report.retry_in_seconds))
        elif report.state is State.RETRYING:
            self._tries.see(index, report.attempt + 1)
        if report.is_retried and self.run.has_told_retry(node.task_run_id, report.attempt):
            return
        if report.started_at and node.call.task and self.run.state_of(node.task_run_id) in (State.SCHEDULED, State.RETRYING):
            step.changes.append(self._tell(node, State.RUNNING, report.started_at, report.attempt, worker=report.worker))
        if report.state is State.COMPLETED:
            self._complete(step, index, node, report)
        elif report.is_retried:
            details = {"error": report.error, "next_attempt_at": report.next_attempt_at, "reason": report.remark}
            step.changes.append(self._tell(node, State.RETRYING, report.at, report.attempt, handled=report.handled, **details))
        elif report.state in BAD:
            self._end_badly(step, index, node, report)

    def _complete(self, step: Step, index: str, node: Node, report: Report) -> None:
        call = node.call
        if not self.run.has_ended(node.task_run_id) and call.task:
            told = self._is_async and report.result is not None
            result = msgspec.Raw(report.result or b"") if told else ABSENT
            details = {"result": result, "length": report.length, "result_ref": report.stored, "handled": report.handled}
            step.changes.append(self._tell(node, State.COMPLETED, report.at, report.attempt, reason=report.remark, **details))
        if report.tail and call.has_news and not report.has_value:
            return  # it has returned, but its value waits for its children's: its continuation will tell
        self._leave(index)
        if self.graph.is_growing and (report.has_value or call.is_walked):
            self.graph.set_length(index, report.length)
        if index in self._remade:
            self._remade.discard(index)
            step.fetch = index
        elif call.is_final:
            self._result = report
            self.keeps_result = report.result is None and report.stored is None
        elif self._is_heard(call):
            task = self.run.tasks[node.task_run_id]
            at = utc(report.at).timestamp()
            step.feeds.append(Feed(index, at, State.COMPLETED, report.result, length=task.length))

    def _end_badly(self, step: Step, index: str, node: Node, report: Report) -> None:
        error = self._blame.fail(index, report.state, report.error)
        self._leave(index)
        if node.call.task and not self.run.has_ended(node.task_run_id):
            details = {"error": error, "reason": report.remark, "handled": report.handled}
            step.changes.append(self._tell(node, report.state, report.at, report.attempt, **details))
        if self._is_heard(node.call):
            step.feeds.append(Feed(index, utc(report.at).timestamp(), report.state, failure=error))
        self._cancel(step, self.graph.downstream(index), report.at, index)

    def _cancel(self, step: Step, indices: Iterable[str], at: float, cause: str) -> None:
        """These will have no value, because ``cause`` has none."""
        for index in indices:
            self._blame.lose(index, cause)
            planned = self.graph.cancel(index)
            node = self.graph.nodes.get(index)
            if node is None and planned is not None:
                node = Node(planned.call, self.graph.task_run_id(planned.call.task, index))
            self._leave(index)
            known = None if node is None else self.run.tasks.get(node.task_run_id)
            if node is None or known is None or self.run.has_ended(node.task_run_id):
                continue  # no task, or told before
            state, failure = self._blame.why(cause)
            blamed = {"error": failure, "cause": self.graph.name_of(cause)} if self._is_heard(node.call) else {}
            step.changes.append(self._tell(node, State.CANCELLED, at, known.attempt, reason=_UPSTREAM, **blamed))
            if self._is_heard(node.call):
                step.feeds.append(Feed(index, utc(at).timestamp(), state, failure=failure, cause=cause))

    def _leave(self, index: str) -> None:
        if index in self._pending:
            self._pending.discard(index)
            self._elements -= "." in index
        self._tries.leave(index)

    def _finish(self, step: Step, now: float) -> None:
        """Make the run's own end once nothing is pending: always its last change."""
        outcome = self.outcome
        if self.is_ended or outcome is None or self._pending or len(self.parking) or not self.graph.is_whole:
            return
        for task_run_id, task in self.run.tasks.items():
            if task.state is not None and not task.state.is_end:
                # From an earlier owner's time; what was run again has not come to it, or has not started it again.
                told = (task_run_id.split("/")[1], task_run_id, State.CANCELLED, task.attempt, now, self._epoch)
                reason = _UPSTREAM if task.spawned_by is None else "not started again"
                step.changes.append(self.run.advance_task(*told, reason=reason))
        self.is_ended = True
        end = ending(self.run, outcome, self._blame.verdict(), self._result, self.policy, now)
        step.changes.append(self.run.advance(end.state, now, self._epoch, **end.details))
        step.begin_again_in_seconds = end.again_in_seconds

    # --- Small parts ----------------------------------------------------------------------------------------------------

    def _is_heard(self, call: Call) -> bool:
        return self._is_async and bool(call.task) and not call.spawned_by

    def _tell(self, node: Node, state: State, at: float, attempt: int, **details: Any) -> StateChange:
        details["map_index"] = node.call.map_index
        return self.run.advance_task(node.call.task, node.task_run_id, state, attempt, at, self._epoch, **details)
