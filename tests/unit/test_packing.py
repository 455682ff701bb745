"""engine.packing: a packed run comes to what the unpacked one would, and touches no other run."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from engine.flows import Flow
from engine.handles import recorder
from engine.log_catcher import catcher
from engine.log_outbox import LogOutbox
from engine.packing import run_parcel
from engine.parcels import Outcome, PackedRun, Parcel, TaskEntry, decode_tasks
from engine.run_logs import decode_batch
from engine.states import State, encode
from engine.telemetry import Tracer
from engine.testing import run as run_unpacked
from tests.unit.samples import packed, talk
from tests.waiting import eventually

SILENT = Tracer(None, None, None)
TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    packed.done.clear()
    packed.gate.clear()


def parcel_of(flow: Flow[..., Any], *parameters: dict[str, Any], limit: int = 1_000, **fields: Any) -> Parcel:
    fields = {"traceparent": TRACEPARENT, "scheduled_at": 1.0} | fields
    runs = tuple(PackedRun(f"{number:032x}", encode(each), **fields) for number, each in enumerate(parameters))
    return Parcel("parcel", flow.name, flow.reference, runs, limit)


def run_all(parcel: Parcel) -> list[Outcome]:
    outcomes: list[Outcome] = []
    run_parcel(parcel, outcomes.extend, tracer=SILENT)
    assert recorder.get() is None
    assert [outcome.run_id for outcome in outcomes] == [run.run_id for run in parcel.runs]
    return outcomes


def run(flow: Flow[..., Any], **parameters: Any) -> Outcome:
    [outcome] = run_all(parcel_of(flow, parameters))
    return outcome


def again(flow: Flow[..., Any], outcome: Outcome, **parameters: Any) -> Outcome:
    """The next try of a run that came back to wait."""
    [next_one] = run_all(parcel_of(flow, parameters, attempt=outcome.attempt + 1, memo=outcome.memo))
    return next_one


def value(outcome: Outcome) -> Any:
    assert outcome.error is None
    assert outcome.result is not None
    return msgspec.json.decode(outcome.result)


def tasks_of(outcome: Outcome) -> list[tuple[str, str, int]]:
    return [(task.task, task.state, task.attempt) for task in decode_tasks(outcome.tasks)]


class TestResults:
    def test_each_run_has_an_outcome_with_its_result_and_its_tasks(self) -> None:
        before = time.time()
        outcomes = run_all(parcel_of(packed.one, {"value": 1}, {"value": 2}, {"value": 3}))
        assert [value(outcome) for outcome in outcomes] == [2, 4, 6]
        [task] = decode_tasks(outcomes[0].tasks)
        assert (task.task, task.index, task.state, task.attempt) == ("double", "0", State.COMPLETED, 1)
        assert task.started_at is not None
        assert task.ended_at is not None
        assert before <= outcomes[0].started_at <= outcomes[0].ended_at <= time.time()
        assert outcomes[0].started_at - 1e-5 <= task.started_at.timestamp() <= task.ended_at.timestamp()

    def test_handles_anywhere_become_values_as_in_the_unpacked_lane(self) -> None:
        assert value(run(packed.wired, value=2)) == run_unpacked(packed.wired_unpacked, {"value": 2}).result()

    @pytest.mark.parametrize("kind", range(5))
    def test_what_a_flow_may_not_do_fails_as_in_the_unpacked_lane(self, kind: int) -> None:
        error = run(packed.looks, value=kind).error
        expected = run_unpacked(Flow(packed.looks.function, packed.looks.triggers), {"value": kind}).error
        assert error is not None
        assert expected is not None
        assert (error.type, error.message) == (expected.type, expected.message)
        assert error.type == "WiringError"

    def test_a_large_result_or_one_that_is_no_json_does_not_travel_and_says_why(self) -> None:
        large, odd = run_all(parcel_of(packed.returns, {"kind": "large"}, {"kind": "odd"}))
        assert (large.state, large.result, large.kept) == (State.COMPLETED, None, "too large: 2,002 bytes")
        assert odd.state is State.COMPLETED
        assert (odd.kept or "").startswith("not encodable: ")

    def test_log_lines_carry_the_run_and_nothing_of_what_ran_before(self) -> None:
        for outcome in run_all(parcel_of(packed.logs, {}, {})):
            bound = {"run_id": outcome.run_id, "flow": "logs", "trace_id": TRACEPARENT[3:35], "task": "logged"}
            assert value(outcome) == [bound, bound]


class TestFailures:
    @pytest.mark.parametrize("kind", ["value", "exit", "text", "pickle", "name"])
    @pytest.mark.parametrize("flow", [packed.fails, packed.fails_async, packed.flow_raises, packed.does_not_catch])
    def test_whatever_user_code_raises_fails_its_run_and_no_other(self, flow: Flow[..., Any], kind: str) -> None:
        one, two = run_all(parcel_of(flow, {"kind": kind}, {"kind": "value"}))
        assert one.state is two.state is State.FAILED
        assert one.error is not None
        assert two.error is not None
        types = {"value": "ValueError", "exit": "SystemExit", "text": "BrokenTextError", "pickle": "UnpicklableError"}
        assert one.error.type == types.get(kind, "OSError")
        assert two.error.message == "bad value"

    def test_a_failed_task_cancels_what_needs_it_and_nothing_else(self) -> None:
        outcome = run(packed.fails, kind="value")
        assert tasks_of(outcome) == [
            ("raises", "FAILED", 1),
            ("same", "CANCELLED", 0),
            ("double", "COMPLETED", 1),
            ("same", "COMPLETED", 1),
            ("same", "COMPLETED", 1),
            ("add", "CANCELLED", 0),
            ("double", "COMPLETED", 1),
        ]

    def test_a_traceback_begins_in_user_code_and_is_told_once(self) -> None:
        for flow in (packed.fails, packed.fails_async, packed.flow_raises):
            outcome = run(flow, kind="value")
            assert outcome.error is not None
            assert "orders.py" in outcome.error.traceback
            assert "engine/pack" not in outcome.error.traceback
            assert [task.error.traceback for task in decode_tasks(outcome.tasks) if task.error] in ([], [""])

    def test_a_task_beyond_its_time_is_stopped(self) -> None:
        outcome, other = run_all(parcel_of(packed.over_time, {}, {}))
        assert outcome.error is not None
        assert outcome.error.message == "task spins ran longer than its timeout of 0.05 s"
        assert [task.error and task.error.type for task in decode_tasks(outcome.tasks)] == ["TaskTimeout", "TaskTimeout"]
        assert other.state is State.FAILED

    def test_parameters_that_do_not_fit_any_more_fail_the_run(self) -> None:
        outcome = run(packed.one, value="three")
        assert outcome.error is not None
        assert outcome.error.type == "InvalidParameters"

    @pytest.mark.parametrize(
        "reference", ["no_such_module:f", "tests.unit.samples.packed:gone", "tests.unit.samples.packed:same"]
    )
    def test_a_flow_that_is_gone_fails_all_its_runs(self, reference: str) -> None:
        parcel = msgspec.structs.replace(parcel_of(packed.one, {"value": 1}, {"value": 2}), reference=reference)
        assert [outcome.state for outcome in run_all(parcel)] == [State.FAILED, State.FAILED]


class TestRetries:
    def test_a_short_wait_is_waited_for_in_place(self) -> None:
        outcome = run(packed.retried, failures=2)
        assert value(outcome) == [3, 3]
        assert tasks_of(outcome) == [("soon", "COMPLETED", 3), ("soon_async", "COMPLETED", 3)]

    def test_without_an_attempt_left_the_run_fails_with_the_last_error(self) -> None:
        outcome = run(packed.retried, failures=9)
        assert outcome.error is not None
        assert outcome.error.message == "attempt 3 of soon"

    @pytest.mark.parametrize("flow", [packed.suspended, packed.suspended_async])
    def test_a_long_wait_sends_the_run_back_with_what_it_has_finished(self, flow: Flow[..., Any]) -> None:
        first = run(flow, failures=2)
        assert first.state is State.RETRYING
        assert 59 < first.wait_seconds <= 60
        assert first.error is not None
        assert first.error.message == "attempt 1 of patient"
        assert ("patient", "RETRYING", 1) in tasks_of(first)
        second = again(flow, first, failures=2)
        assert second.state is State.RETRYING
        third = again(flow, second, failures=2)
        assert value(third)[:2] == ["before", 3]
        assert tasks_of(third).count(("patient", "COMPLETED", 3)) == 1
        assert tasks_of(third)[0] == ("same", "COMPLETED", 1)
        # Nothing that had finished was done again: before, and where the flow has them after and what takes the result.
        assert packed.done["same"] == (3 if flow is packed.suspended else 1)

    def test_of_two_that_wait_each_is_tried_again_in_its_time(self) -> None:
        first = run(packed.suspended_twice, failures=1)
        assert 59 < first.wait_seconds <= 60
        second = again(packed.suspended_twice, first, failures=1)
        assert second.state is State.RETRYING
        assert 29 < second.wait_seconds < 31
        assert (packed.done["patient"], packed.done["more_patient"]) == (2, 1)
        assert value(again(packed.suspended_twice, second, failures=1)) == [2, 2]

    def test_the_clock_of_the_worker_that_tries_again_may_be_another_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = time.time()
        with monkeypatch.context() as ahead:
            ahead.setattr("time.time", lambda: now + 10_800.0)
            first = run(packed.suspended, failures=1)
        assert first.ended_at > now + 10_000
        assert value(again(packed.suspended, first, failures=1))[:2] == ["before", 2]

    def test_what_does_not_pickle_is_done_again(self) -> None:
        first = run(packed.suspended_unpicklable, failures=1)
        assert first.state is State.RETRYING
        assert value(again(packed.suspended_unpicklable, first, failures=1)) == 2
        assert packed.done["makes_function"] == 2

    def test_a_failure_is_remembered_while_another_task_waits(self) -> None:
        first = run(packed.suspended_beside_failure, failures=1)
        assert first.state is State.RETRYING
        second = again(packed.suspended_beside_failure, first, failures=1)
        assert second.error is not None
        assert second.error.message == "1 is odd"
        assert packed.done["refuse_odd"] == 1
        assert sorted(tasks_of(second)) == [
            ("patient", "COMPLETED", 2),
            ("refuse_odd", "FAILED", 1),
            ("same", "CANCELLED", 0),
            ("same", "COMPLETED", 1),
        ]


class TestSpawning:
    @pytest.mark.parametrize("flow", [packed.spawning, packed.spawning_async])
    def test_a_task_may_start_others_and_return_them_unresolved(self, flow: Flow[..., Any]) -> None:
        outcome = run(flow, value=2)
        assert value(outcome) == [[4, 8], 12, [0, 2, 4, 6], 5]
        indices = {task.index for task in decode_tasks(outcome.tasks)}
        assert {"0", "0+0", "0+1", "2+0.3", "3+2"} <= indices
        assert len(indices) == len(decode_tasks(outcome.tasks))

    def test_a_failed_child_fails_the_run_and_cancels_what_needs_its_parent(self) -> None:
        outcome = run(packed.child_fails, kind="value")
        assert outcome.error is not None
        assert outcome.error.message == "bad value"
        assert tasks_of(outcome) == [("raises", "FAILED", 1), ("parent_of_failing", "COMPLETED", 1), ("same", "CANCELLED", 0)]

    def test_a_child_that_waits_is_gone_on_with_and_its_siblings_are_not_run_again(self) -> None:
        first = run(packed.child_waits, failures=1)
        assert first.state is State.RETRYING
        second = again(packed.child_waits, first, failures=1)
        assert value(second) == ["child", 2]
        assert packed.done["same"] == 2
        assert sorted(tasks_of(second)) == [
            ("parent_of_patient", "COMPLETED", 1),
            ("patient", "COMPLETED", 2),
            ("same", "COMPLETED", 1),
            ("same", "COMPLETED", 1),
        ]


class TestMaps:
    def test_a_map_over_a_result_has_as_many_elements_as_that(self) -> None:
        outcome = run(packed.unknown_length, value=3)
        assert value(outcome) == [6, [0, 4, 8], [4, 8]]

    def test_an_element_that_fails_cancels_what_needs_it_alone(self) -> None:
        outcome = run(packed.unknown_length_fails, value=3)
        assert outcome.error is not None
        assert outcome.error.message == "1 is odd"
        tasks = {(task.task, task.index): task.state for task in decode_tasks(outcome.tasks)}
        assert [tasks["double", f"2.{place}"] for place in range(3)] == ["COMPLETED", "CANCELLED", "COMPLETED"]
        assert tasks["double", "4"] is State.FAILED  # a map over what has no elements


class TestAsyncFlows:
    def test_a_flow_may_look_at_values_and_go_on_with_them(self) -> None:
        assert value(run(packed.branches, value=2)) == [4, 8, 5, [8], 2]
        assert value(run(packed.branches, value=6)) == "large"

    def test_async_tasks_run_side_by_side(self) -> None:
        assert value(run(packed.side_by_side)) == [True, True]

    def test_nobody_waits_for_a_call_that_cannot_be_made(self) -> None:
        outcome = run(packed.passes_unpicklable)
        assert outcome.error is not None
        assert outcome.error.type == "WiringError"
        assert tasks_of(outcome) == [("later", "FAILED", 0), ("same", "CANCELLED", 0)]

    def test_a_failure_that_the_flow_has_dealt_with_does_not_fail_the_run(self) -> None:
        outcome = run(packed.catches, kind="value")
        assert value(outcome) == "TaskFailed: ValueError: bad value"
        assert tasks_of(outcome) == [("raises", "FAILED", 1)]

    def test_what_a_run_leaves_behind_does_not_outlive_it(self) -> None:
        assert value(run(packed.leaves_behind)) == 1
        assert packed.done["left behind"] == 0

    def test_an_exit_in_the_background_fails_its_run_alone(self) -> None:
        exited, after = run_all(parcel_of(packed.exits_in_background, {}, {}))
        assert exited.error is not None
        assert exited.error.type == "SystemExit"
        assert after.state is State.FAILED
        assert value(run(packed.side_by_side)) == [True, True]


class TestTimeAndChance:
    def test_chance_is_that_of_the_unpacked_lane_and_time_that_of_the_run(self) -> None:
        unpacked = run_unpacked(Flow(packed.draws.function, packed.draws.triggers), {})
        parcel = parcel_of(packed.draws, {}, scheduled_at=1_400_000_000.5)
        parcel = msgspec.structs.replace(parcel, runs=(msgspec.structs.replace(parcel.runs[0], run_id=unpacked.run_id),))
        at, *numbers = value(run_all(parcel)[0])
        assert numbers == unpacked.result()[1:]
        assert at == "2014-05-13T16:53:20.500000+00:00"

    def test_both_are_the_same_when_a_run_comes_again(self) -> None:
        first = run(packed.draws, kind="retries")
        assert first.state is State.RETRYING
        again(packed.draws, first, kind="retries")
        assert [count for name, count in packed.done.items() if name.startswith("drawn")] == [2]

    @pytest.mark.parametrize("kind", ["sleep", "wait_for_event"])
    def test_a_flow_that_would_wait_by_itself_is_told_that_it_is_packed(self, kind: str) -> None:
        error = run(packed.waits, kind=kind).error
        assert error is not None
        assert error.message.startswith(f"task engine.{kind}: it was called in a packed flow")
        assert "without pack=True" in error.message


class TestTelling:
    def test_outcomes_are_told_some_at_a_time(self) -> None:
        told: list[int] = []
        parcel = parcel_of(packed.one, *({"value": number} for number in range(5_000)))
        run_parcel(parcel, lambda outcomes: told.append(len(outcomes)), tracer=SILENT)
        assert sum(told) == 5_000
        assert 1 < len(told) < 500

    async def test_another_thread_can_take_what_waits_behind_a_long_run(self) -> None:
        pending: deque[Outcome] = deque()
        told: list[Outcome] = []
        parcel = parcel_of(packed.waits_for_gate, {"first": True}, {"first": False})
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_parcel, parcel, told.extend, tracer=SILENT, pending=pending)
            await eventually(lambda: len(pending) == 1)
            assert value(pending.popleft()) is True
            packed.gate.set()
            running.result(10)
        assert [value(outcome) for outcome in told] == [False]

    def test_each_attempt_of_a_sampled_run_has_a_span_below_the_runs(self) -> None:
        spans = InMemorySpanExporter()
        tracer = Tracer(SimpleSpanProcessor(spans), None, Resource.get_empty())
        run_parcel(
            parcel_of(packed.retried, {"failures": 1}, traceparent=TRACEPARENT[:-1] + "1"), lambda _: None, tracer=tracer
        )
        run_parcel(parcel_of(packed.retried, {"failures": 0}), lambda _: None, tracer=tracer)
        found = spans.get_finished_spans()
        assert [(span.name, span.attributes["engine.attempt"]) for span in found if span.attributes] == [
            ("queue soon", 1),
            ("task soon", 1),
            ("task soon", 2),
            ("queue soon_async", 1),
            ("task soon_async", 1),
            ("task soon_async", 2),
        ]
        assert {span.parent.span_id for span in found if span.parent} == {0x0123456789ABCDEF}


def test_a_task_outcome_has_no_error_unless_there_was_one() -> None:
    [task] = msgspec.json.decode(run(packed.one, value=1).tasks)
    assert set(task) == {"task", "index", "state", "attempt", "started_at", "ended_at"}
    assert isinstance(msgspec.convert(task, TaskEntry), TaskEntry)


def test_what_a_packed_run_logs_is_said_by_its_flow_or_its_tasks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outbox = LogOutbox()
    catcher.begin("test")
    try:
        run_parcel(parcel_of(talk.packed, {"sku": "a"}, {"sku": "b"}), lambda _: None, tracer=SILENT, logs=outbox, worker="w")
    finally:
        catcher.end("test")
    batches = [decode_batch(mail.value) for mail in outbox.take_all()]
    first, second = (f"{number:032x}" for number in range(2))
    assert [(batch.run_id, batch.task_run_id, batch.attempt, batch.worker) for batch in batches] == [
        (run_id, name, 1, "w") for run_id in (first, second) for name in (None, f"{run_id}/talks/0", f"{run_id}/talks_later/1")
    ]
    assert [line.message for line in batches[0].lines] == ["in a parcel"]
    assert [line.message for line in batches[-1].lines] == ["by the engine sku='b' count=1", "by logging b", "odd"]


def test_the_tasks_of_a_packed_run_share_what_they_may_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.log_outbox.MAX_LINES", 2)
    outbox = LogOutbox()
    run_parcel(parcel_of(talk.packed, {"sku": "a"}), lambda _: None, tracer=SILENT, logs=outbox)
    lines = [line for mail in outbox.take_all() for line in decode_batch(mail.value).lines]
    assert [line.message.partition(" more")[0] for line in sorted(lines, key=lambda line: line.at)] == [
        "in a parcel",
        "by the engine sku='a' count=1",
        "1",
    ]
