"""Progress: how one open run goes on, reports in, state changes and calls to submit out; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from engine.executor import Call, Report, index_of
from engine.failures import failure_of
from engine.graph import Graph, Node
from engine.parking import Parking
from engine.planning import Feed, Outcome, Planned, PlannedCall, PlannedEnd, PlannedMap, PlannedWait
from engine.runs import FlowRun, TaskRun, index_of_task_run, logical
from engine.states import ABSENT, Failure, State, StateChange, later, utc

_UPSTREAM = "upstream"
_NO_REASON = Failure("Unknown", "the cluster gave no reason")
_BAD = frozenset({State.FAILED, State.CRASHED})


class Step(msgspec.Struct):
    """What is to be done after something happened to a run."""

    changes: list[StateChange] = msgspec.field(default_factory=list)
    #: To be submitted together, at once.
    submit: tuple[Call, ...] = ()
    #: Calls to try again, and after how long.
    retries: list[tuple[str, float]] = msgspec.field(default_factory=list)
    #: What an async flow is to hear, in order.
    feeds: list[Feed] = msgspec.field(default_factory=list)
    #: The call whose value an async flow needs from the cluster is there again.
    fetch: str | None = None
    #: Sleeps and timeouts that have begun: index and when they are over.
    sleeps: list[tuple[str, float]] = msgspec.field(default_factory=list)
    #: Events that are waited for from now on.
    waits: list[PlannedWait] = msgspec.field(default_factory=list)
    #: Sleeps and waits that nobody waits for any more.
    dropped: list[str] = msgspec.field(default_factory=list)
    #: Whether the changes tell what the engine alone has decided: nothing may be submitted before they are on the topic.
    is_decision: bool = False


class Progress:
    """One attempt of a run that this engine drives.

    The same steps lead on whether the run is new or was begun by another owner.
    """

    def __init__(
        self, run: FlowRun, epoch: int, *, is_async: bool = False, max_tasks: int = 100_000, window: int = 1_000
    ) -> None:
        """``window`` is about how many elements of maps may be on the cluster at a time."""
        self.run = run
        self.graph = Graph(run.run_id, max_tasks, run.actual_index)
        self.parking = Parking(run, epoch)
        self.started_at = 0.0
        #: Set when the run's own end has been made, or its next attempt is waited for; nothing follows here.
        self.is_ended = False
        #: Whether the result stayed on the cluster.
        self.keeps_result = False
        #: After how long the flow is to be tried again, where it has failed and may be.
        self.retry_in_seconds: float | None = None
        self._epoch = epoch
        self._is_async = is_async
        self._window = window
        self._outcome: Outcome | None = None
        self._kept: dict[str, Any] = {}
        #: The current attempt of each call that has had more than one.
        self._attempts: dict[str, int] = {}
        #: Calls that have not ended, or whose value has not been heard of.
        self._pending: set[str] = set()
        self._submitted: set[str] = set()
        #: Calls between two attempts: what is heard of them is late.
        self._waiting: set[str] = set()
        #: Those and what needs them, where the cluster has lost all: to be submitted when the wait is over.
        self._held_back: set[str] = set()
        #: Elements of maps among what is pending.
        self._elements = 0
        #: What has failed, in order; one that the flow or a parent has dealt with does not fail the run.
        self._failures: dict[str, tuple[State, Failure]] = {}
        self._handled = set(run.handled)
        #: Calls that have no value and will have none, and the call that is to blame.
        self._valueless: dict[str, str] = {}
        #: Calls whose value was lost after it had been told of.
        self._remade: set[str] = set()
        self._orphans, self._above = run.orphans()
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
        self.started_at = self.run.running_at
        for task_run_id, _ in self.run.ended:
            task = self.run.tasks[task_run_id]
            if task.state in _BAD and task.error is not None and self._is_current(task_run_id, task):
                self._failures[logical(index_of_task_run(task_run_id))] = (task.state, task.error)
        return step

    def history(self) -> list[Feed]:
        """What an async flow has heard before, in order, so that it is taken up where it was."""
        feeds: list[Feed] = []
        for task_run_id, at in self.run.ended:
            task = self.run.tasks[task_run_id]
            if task.spawned_by is None and task.state is not None and self._is_current(task_run_id, task):
                index = logical(index_of_task_run(task_run_id))
                feeds.append(Feed(index, at, task.state, task.result, task.error, length=task.length))
        return feeds

    def plan(self, planned: Sequence[Planned], outcome: Outcome | None, handled: Iterable[str], now: float) -> Step:
        """The flow has gone on: it has called these, dealt with the failures of ``handled``, and perhaps ended."""
        step = Step()
        made: list[Node] = []
        self._handled.update(handled)
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
            self._outcome = outcome
        self._settle(step, made, now)
        return step

    def fail(self, failure: Failure, now: float, *, crashed: bool = False) -> Step:
        """End a run whose flow cannot be gone through at all."""
        return self.plan((), Outcome(State.CRASHED if crashed else State.FAILED, failure), (), now)

    def report(self, report: Report, now: float) -> Step:
        """Something was heard of a call. Reports may come twice, late, or from an attempt that is over."""
        step = Step()
        self._take(step, report, now)
        return step

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
        for child in made:
            self._orphans.discard(child.call.index)
            self._submitted.add(child.call.index)  # by its parent
        self._settle(step, made, now)

    def retry(self, index: str) -> Step:
        """The wait before the next attempt of a call is over."""
        if self.is_ended or index not in self._waiting:
            return Step()
        self._waiting.discard(index)
        self._attempts[index] = self._attempts.get(index, 1) + 1
        self._submitted.discard(index)
        again = [index]
        if index in self._held_back:
            # The cluster has lost what waits for it, too.
            again += (later for later in self.graph.downstream(index) if later in self._pending)
            self._held_back = self._behind_waits()
        return Step(submit=self._calls(one for one in again if one not in self._held_back))

    def wake(self, index: str, now: float, *, event: bytes | None = None, error: Failure | None = None) -> Step:
        """A sleep is over, an event has been found, or waiting for one is over: without it, or with an error."""
        woken = None if self.is_ended else self.parking.wake(index, now, event, error)
        if woken is None:
            return Step()
        if error is not None:
            self._failures[index] = (State.FAILED, error)
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
        for index, node in self.graph.nodes.items() if self._attempts else ():
            if node.call.spawned_by and index in self._waiting:
                # Its parent would start it at once, as if it had never run: better the attempt that comes next.
                self._waiting.discard(index)
                self._attempts[index] = self._attempts.get(index, 1) + 1
            elif node.call.spawned_by and index not in self._pending:
                self._attempts.pop(index, None)
        self._held_back = self._behind_waits()
        return Step(submit=self._calls(self._pending - self._held_back))

    def _behind_waits(self) -> set[str]:
        """Calls that wait for their next attempt, and what needs them."""
        return self._waiting.union(*(self.graph.downstream(index) for index in self._waiting))

    # --- What can be submitted ------------------------------------------------------------------------------------------

    def _settle(self, step: Step, made: list[Node], now: float) -> None:
        """Make nodes of what can be, submit them, and end the run where nothing is left: after every step."""
        entered = [self._enter(step, node, now) for node in made]
        while not self.graph.is_whole:
            room = self._window - self._elements
            more = self.graph.admit(room if room > self._window // 4 else 0)
            for index, error in self.graph.broken.items():
                if index not in self._failures:
                    self._failures[index] = (State.FAILED, failure_of(error))
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
            step.changes.append(
                self._tell(node, State.SCHEDULED, now, 0, parents=node.parents, map_index=call.map_index, spawned_by=by)
            )
        state = known.state if known is not None else None
        blamed = self._blamed(call) if self._valueless or self._failures else None
        if state in _BAD or state is State.CANCELLED:
            if state in _BAD:
                self._cancel(step, self.graph.downstream(index), now, index)
            self._valueless.setdefault(index, index)
        elif blamed is not None and state is not State.COMPLETED:
            self._cancel(step, [index], now, blamed)
        elif state is not State.COMPLETED or call.is_walked or call.is_final or call.index in self._above:
            # A completed one, too, where it has something to say that the log does not: its value, or its children.
            self._pending.add(index)
            self._elements += "." in index
            if known is not None and known.attempt and not call.spawned_by:
                # Of a child the cluster says which attempt it is at: where all is lost its parent starts it as new. A wait between two attempts is not held again: it began with the owner that is gone.
                self._attempts[index] = known.attempt + (state is State.RETRYING)
        return index

    def _schedule_unresolved(self, step: Step, planned: PlannedCall, now: float) -> None:
        """It needs a map that is not whole yet; it is scheduled all the same, as its flow has called it."""
        call = planned.call
        node = Node(call, self.graph.task_run_id(call.task, call.index))
        if call.task and node.task_run_id not in self.run.tasks:
            step.changes.append(self._tell(node, State.SCHEDULED, now, 0, parents=self.graph.parents(planned.inputs)))

    def _calls(self, indices: Iterable[str]) -> tuple[Call, ...]:
        """These calls, and what they need that this owner has not submitted: what the cluster has is attached to."""
        needed: dict[str, None] = {}
        stack = list(indices)
        while stack:
            index = stack.pop()
            if index not in needed and index not in self._submitted and (node := self.graph.nodes.get(index)) is not None:
                needed[index] = None
                stack += [logical(index_of(key)) for key in node.call.dependencies]
        self._submitted.update(needed)
        return tuple(self._with_attempt(index) for index in reversed(needed))

    # --- What becomes of calls ------------------------------------------------------------------------------------------

    def _is_news(self, index: str, node: Node, report: Report) -> bool:
        attempt = self._attempts.get(index, 1)
        if report.index != node.call.index or report.attempt < attempt:
            return False
        if index in self._waiting and report.attempt == attempt:
            return False
        if node.call.spawned_by and report.retry_in_seconds is not None and self._has_ended(node):
            # Its parent, run again, has started it again and may wait for it.
            self._attempts[index] = report.attempt
            return True
        if index not in self._pending:
            # A result that was told of is gone, and failed when it was made again, while it is still needed.
            is_lost = report.state in _BAD and self._state(node) is State.COMPLETED
            if not is_lost or self._pending.isdisjoint(self.graph.downstream(index)):
                return False
            self._pending.add(index)
        if report.attempt > attempt:
            # Submitted by an owner that died before its RETRYING was on the topic.
            self._attempts[index] = report.attempt
            self._waiting.discard(index)
        return True

    def _hear(self, step: Step, index: str, node: Node, report: Report) -> None:
        if report.tail:
            self.graph.add_tail(index, report.tail)
        self._handled.update(report.handled)
        if self._is_told(node, report):
            step.retries.append((index, report.retry_in_seconds or 0.0))
            self._waiting.add(index)
            return
        if report.started_at and node.call.task and self._state(node) in (State.SCHEDULED, State.RETRYING):
            step.changes.append(self._tell(node, State.RUNNING, report.started_at, report.attempt, worker=report.worker))
        if report.state is State.COMPLETED:
            self._complete(step, index, node, report)
        elif report.state is State.FAILED and report.retry_in_seconds is not None:
            if not self._has_ended(node):  # else its end was told before its result was lost
                at, wait_seconds = utc(report.at), report.retry_in_seconds
                details = {"error": report.error, "next_attempt_at": later(at, wait_seconds), "reason": report.remark}
                step.changes.append(
                    self._tell(node, State.RETRYING, report.at, report.attempt, handled=report.handled, **details)
                )
            self._waiting.add(index)
            step.retries.append((index, report.retry_in_seconds))
        elif report.state in _BAD:
            self._end_badly(step, index, node, report)

    def _is_told(self, node: Node, report: Report) -> bool:
        """Whether it is a failed attempt of a child that an earlier owner has told of: the wait begins anew."""
        if report.retry_in_seconds is None or self._state(node) is not State.RETRYING:
            return False
        return self.run.tasks[node.task_run_id].attempt >= report.attempt

    def _complete(self, step: Step, index: str, node: Node, report: Report) -> None:
        call = node.call
        if not self._has_ended(node) and call.task:
            told = self._is_async and report.result is not None
            result = msgspec.Raw(report.result or b"") if told else ABSENT
            details: dict[str, Any] = {"result": result, "length": report.length, "result_ref": report.stored}
            details["handled"] = report.handled
            step.changes.append(self._tell(node, State.COMPLETED, report.at, report.attempt, reason=report.remark, **details))
        lost = next((child for child in report.tail if child in self._valueless), None)
        if lost is not None:
            self._cancel(step, [index, *self.graph.downstream(index)], report.at, self._valueless[lost])
        if report.tail and call.has_news and not report.has_value:
            return  # it has returned, but its value waits for its children's: its continuation will tell
        self._leave(index)
        if self.graph.is_growing and (report.has_value or call.is_walked):
            self.graph.set_length(index, report.length)
        if index in self._remade:
            self._remade.discard(index)
            step.fetch = index
        elif call.is_final:
            self._keep(report)
        elif self._is_heard(call):
            task = self.run.tasks[node.task_run_id]
            at = utc(report.at).timestamp()
            step.feeds.append(Feed(index, at, State.COMPLETED, report.result, length=task.length))

    def _end_badly(self, step: Step, index: str, node: Node, report: Report) -> None:
        error = report.error or _NO_REASON
        self._leave(index)
        if node.call.task and not self._has_ended(node):
            details = {"error": error, "reason": report.remark, "handled": report.handled}
            step.changes.append(self._tell(node, report.state, report.at, report.attempt, **details))
        self._failures.setdefault(index, (report.state, error))
        self._valueless.setdefault(index, index)
        if self._is_heard(node.call):
            step.feeds.append(Feed(index, utc(report.at).timestamp(), report.state, failure=error))
        self._cancel(step, self.graph.downstream(index), report.at, index)

    def _cancel(self, step: Step, indices: Iterable[str], at: float, cause: str) -> None:
        """These will have no value, because ``cause`` has none."""
        for index in indices:
            self._valueless.setdefault(index, cause)
            planned = self.graph.cancel(index)
            node = self.graph.nodes.get(index)
            if node is None and planned is not None:
                node = Node(planned.call, self.graph.task_run_id(planned.call.task, index))
            self._leave(index)
            if node is None or not node.call.task:
                continue
            if (known := self.run.tasks.get(node.task_run_id)) is not None and not self._has_ended(node):
                step.changes.append(self._tell(node, State.CANCELLED, at, known.attempt, reason=_UPSTREAM))
            if self._is_heard(node.call):
                state, failure = self._failures.get(cause, (State.FAILED, _NO_REASON))
                step.feeds.append(Feed(index, utc(at).timestamp(), state, failure=failure, cause=cause))

    def _leave(self, index: str) -> None:
        if index in self._pending:
            self._pending.discard(index)
            self._elements -= "." in index
        self._waiting.discard(index)

    def _keep(self, report: Report) -> None:
        if report.result is not None:
            self._kept = {"result": msgspec.Raw(report.result)}
        else:
            self._kept = {"result_ref": report.stored or f"dask:variable/run-{self.run.run_id}", "reason": report.kept}
            self.keeps_result = report.stored is None

    def _finish(self, step: Step, now: float) -> None:
        """Make the run's own end once nothing is pending: always its last change."""
        outcome = self._outcome
        if self.is_ended or outcome is None or self._pending or len(self.parking) or not self.graph.is_whole:
            return
        for task_run_id, task in self.run.tasks.items() if self._orphans else ():
            if index_of_task_run(task_run_id) in self._orphans:
                # From an earlier owner's time; its parent, run again, has not started it again.
                name, attempt = task_run_id.split("/")[1], task.attempt
                step.changes.append(
                    self.run.advance_task(
                        name, task_run_id, State.CANCELLED, attempt, now, self._epoch, reason="not started again"
                    )
                )
        self.is_ended = True
        failed = None if outcome.failure is None else (outcome.state, outcome.failure)
        if failed is None:
            failed = next((end for index, end in self._failures.items() if index not in self._handled), None)
        if failed is None:
            details = {"result": msgspec.Raw(outcome.result)} if outcome.result is not None else self._kept
            step.changes.append(self.run.advance(State.COMPLETED, now, self._epoch, **details))
        else:
            step.changes.append(self.run.advance(failed[0], now, self._epoch, error=failed[1]))

    # --- Small parts ----------------------------------------------------------------------------------------------------

    def context_of(self, task_run_id: str, default: str) -> str:
        """The span that those of a task run are under."""
        node = self.graph.nodes.get(logical(index_of_task_run(task_run_id)))
        return default if node is None else node.call.traceparent

    def _blamed(self, call: Call) -> str | None:
        """The call that is to blame for a value that this one needs and will not have."""
        needed = (logical(index_of(key)) for key in call.dependencies)
        return next((self._valueless[index] for index in needed if index in self._valueless), None)

    def _is_heard(self, call: Call) -> bool:
        return self._is_async and bool(call.task) and not call.spawned_by

    def _is_current(self, task_run_id: str, task: TaskRun) -> bool:
        """Whether a task run counts in this attempt of the flow: what failed in an earlier one is made anew."""
        is_kept = task.state is State.COMPLETED or task_run_id.split("/")[1].startswith("engine.")
        return is_kept or task.spawned_by is not None or self.run.generation(task_run_id) == max(1, self.run.attempt)

    def _with_attempt(self, index: str) -> Call:
        call, attempt = self.graph.nodes[index].call, self._attempts.get(index, 1)
        return call if call.attempt == attempt else msgspec.structs.replace(call, attempt=attempt)

    def _state(self, node: Node) -> State | None:
        known = self.run.tasks.get(node.task_run_id)
        return None if known is None else known.state

    def _has_ended(self, node: Node) -> bool:
        state = self._state(node)
        return state is not None and state.is_end

    def _tell(self, node: Node, state: State, at: float, attempt: int, **details: Any) -> StateChange:
        return self.run.advance_task(node.call.task, node.task_run_id, state, attempt, at, self._epoch, **details)
