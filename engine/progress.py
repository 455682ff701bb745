"""Progress: how one open run goes on, reports in, state changes and calls to submit out; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from engine.executor import Call, Report
from engine.graph import Graph, Node
from engine.retries import next_wait_seconds
from engine.runs import FlowRun, TaskRun
from engine.states import ABSENT, Failure, State, StateChange, later, utc

_UPSTREAM = "upstream"


class Step(msgspec.Struct):
    """What is to be done after something happened to a run."""

    changes: list[StateChange] = []
    #: To be submitted together, at once.
    submit: tuple[Call, ...] = ()
    #: Keys on the cluster that a coming attempt needs out of the way.
    forget: tuple[str, ...] = ()
    #: The call to try again, and after how long.
    retry: tuple[int, float] | None = None


class Progress:
    """One run that this engine drives. The same steps lead on whether the run is new or was begun by another owner."""

    def __init__(self, run: FlowRun, graph: Graph, epoch: int) -> None:
        self.run = run
        self.graph = graph
        self.started_at = 0.0
        #: Set when the run's own end has been made; nothing follows it.
        self.is_ended = False
        #: Whether the result stayed on the cluster.
        self.keeps_result = False
        self._epoch = epoch
        self._failure = run.failure
        self._result: bytes | None = graph.result
        self._result_ref: str | None = None
        self._reason: str | None = None
        self._attempts = {node.call.index: max(1, self._task(node).attempt) for node in graph.nodes}
        self._pending = {node.call.index for node in graph.nodes if not self._has_ended(node)}
        #: Calls between two attempts: what is heard of them is late, and nothing that needs them may be submitted.
        self._waiting: set[int] = set()
        returning = next((call for call in graph.calls if call.returns), None)
        if returning is not None and self._failure is None:
            self._pending.add(returning.index)  # its report brings the result, even where its end was told before

    def begin(self, now: float) -> Step:
        """Start the run, or go on with it after a change of owner."""
        step = Step(changes=[])
        self.started_at = now
        if self.run.state is State.SCHEDULED:
            step.changes.append(self.run.advance(State.RUNNING, now, self._epoch))
        for node in self.graph.nodes:
            if self._task(node).state is None:
                parents, map_index = node.parents, node.map_index
                step.changes.append(self._advance(node, State.SCHEDULED, now, 0, parents=parents, map_index=map_index))
        if self._failure is not None:
            self._cancel_downstream_of_failed(step, now)
        for node in self.graph.nodes:
            if self._task(node).state is State.RETRYING:
                # The wait is not held again: it began with the owner that is gone.
                self._attempts[node.call.index] += 1
                step.forget += self._failed_keys(node.call.index)
        step.submit = self._calls(self._pending)
        self._finish(step, now)
        return step

    def fail(self, failure: Failure, now: float, *, crashed: bool = False) -> Step:
        """End a run whose graph could not be made."""
        self._failure = (State.CRASHED if crashed else State.FAILED, failure)
        self._pending.clear()
        step = Step(changes=[])
        if self.run.state is State.SCHEDULED:
            step.changes.append(self.run.advance(State.RUNNING, now, self._epoch))
        self._finish(step, now)
        return step

    def report(self, report: Report, now: float) -> Step:
        """Something was heard of a call. Reports may come twice, late, or from an attempt that is over."""
        step = Step(changes=[])
        if self.is_ended or report.index in self._waiting:
            return step
        if report.index >= len(self.graph.nodes):
            if report.index in self._pending:
                self._report_collect(step, report, now)
            return step
        node = self.graph.nodes[report.index]
        if report.attempt < self._attempts[report.index]:
            return step
        if report.index not in self._pending:
            if not self._is_lost(node, report):
                return step
            self._pending.add(report.index)
        # A later attempt than ours was submitted by an owner that died before its RETRYING was on the topic.
        self._attempts[report.index] = report.attempt
        if report.started_at and self._task(node).state in (State.SCHEDULED, State.RETRYING):
            started = self._advance(node, State.RUNNING, report.started_at, report.attempt, worker=report.worker)
            step.changes.append(started)
        if report.state is State.COMPLETED:
            self._complete(step, node, report)
        elif report.state is State.FAILED:
            self._fail(step, node, report)
        elif report.state is State.CRASHED:
            self._end_task(step, node, State.CRASHED, report)
        self._finish(step, now)
        return step

    def retry(self, index: int) -> Step:
        """The wait before the next attempt of a call is over."""
        self._waiting.discard(index)
        if self.is_ended or index not in self._pending:
            return Step()
        self._attempts[index] += 1
        needed = {index, *self.graph.downstream(index)}
        if self.graph.collect is not None:
            needed.add(self.graph.collect.index)
        return Step(submit=self._calls(needed & self._pending))

    def resubmit(self) -> Step:
        """The cluster has lost everything: what is pending, and what that needs, once more."""
        return Step(submit=() if self.is_ended else self._calls(self._pending))

    def _complete(self, step: Step, node: Node, report: Report) -> None:
        self._pending.discard(report.index)
        if not self._has_ended(node):
            step.changes.append(self._advance(node, State.COMPLETED, report.at, report.attempt))
        if node.call.returns:
            self._keep(report)

    def _fail(self, step: Step, node: Node, report: Report) -> None:
        wait_seconds = next_wait_seconds(
            node.retry, report.attempt, is_final=report.is_final, retry_after_seconds=report.retry_after_seconds
        )
        if wait_seconds is None:
            self._end_task(step, node, State.FAILED, report)
            return
        if not self._has_ended(node):  # else its end was told before its result was lost
            at = later(utc(report.at), wait_seconds)
            retrying = self._advance(node, State.RETRYING, report.at, report.attempt, error=report.error, next_attempt_at=at)
            step.changes.append(retrying)
        self._waiting.add(report.index)
        step.forget = self._failed_keys(report.index)
        step.retry = (report.index, wait_seconds)

    def _end_task(self, step: Step, node: Node, state: State, report: Report) -> None:
        error = report.error or Failure("Unknown", "the cluster gave no reason")
        self._pending.discard(report.index)
        if not self._has_ended(node):
            step.changes.append(self._advance(node, state, report.at, report.attempt, error=error))
        if self._failure is None:
            self._failure = (state, error)
        self._cancel(step, self.graph.downstream(report.index), report.at)
        self._pending.discard(len(self.graph.nodes))  # a composite result is not put together any more

    def _cancel_downstream_of_failed(self, step: Step, now: float) -> None:
        for node in self.graph.nodes:
            if self._task(node).state in (State.FAILED, State.CRASHED, State.CANCELLED):
                self._cancel(step, self.graph.downstream(node.call.index), now)

    def _cancel(self, step: Step, indices: Iterable[int], at: float) -> None:
        for index in indices:
            node = self.graph.nodes[index]
            self._pending.discard(index)
            if not self._has_ended(node):
                attempt = self._task(node).attempt
                step.changes.append(self._advance(node, State.CANCELLED, at, attempt, reason=_UPSTREAM))

    def _report_collect(self, step: Step, report: Report, now: float) -> None:
        if report.state is State.COMPLETED:
            self._keep(report)
        elif report.state in (State.FAILED, State.CRASHED):
            if self._failure is None:
                self._failure = (report.state, report.error or Failure("Unknown", "the cluster gave no reason"))
        else:
            return
        self._pending.discard(report.index)
        self._finish(step, now)

    def _keep(self, report: Report) -> None:
        self._result = report.result
        if report.result is None:
            self._result_ref = f"dask:variable/run-{self.run.run_id}"
            self._reason = report.kept
            self.keeps_result = True

    def _finish(self, step: Step, now: float) -> None:
        """Make the run's own end once nothing is pending: always its last change."""
        if self._pending or self.is_ended:
            return
        self.is_ended = True
        if self._failure is None:
            result = ABSENT if self._result is None else msgspec.Raw(self._result)
            details: dict[str, Any] = {"result": result, "result_ref": self._result_ref, "reason": self._reason}
            step.changes.append(self.run.advance(State.COMPLETED, now, self._epoch, **details))
        else:
            state, error = self._failure
            step.changes.append(self.run.advance(state, now, self._epoch, error=error))

    def _calls(self, indices: Iterable[int]) -> tuple[Call, ...]:
        """These calls and all they need, in call order; what the cluster has is attached to, not run again."""
        calls = self.graph.calls
        # What needs a call that waits goes with that call's next attempt: submitted now, it would take the wait away.
        held_back = set(self._waiting)
        for call in calls:
            if not held_back.isdisjoint(call.dependencies):
                held_back.add(call.index)
        needed = self._with_dependencies(set(indices) - held_back)
        return tuple(self._with_attempt(call) for call in calls if call.index in needed)

    def _with_dependencies(self, indices: set[int]) -> set[int]:
        needed = set(indices)
        for call in reversed(self.graph.calls):
            if call.index in needed:
                needed.update(call.dependencies)
        return needed

    def _is_lost(self, node: Node, report: Report) -> bool:
        """Whether a result that was told of is gone, failed when it was made again, and is still needed."""
        has_failed = report.state in (State.FAILED, State.CRASHED)
        was_told = self._task(node).state is State.COMPLETED
        return has_failed and was_told and report.index in self._with_dependencies(self._pending)

    def _with_attempt(self, call: Call) -> Call:
        attempt = self._attempts.get(call.index, 1)
        return call if call.attempt == attempt else msgspec.structs.replace(call, attempt=attempt)

    def _failed_keys(self, index: int) -> tuple[str, ...]:
        """Keys that must go before the next attempt: Dask has marked all that depends on a failed one as erred."""
        erred = {index, *self.graph.downstream(index)}
        return tuple(call.key for call in self.graph.calls if call.index in erred or call is self.graph.collect)

    def _task(self, node: Node) -> TaskRun:
        return self.run.tasks.get(node.task_run_id) or _UNKNOWN

    def _has_ended(self, node: Node) -> bool:
        state = self._task(node).state
        return state is not None and state.is_end

    def _advance(self, node: Node, state: State, at: float, attempt: int, **details: Any) -> StateChange:
        return self.run.advance_task(node.call.task, node.task_run_id, state, attempt, at, self._epoch, **details)


_UNKNOWN = TaskRun()
