"""engine.progress: how a run goes on, from reports to state changes and submissions, also for a second owner."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.executor import Call, Report
from engine.graph import Graph, Node
from engine.progress import Progress, Step
from engine.retries import Retry, fixed
from engine.runs import FlowRun, task_run_id_of
from engine.states import TRANSITIONS, Failure, State, StateChange, utc

RUN_ID = "0123456789abcdef" * 2
OTHER = Failure("ValueError", "bad", "Traceback …")


def call(index: int, dependencies: tuple[int, ...], *, task: str = "t", returns: bool = False) -> Call:
    return Call(
        index=index,
        task=task,
        function="m:t",
        flow="fulfil",
        run_id=RUN_ID,
        arguments=b"",
        dependencies=dependencies,
        attempt=1,
        depth=0,
        is_async=False,
        returns=returns,
        inline_result_bytes=100,
        timeout_seconds=None,
        traceparent="",
        scheduled_at=0.0,
    )


def graph_of(
    *dependencies: tuple[int, ...], returns: int | None = None, collect: tuple[int, ...] | None = None, attempts: int = 1
) -> Graph:
    """A graph whose node i depends on ``dependencies[i]``; it returns a node, a composite of nodes, or a plain value."""
    retry = Retry(attempts, wait=fixed(2.0)) if attempts > 1 else None
    nodes = tuple(
        Node(
            call(index, needed, returns=index == returns),
            task_run_id_of(RUN_ID, "t", index),
            None,
            tuple(task_run_id_of(RUN_ID, "t", parent) for parent in needed),
            retry,
        )
        for index, needed in enumerate(dependencies)
    )
    collecting = None if collect is None else call(len(nodes), collect, task="", returns=True)
    return Graph(nodes, collecting, b"7" if returns is None and collect is None else None)


ONE = graph_of((), returns=0)
DIAMOND = graph_of((), (0,), (0,), (1, 2), returns=3)


def scheduled() -> StateChange:
    return StateChange(run_id=RUN_ID, flow="fulfil", state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1.0))


class Driven:
    """A run under way, with everything that was told of it."""

    def __init__(self, graph: Graph, run: FlowRun | None = None) -> None:
        self.progress = Progress(run or FlowRun(scheduled(), 5), graph, epoch=9)
        self.told: list[StateChange] = []
        self.submitted: list[int] = []
        self.step = Step()
        self.take(self.progress.begin(10.0))

    def take(self, step: Step) -> Step:
        self.step = step
        self.told += step.changes
        self.submitted = [call.index for call in step.submit]
        return step

    def hear(self, index: int, state: State, *, attempt: int = 1, started_at: float = 11.0, **fields: Any) -> list[str]:
        """What is told after a report."""
        if state in (State.FAILED, State.CRASHED):
            fields.setdefault("error", OTHER)
        report = Report(RUN_ID, index, state, attempt, started_at, 12.0, "tcp://w", **fields)
        return short(self.take(self.progress.report(report, 13.0)).changes)

    def retry(self, index: int) -> Step:
        return self.take(self.progress.retry(index))


def short(changes: list[StateChange]) -> list[str]:
    return [f"{'run' if c.task_run_id is None else c.task_run_id.rpartition('/')[2]} {c.state}" for c in changes]


class TestOneOwner:
    def test_one_task(self) -> None:
        driven = Driven(ONE)
        assert short(driven.told) == ["run RUNNING", "0 SCHEDULED"]
        assert driven.submitted == [0]
        assert driven.hear(0, State.RUNNING) == ["0 RUNNING"]
        assert driven.hear(0, State.COMPLETED, result=b"42") == ["0 COMPLETED", "run COMPLETED"]
        assert bytes(driven.told[-1].result or b"") == b"42"
        assert [change.seq for change in driven.told] == [1, 2, 3, 4, 5]
        assert {change.epoch for change in driven.told} == {9}
        assert driven.progress.is_ended

    def test_an_end_that_comes_first_tells_the_start_first_at_the_workers_time(self) -> None:
        driven = Driven(ONE)
        assert driven.hear(0, State.COMPLETED, result=b"1") == ["0 RUNNING", "0 COMPLETED", "run COMPLETED"]
        running = driven.told[2]
        assert (running.at, running.worker, running.attempt) == (utc(11.0), "tcp://w", 1)
        assert driven.told[3].at == utc(12.0)

    def test_a_diamond_is_submitted_whole_and_told_with_parents(self) -> None:
        driven = Driven(DIAMOND)
        assert driven.submitted == [0, 1, 2, 3]
        assert driven.told[4].parents == (f"{RUN_ID}/t/1", f"{RUN_ID}/t/2")
        for index in (0, 2, 1):
            driven.hear(index, State.COMPLETED)
        assert driven.hear(3, State.COMPLETED, result=b"1")[-1] == "run COMPLETED"

    def test_a_run_without_tasks_ends_at_once_with_its_plain_result(self) -> None:
        driven = Driven(graph_of())
        assert short(driven.told) == ["run RUNNING", "run COMPLETED"]
        assert bytes(driven.told[-1].result or b"") == b"7"

    def test_a_plain_result_waits_for_all_tasks(self) -> None:
        driven = Driven(graph_of((), ()))
        assert driven.hear(1, State.COMPLETED) == ["1 RUNNING", "1 COMPLETED"]
        assert driven.hear(0, State.COMPLETED)[-1] == "run COMPLETED"
        assert bytes(driven.told[-1].result or b"") == b"7"

    def test_a_failure_cancels_what_needs_it_and_fails_the_run(self) -> None:
        driven = Driven(DIAMOND)
        driven.hear(0, State.COMPLETED)
        assert driven.hear(1, State.FAILED) == ["1 RUNNING", "1 FAILED", "3 CANCELLED"]
        assert driven.told[-1].reason == "upstream"
        assert driven.told[-2].error == OTHER
        assert not driven.progress.is_ended  # the independent branch goes on
        assert driven.hear(2, State.COMPLETED) == ["2 RUNNING", "2 COMPLETED", "run FAILED"]
        assert driven.told[-1].error == OTHER

    def test_the_first_of_two_failures_is_the_runs(self) -> None:
        driven = Driven(graph_of((), ()))
        driven.hear(1, State.FAILED, error=Failure("First", ""))
        driven.hear(0, State.CRASHED, error=Failure("Second", ""))
        assert (driven.told[-1].state, driven.told[-1].error) == (State.FAILED, Failure("First", ""))

    def test_infrastructure_that_fails_crashes_the_run_even_before_it_began(self) -> None:
        driven = Driven(graph_of((), (0,), returns=1))
        assert driven.hear(0, State.CRASHED, started_at=0.0) == ["0 CRASHED", "1 CANCELLED", "run CRASHED"]

    @pytest.mark.parametrize("state", [State.RUNNING, State.COMPLETED, State.FAILED, State.CRASHED])
    def test_repeated_and_late_reports_change_nothing(self, state: State) -> None:
        driven = Driven(graph_of((), ()))
        driven.hear(0, State.COMPLETED)
        assert driven.hear(0, state) == []
        driven.hear(1, State.RUNNING)
        assert driven.hear(1, State.RUNNING) == []
        driven.hear(1, State.COMPLETED)
        assert driven.hear(1, state) == []

    def test_a_composite_result_is_put_together_and_is_no_task_run(self) -> None:
        driven = Driven(graph_of((), (), collect=(0, 1)))
        assert driven.submitted == [0, 1, 2]
        driven.hear(0, State.COMPLETED)
        assert driven.hear(1, State.COMPLETED) == ["1 RUNNING", "1 COMPLETED"]
        assert driven.hear(2, State.RUNNING) == []
        assert driven.hear(2, State.COMPLETED, result=b"[1,2]") == ["run COMPLETED"]
        assert bytes(driven.told[-1].result or b"") == b"[1,2]"

    def test_a_composite_result_of_a_failed_task_is_not_waited_for(self) -> None:
        driven = Driven(graph_of((), (), collect=(0, 1)))
        driven.hear(0, State.COMPLETED)
        assert driven.hear(1, State.FAILED)[-1] == "run FAILED"

    def test_a_composite_result_may_fail_itself(self) -> None:
        driven = Driven(graph_of((), collect=(0,)))
        driven.hear(0, State.COMPLETED)
        assert driven.hear(1, State.CRASHED) == ["run CRASHED"]

    def test_a_result_that_stayed_says_where_and_why(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, State.COMPLETED, kept="too large: 9 bytes")
        end = driven.told[-1]
        assert bytes(end.result or b"") == b""
        assert end.reason == "too large: 9 bytes"
        assert RUN_ID in (end.result_ref or "")
        assert driven.progress.keeps_result

    @pytest.mark.parametrize(("crashed", "state"), [(False, State.FAILED), (True, State.CRASHED)])
    def test_a_run_without_a_graph_ends_at_once(self, crashed: bool, state: State) -> None:
        progress = Progress(FlowRun(scheduled(), 5), Graph((), None, None), epoch=9)
        step = progress.fail(OTHER, 10.0, crashed=crashed)
        assert short(step.changes) == ["run RUNNING", f"run {state}"]
        assert (step.changes[-1].error, progress.is_ended) == (OTHER, True)


class TestRetries:
    def test_a_failed_attempt_waits_and_is_submitted_again_with_what_needs_it(self) -> None:
        driven = Driven(graph_of((), (0,), (1,), returns=2, attempts=2))
        driven.hear(0, State.COMPLETED)
        assert driven.hear(1, State.FAILED) == ["1 RUNNING", "1 RETRYING"]
        retrying = driven.told[-1]
        assert (retrying.attempt, retrying.error, retrying.next_attempt_at) == (1, OTHER, utc(14.0))
        assert driven.step.retry == (1, 2.0)
        assert driven.step.forget == (f"t-{RUN_ID}-1", f"t-{RUN_ID}-2")
        again = driven.retry(1)
        assert [(call.index, call.attempt) for call in again.submit] == [(0, 1), (1, 2), (2, 1)]
        assert again.changes == []
        assert driven.hear(1, State.COMPLETED, attempt=2) == ["1 RUNNING", "1 COMPLETED"]
        assert driven.told[-1].attempt == 2

    def test_attempts_spent_end_the_task(self) -> None:
        driven = Driven(graph_of((), returns=0, attempts=2))
        driven.hear(0, State.FAILED)
        driven.retry(0)
        assert driven.hear(0, State.FAILED, attempt=2) == ["0 RUNNING", "0 FAILED", "run FAILED"]

    @pytest.mark.parametrize("state", [State.RUNNING, State.COMPLETED, State.FAILED, State.CRASHED])
    def test_what_is_heard_of_an_attempt_that_is_over_changes_nothing(self, state: State) -> None:
        driven = Driven(graph_of((), returns=0, attempts=3))
        driven.hear(0, State.FAILED)
        assert driven.hear(0, state) == []
        assert driven.step.retry is None  # it is not scheduled twice
        driven.retry(0)
        assert driven.hear(0, state, attempt=1) == []
        assert driven.hear(0, State.RUNNING, attempt=2) == ["0 RUNNING"]

    def test_one_of_two_that_wait_does_not_take_the_other_one_along(self) -> None:
        """Its dependents go with the last; else the other one would run as an attempt that nobody listens to."""
        driven = Driven(graph_of((), (), (0, 1), returns=2, attempts=3))
        driven.hear(0, State.FAILED)
        driven.hear(1, State.FAILED)
        assert [(call.index, call.attempt) for call in driven.retry(0).submit] == [(0, 2)]
        assert [(call.index, call.attempt) for call in driven.retry(1).submit] == [(0, 2), (1, 2), (2, 1)]

    def test_a_composite_result_goes_with_the_last_that_waits(self) -> None:
        driven = Driven(graph_of((), (), collect=(0, 1), attempts=3))
        driven.hear(0, State.FAILED)
        driven.hear(1, State.FAILED)
        driven.retry(0)
        assert driven.submitted == [0]
        driven.retry(1)
        assert driven.submitted == [0, 1, 2]

    def test_a_cluster_that_lost_everything_does_not_cut_a_wait_short(self) -> None:
        driven = Driven(graph_of((), (0,), (), returns=1, attempts=2))
        driven.hear(0, State.FAILED)
        assert [call.index for call in driven.progress.resubmit().submit] == [2]
        assert [(call.index, call.attempt) for call in driven.retry(0).submit] == [(0, 2), (1, 1)]

    def test_a_retry_beside_a_failure_submits_nothing_that_failed(self) -> None:
        retried = graph_of((), (), collect=(0, 1), attempts=2)
        nodes = (msgspec.structs.replace(retried.nodes[0], retry=None), retried.nodes[1])
        driven = Driven(msgspec.structs.replace(retried, nodes=nodes))
        driven.hear(1, State.FAILED)
        driven.hear(0, State.FAILED)
        driven.retry(1)
        assert driven.submitted == [1]

    def test_a_retry_of_a_run_that_is_over_does_nothing(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, State.COMPLETED)
        assert driven.retry(0).submit == ()


class TestLostResults:
    def test_what_is_pending_is_submitted_again_with_all_it_needs(self) -> None:
        driven = Driven(DIAMOND)
        driven.hear(0, State.COMPLETED)
        driven.hear(1, State.COMPLETED)
        assert [call.index for call in driven.progress.resubmit().submit] == [0, 1, 2, 3]

    def test_nothing_is_submitted_again_for_a_run_that_is_over(self) -> None:
        driven = Driven(ONE)
        driven.hear(0, State.COMPLETED)
        assert driven.progress.resubmit().submit == ()

    def test_a_needed_result_that_cannot_be_made_again_fails_the_run(self) -> None:
        driven = Driven(graph_of((), (0,), returns=1))
        driven.hear(0, State.COMPLETED)
        driven.progress.resubmit()
        assert driven.hear(0, State.FAILED) == ["1 CANCELLED", "run FAILED"]

    def test_a_needed_result_is_made_again_by_the_retry_policy(self) -> None:
        driven = Driven(graph_of((), (0,), returns=1, attempts=2))
        driven.hear(0, State.COMPLETED)
        driven.progress.resubmit()
        assert driven.hear(0, State.FAILED) == []
        assert driven.step.retry == (0, 2.0)
        assert [(call.index, call.attempt) for call in driven.retry(0).submit] == [(0, 2), (1, 1)]
        assert driven.hear(0, State.COMPLETED, attempt=2) == []
        assert driven.hear(1, State.COMPLETED, result=b"1")[-1] == "run COMPLETED"


def rebuilt(log: list[StateChange]) -> FlowRun:
    """The run as another owner knows it from the log."""
    run = FlowRun(scheduled(), 5)
    for change in log:
        run.apply(change)
    return run


class TestAnotherOwner:
    def test_a_run_goes_on_where_it_was_and_waits_for_its_result(self) -> None:
        first = Driven(graph_of((), (0,), returns=1))
        first.hear(0, State.COMPLETED)
        first.hear(1, State.RUNNING)
        second = Driven(first.progress.graph, rebuilt(first.told))
        assert second.told == []
        assert second.submitted == [0, 1]
        assert second.hear(1, State.COMPLETED, result=b"1") == ["1 COMPLETED", "run COMPLETED"]

    def test_a_result_told_but_not_yet_the_runs_end_is_fetched(self) -> None:
        first = Driven(ONE)
        first.hear(0, State.COMPLETED, result=b"1")
        second = Driven(ONE, rebuilt(first.told[:-1]))
        assert second.submitted == [0]
        assert second.hear(0, State.COMPLETED, result=b"1") == ["run COMPLETED"]

    def test_a_wait_for_the_next_attempt_is_not_held_again(self) -> None:
        graph = graph_of((), (0,), returns=1, attempts=3)
        first = Driven(graph)
        first.hear(0, State.FAILED)
        second = Driven(graph, rebuilt(first.told))
        assert second.step.forget == (f"t-{RUN_ID}-0", f"t-{RUN_ID}-1")
        assert [(call.index, call.attempt) for call in second.step.submit] == [(0, 2), (1, 1)]
        assert second.hear(0, State.COMPLETED, attempt=2)[0] == "0 RUNNING"

    def test_an_attempt_whose_retrying_never_reached_the_log_counts(self) -> None:
        """Its submitter died while Kafka was away: what is on the cluster is attempt 2 under the same key."""
        graph = graph_of((), returns=0, attempts=3)
        first = Driven(graph)
        first.hear(0, State.FAILED)
        second = Driven(graph, rebuilt(first.told[:2]))
        assert second.hear(0, State.FAILED, attempt=2) == ["0 RUNNING", "0 RETRYING"]
        assert [call.attempt for call in second.retry(0).submit] == [3]

    def test_a_failure_told_before_still_cancels_and_fails(self) -> None:
        first = Driven(DIAMOND)
        first.hear(0, State.FAILED)
        upto = short(first.told).index("0 FAILED") + 1
        second = Driven(DIAMOND, rebuilt(first.told[:upto]))
        assert short(second.told) == ["1 CANCELLED", "2 CANCELLED", "3 CANCELLED", "run FAILED"]
        assert second.told[-1].error == OTHER
        assert second.submitted == []


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(0, 6))
    dependencies = [
        tuple(sorted(draw(st.sets(st.integers(0, index - 1), max_size=3)))) if index else () for index in range(size)
    ]
    attempts = draw(st.integers(1, 3))
    nodes = st.integers(0, size - 1)
    kinds = st.sampled_from(["plain", "returns", "collect"] if size else ["plain"])
    match draw(kinds):
        case "returns":
            return graph_of(*dependencies, returns=draw(nodes), attempts=attempts)
        case "collect":
            return graph_of(*dependencies, collect=tuple(sorted(draw(st.sets(nodes, min_size=1)))), attempts=attempts)
    return graph_of(*dependencies, attempts=attempts)


class Cluster:
    """Runs what is submitted, a call at a time in a random order, as Dask would: each key once until it is forgotten."""

    def __init__(self, graph: Graph, chance: random.Random) -> None:
        self.keys = {call.key: call.index for call in graph.calls}
        self.chance = chance
        self.waiting: dict[int, Call] = {}
        self.finished: dict[int, Report] = {}

    def do(self, step: Step) -> None:
        for key in step.forget:
            self.waiting.pop(self.keys[key], None)
            self.finished.pop(self.keys[key], None)
        for call in step.submit:
            if call.index not in self.finished:
                self.waiting.setdefault(call.index, call)

    def lose(self) -> None:
        self.waiting.clear()
        self.finished.clear()

    def reports(self) -> list[Report]:
        """Run one more call, if one can run; now and then something old is told again."""
        ready = [c for c in self.waiting.values() if all(self._is_done(index) for index in c.dependencies)]
        heard: list[Report] = []
        if ready:
            call = self.chance.choice(ready)
            del self.waiting[call.index]
            state = self.chance.choice([State.COMPLETED] * 6 + [State.FAILED] * 3 + [State.CRASHED])
            error = None if state is State.COMPLETED else Failure("E", f"{call.index}")
            result = b"1" if call.returns and state is State.COMPLETED else None
            started_at = 0.0 if state is State.CRASHED and self.chance.random() < 0.5 else 20.0
            ended = Report(RUN_ID, call.index, state, call.attempt, started_at, 21.0, "w", error, result)
            self.finished[call.index] = ended
            if started_at and self.chance.random() < 0.5:
                heard.append(msgspec.structs.replace(ended, state=State.RUNNING, error=None, result=None))
            heard.append(ended)
        if self.finished and self.chance.random() < 0.3:
            heard.append(self.chance.choice(list(self.finished.values())))
        return heard

    def retell(self) -> list[Report]:
        """What a new owner is told of what has happened."""
        return list(self.finished.values())

    def _is_done(self, index: int) -> bool:
        return index in self.finished and self.finished[index].state is State.COMPLETED


@given(graphs(), st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 2))
@example(graph_of((), (), (0, 1), returns=2, attempts=3), 1, 0, 0)
def test_whoever_drives_a_run_its_history_is_legal_gapless_and_ends(
    graph: Graph, seed: int, takeovers: int, losses: int
) -> None:
    """Any order of reports, repeats, owners that die at any change, a cluster that forgets: one legal history to the end."""
    chance = random.Random(seed)
    cluster = Cluster(graph, chance)
    log: list[StateChange] = []
    retries: list[int] = []
    progress = Progress(rebuilt(log), graph, epoch=1)

    def take(step: Step) -> None:
        cluster.do(step)
        log.extend(step.changes)
        if step.retry is not None:
            retries.append(step.retry[0])

    take(progress.begin(10.0))
    for _ in range(300):
        if progress.is_ended and not takeovers:
            break
        if takeovers and (progress.is_ended or chance.random() < 0.1):
            # The owner dies, and the last changes it made never reach the log.
            takeovers -= 1
            end = next((i for i, change in enumerate(log) if change.is_flow_run and change.state.is_end), len(log))
            del log[chance.randint(0, end) :]
            retries.clear()
            if losses and chance.random() < 0.5:
                losses -= 1
                cluster.lose()
            progress = Progress(rebuilt(log), graph, epoch=2)
            told = cluster.retell()
            take(progress.begin(15.0))
            for report in told:
                take(progress.report(report, 22.0))
        elif retries and chance.random() < 0.5:
            take(progress.retry(retries.pop(chance.randrange(len(retries)))))
        elif losses and chance.random() < 0.1:
            losses -= 1
            cluster.lose()
            take(progress.resubmit())
        else:
            for report in cluster.reports():
                take(progress.report(report, 22.0))

    assert progress.is_ended, short(log)
    assert [change.seq for change in log] == list(range(1, len(log) + 1))
    states: dict[str | None, State | None] = {None: State.SCHEDULED}
    for change in log:
        assert (states.get(change.task_run_id), change.state) in TRANSITIONS
        states[change.task_run_id] = change.state
    assert log[-1].is_flow_run
    assert log[-1].state.is_end
    ends = [change.task_run_id for change in log if change.state.is_end]
    assert sorted(map(str, ends)) == sorted(["None", *(node.task_run_id for node in graph.nodes)])
    if log[-1].state is State.COMPLETED:
        assert all(state is State.COMPLETED for state in states.values())
        assert bytes(log[-1].result or b"") == (graph.result or b"1")
    else:
        assert log[-1].error is not None
