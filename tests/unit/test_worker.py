"""engine.worker: whatever user code does, a report leaves, and what is raised can travel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest

from engine.arguments import dump
from engine.deadlines import run_within
from engine.errors import TaskFailed
from engine.executor import Call, Report, index_of, key_of
from engine.handles import Handle
from engine.log_catcher import catcher, speaker
from engine.log_outbox import MAX_LINES, LogOutbox
from engine.run_logs import LogBatch, decode_batch
from engine.running import Postponed
from engine.states import State, encode
from engine.tasks import Task
from engine.telemetry import Tracer
from engine.worker import execute, execute_async
from tests.unit.samples import orders, talk

RUN_ID = "0123456789abcdef" * 2


class Listed:
    """A reporter that keeps what it hears."""

    address = "tcp://worker:1"
    restarts = True
    tracer = Tracer(None, None, None)

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.logs = LogOutbox()
        self.is_told = threading.Event()

    def begin(self, report: Report) -> None:
        self.reports.append(report)

    def end(self, report: Report) -> None:
        self.reports.append(report)

    def stuck(self, report: Report, key: str) -> None:
        self.reports.append(report)
        self.is_told.set()

    def spawn(self, report: Report) -> None:
        self.reports.append(report)

    def ended(self, call: Call, key: str) -> Future[Any]:
        raise NotImplementedError

    def secede(self, call: Call) -> None:
        raise NotImplementedError


def handle(task: str, index: str) -> Handle:
    return Handle(task, index, RUN_ID)


def call_of(task: Task[..., Any], *args: Any, returns: bool = True, limit: int = 1_000, attempt: int = 1) -> Call:
    dumped = dump((args, {}), task.name, RUN_ID)
    return Call(
        index="0",
        task=task.name,
        function=task.reference,
        flow="fulfil",
        run_id=RUN_ID,
        arguments=dumped.data,
        dependencies=tuple(key_of(taken.task, RUN_ID, taken.index) for taken in dumped.inputs if isinstance(taken, Handle)),
        places=(),
        attempt=attempt,
        depth=0,
        is_async=task.is_async,
        returns=returns,
        is_final=returns,
        inline_result_bytes=limit,
        timeout_seconds=task.timeout_seconds,
        traceparent="00-0123456789abcdef0123456789abcdef-0123456789abcdef-00",
        scheduled_at=1.0,
    )


def run(call: Call, *results: Any) -> tuple[Any, list[Report]]:
    """The value, or what is raised in its place, and the reports."""
    reporter = Listed()
    try:
        if call.is_async:
            return asyncio.run(execute_async(call, results, reporter)), reporter.reports
        return execute(call, results, reporter), reporter.reports
    except (TaskFailed, Postponed) as error:
        return error, reporter.reports


async def test_async_code_that_stays_when_it_is_cancelled_is_given_up_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.worker.GRACE_SECONDS", 0.01)
    reporter = Listed()
    reporter.restarts = False  # else it would wait for the end of its process

    call = msgspec.structs.replace(call_of(orders.stays, 0.3), timeout_seconds=0.01)
    await execute_async(call, (), reporter)
    [begun, failed] = reporter.reports
    assert (begun.state, failed.state, failed.remark) == (State.RUNNING, State.FAILED, "thread abandoned")
    assert failed.error is not None
    assert failed.error.type == "TaskTimeout"
    assert "in stays" in failed.error.traceback


@pytest.mark.parametrize("task", [orders.double, orders.later])
def test_an_attempt_whose_process_was_ended_is_reported_as_over_its_time_and_not_run(task: Task[..., Any]) -> None:
    call = msgspec.structs.replace(call_of(task, "not looked at"), timeout_seconds=0.5, hung=(7.0, "tcp://gone:1"))
    error, reports = run(call)
    failed = reports[-1]
    assert isinstance(error, TaskFailed)
    assert (failed.state, failed.started_at, failed.worker, failed.remark) == (
        *(State.FAILED, 7.0),
        *("tcp://gone:1", "worker restarted"),
    )
    assert failed.error is not None
    assert failed.error.type == "TaskTimeout"
    assert "its timeout of 0.5 s while code held the interpreter" in failed.error.message


def test_an_attempt_whose_process_was_ended_is_followed_by_another_where_its_policy_says_so() -> None:
    call = msgspec.structs.replace(call_of(orders.total, [1]), timeout_seconds=0.5, hung=(7.0, "tcp://gone:1"))
    error, reports = run(call)
    assert isinstance(error, Postponed)
    assert reports[-1].retry_in_seconds is not None


@pytest.mark.parametrize(("task", "expected"), [(orders.double, 42), (orders.later, 22)])
def test_a_value_is_reported_before_it_is_returned(task: Task[..., Any], expected: int) -> None:
    value, [begun, ended] = run(call_of(task, 21, attempt=2))
    assert value == expected
    assert (begun.state, ended.state) == (State.RUNNING, State.COMPLETED)
    assert (ended.run_id, ended.index, ended.attempt, ended.worker) == (RUN_ID, "0", 2, "tcp://worker:1")
    assert begun.started_at == ended.started_at <= ended.at
    assert ended.result == str(expected).encode()


def test_results_of_other_calls_take_the_places_of_their_handles() -> None:
    value, _ = run(call_of(orders.total, [handle("a", "4"), 1, handle("b", "2")]), 10, 20)
    assert value == 31


def test_the_value_of_a_call_that_is_not_the_result_stays() -> None:
    value, reports = run(call_of(orders.double, 21, returns=False))
    assert value == 42
    assert (reports[-1].result, reports[-1].kept) == (None, None)


def test_a_result_without_json_stays_and_says_why() -> None:
    value, reports = run(call_of(orders.unencodable))
    assert isinstance(value, set)
    assert reports[-1].state is State.COMPLETED
    assert reports[-1].result is None
    assert (reports[-1].kept or "").startswith("not encodable: ")


def test_a_result_above_the_limit_stays_and_says_why() -> None:
    _, fits = run(call_of(orders.large, 98, limit=100))
    value, above = run(call_of(orders.large, 99, limit=100))
    assert fits[-1].result == encode("x" * 98)
    assert value == "x" * 99
    assert (above[-1].result, above[-1].kept) == (None, "too large: 101 bytes")


@pytest.mark.parametrize("task", [orders.raises, orders.raises_later])
@pytest.mark.parametrize(
    ("kind", "type", "message"),
    [
        ("value", "ValueError", "bad value"),
        ("text", "BrokenTextError", "<its text cannot be had: RuntimeError>"),
        ("pickle", "UnpicklableError", "cannot travel"),
        ("name", "OSError", "\\udcff"),
        ("no such kind", "KeyError", "'no such kind'"),
    ],
)
def test_whatever_is_raised_is_reported_and_travels(task: Task[..., Any], kind: str, type: str, message: str) -> None:
    raised, [begun, ended] = run(call_of(task, kind))
    assert isinstance(raised, TaskFailed)
    assert str(pickle.loads(pickle.dumps(raised))) == f"{type}: {message}"
    assert raised.__context__ is None, "Dask would pickle it, too"
    assert (begun.state, ended.state) == (State.RUNNING, State.FAILED)
    assert ended.error is not None
    assert (ended.error.type, ended.error.message) == (type, message)
    assert encode(ended.error)  # goes into a state change


def test_sys_exit_ends_the_task_not_the_worker() -> None:
    raised, reports = run(call_of(orders.raises, "exit"))
    assert str(raised) == "SystemExit: 3"
    assert reports[-1].state is State.FAILED


async def test_sys_exit_in_an_async_task_ends_the_task_not_the_loop() -> None:
    reporter = Listed()
    with pytest.raises(TaskFailed, match="SystemExit: 3"):
        await execute_async(call_of(orders.raises_later, "exit"), (), reporter)
    assert reporter.reports[-1].state is State.FAILED


def test_a_traceback_begins_in_user_code() -> None:
    raised, _ = run(call_of(orders.raises, "value"))
    assert "orders.py" in raised.traceback
    assert "ValueError: bad value" in raised.traceback
    assert "engine/worker.py" not in raised.traceback


@pytest.mark.parametrize("task", [orders.spins, orders.waits])
def test_a_task_beyond_its_timeout_is_stopped_and_failed(task: Task[..., Any]) -> None:
    """``spins`` catches every Exception in a loop: no way to swallow the end of its time."""
    raised, reports = run(call_of(task))
    assert isinstance(raised, TaskFailed)
    assert (raised.type, raised.message) == ("TaskTimeout", f"task {task.name} ran longer than its timeout of 0.05 s")
    assert reports[-1].state is State.FAILED


def test_a_thread_is_usable_after_a_timeout() -> None:
    run(call_of(orders.spins))
    assert run(call_of(orders.double, 1))[0] == 2


def test_a_task_within_its_timeout_is_left_alone() -> None:
    assert run(call_of(orders.total, [1, 2]))[0] == 3


def test_a_function_that_is_gone_fails_the_task() -> None:
    gone = msgspec.structs.replace(call_of(orders.double, 1), function="tests.unit.samples.orders:renamed")
    raised, reports = run(gone)
    assert raised.type == "WiringError"
    assert reports[-1].state is State.FAILED
    raised, _ = run(msgspec.structs.replace(gone, function="no_such_module:f"))
    assert raised.type == "WiringError"
    assert "the engine has loaded no_such_module:f, but the worker" in raised.message
    assert "engine doctor" in raised.message


def test_log_lines_carry_the_run_and_nothing_of_the_task_before() -> None:
    first, _ = run(call_of(orders.bound))
    second, _ = run(call_of(orders.bound))
    assert (
        first
        == second
        == {
            "run_id": RUN_ID,
            "flow": "fulfil",
            "task": "bound",
            "trace_id": "0123456789abcdef0123456789abcdef",
        }
    )


async def test_a_cancelled_async_task_is_not_reported_as_ended() -> None:
    """The worker is closing: the scheduler gives the call to another one."""
    reporter = Listed()
    has_begun = asyncio.Event()
    reporter.begin = lambda report: (reporter.reports.append(report), has_begun.set())  # type: ignore[method-assign, assignment]
    call = msgspec.structs.replace(call_of(orders.waits), timeout_seconds=None)
    running = asyncio.create_task(execute_async(call, (), reporter))
    await has_begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [report.state for report in reporter.reports] == [State.RUNNING]


@pytest.mark.parametrize(
    ("kind", "attempt", "retry_in_seconds"),
    [
        ("terminal", 1, None),
        ("retryable", 1, 7.0),
        ("on", 1, 1.0),
        ("on", 2, 1.0),
        ("other", 1, None),
        ("retryable", 3, None),
        ("on", 3, None),
    ],
)
def test_a_report_says_whether_another_attempt_follows_and_when(
    kind: str, attempt: int, retry_in_seconds: float | None
) -> None:
    raised, [_, ended] = run(call_of(orders.raises_for_retry, kind, attempt=attempt))
    assert (ended.state, ended.retry_in_seconds) == (State.FAILED, retry_in_seconds)
    assert ended.error is not None
    # Only an error that is final may reach Dask: it would fail all that needs the task.
    assert type(raised) is (TaskFailed if retry_in_seconds is None else Postponed)


def test_a_value_that_is_walked_reports_its_length() -> None:
    walked = msgspec.structs.replace(call_of(orders.listing, 3, returns=False), is_walked=True)
    assert run(walked)[1][-1].length == 3
    assert run(call_of(orders.listing, 0))[1][-1].length == 0
    assert run(call_of(orders.large, 3))[1][-1].length is None, "a text is one value"
    assert run(msgspec.structs.replace(call_of(orders.double, 3), is_walked=True))[1][-1].length is None


def test_a_value_that_others_take_and_that_cannot_leave_its_worker_fails_the_task() -> None:
    taken = msgspec.structs.replace(call_of(orders.holds_a_lock, returns=False), is_taken=True)
    raised, [_, ended] = run(taken)
    assert isinstance(raised, TaskFailed)
    assert (raised.type, ended.state) == ("ResultStuck", State.FAILED)
    assert "the result of task holds_a_lock, a lock, cannot be pickled" in raised.message
    assert run(msgspec.structs.replace(taken, is_taken=False))[1][-1].state is State.COMPLETED, "nobody asks for it"


def test_results_of_a_whole_map_and_of_one_item_take_their_places() -> None:
    call = call_of(orders.add, handle("a", "1"), handle("b", "2"))
    places = msgspec.structs.replace(call, places=((2, 0, 1), (0, 1, 0)))
    assert run(places, [10, 20], 3)[0] == 23


class TestChildren:
    def test_they_are_reported_before_the_end_and_what_is_returned_waits_for_them(self) -> None:
        raised, [begun, first, second, ended] = run(call_of(orders.splits, 5))
        assert isinstance(raised, Postponed)
        assert [report.state for report in (begun, first, second, ended)] == [State.RUNNING] * 3 + [State.COMPLETED]
        children = [call for report in (first, second) for call in report.spawned]
        assert [child.task for child in children] == ["double", "double"]
        assert ended.tail == tuple(child.index for child in children)
        assert (ended.result, ended.has_value) == (None, False)
        continuation = ended.continuation
        assert continuation is not None
        assert continuation.key == call_of(orders.splits, 5).key
        assert continuation.dependencies == tuple(child.key for child in children)

    def test_their_values_are_put_together_under_the_same_key(self) -> None:
        _, reports = run(call_of(orders.splits, 5))
        continuation = reports[-1].continuation
        assert continuation is not None
        value, [ended] = run(continuation, 10, 12)
        assert value == {"halves": [10, 12], "of": 5}
        assert (ended.state, ended.result) == (State.COMPLETED, b'{"halves":[10,12],"of":5}')
        assert ended.tail == tuple(index_of(key) for key in continuation.dependencies)

    def test_a_continuation_nobody_needs_news_of_reports_nothing(self) -> None:
        _, reports = run(call_of(orders.splits, 5, returns=False))
        continuation = reports[-1].continuation
        assert continuation is not None
        value, told = run(continuation, 10, 12)
        assert (value["halves"], told) == ([10, 12], [])

    def test_children_that_are_dropped_are_not_waited_for(self) -> None:
        value, reports = run(call_of(orders.drops, 5))
        assert value == "dropped"
        assert (reports[-1].tail, reports[-1].continuation) == ((), None)
        assert [call.task for report in reports for call in report.spawned] == ["double"]

    async def test_an_async_task_starts_children_too(self) -> None:
        reporter = Listed()
        with pytest.raises(Postponed):
            await execute_async(call_of(orders.splits_later, 5), (), reporter)
        assert len(reporter.reports[-1].tail) == 1


def test_the_traceback_of_a_timeout_says_where_the_code_was() -> None:
    raised, _ = run(call_of(orders.spins))
    assert "in spins" in raised.traceback
    assert "engine/deadlines.py" not in raised.traceback


def test_a_task_that_cannot_be_stopped_is_reported_once_and_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_within, "__kwdefaults__", {**(run_within.__kwdefaults__ or {}), "grace_seconds": 0.1})
    reporter = Listed()
    call = call_of(orders.is_stuck, handle("told", "1"))
    with pytest.raises(TaskFailed):
        execute(call, [reporter.is_told], reporter)
    begun, ended = reporter.reports
    assert (begun.state, ended.state) == (State.RUNNING, State.FAILED)
    assert ended.error is not None
    assert ended.error.type == "TaskTimeout"
    assert "could not be stopped: the worker process was restarted" in ended.error.message
    assert "in is_stuck" in ended.error.traceback
    assert "engine/" not in ended.error.traceback


@pytest.fixture
def _caught(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    catcher.begin("test")
    yield
    catcher.end("test")


def said(call: Call) -> list[LogBatch]:
    """What the run of a call has logged, and that all of it was there before its end was reported."""
    reporter = Listed()
    at_the_end: list[int] = []
    end = reporter.end
    reporter.end = lambda report: (at_the_end.append(len(reporter.logs._lines)), end(report))  # type: ignore[assignment,func-returns-value]
    with contextlib.suppress(TaskFailed, Postponed):
        asyncio.run(execute_async(call, (), reporter)) if call.is_async else execute(call, (), reporter)
    batches = [decode_batch(mail.value) for mail in reporter.logs.take_all()]
    assert sum(len(batch.lines) for batch in batches) == sum(at_the_end)
    assert speaker.get() is None
    return batches


@pytest.mark.usefixtures("_caught")
@pytest.mark.parametrize("task", [talk.talks, talk.talks_later])
def test_what_a_task_logs_either_way_is_said_by_its_attempt_in_order(task: Task[..., Any]) -> None:
    [batch] = said(call_of(task, "tea", attempt=2))
    name = task.name
    assert (batch.run_id, batch.flow, batch.task, batch.task_run_id) == (RUN_ID, "fulfil", name, f"{RUN_ID}/{name}/0")
    assert (batch.attempt, batch.worker, batch.trace_id) == (2, "tcp://worker:1", "0123456789abcdef0123456789abcdef")
    assert [(line.level, line.logger, line.message) for line in batch.lines] == [
        ("info", "tests.unit.samples.talk", "by the engine sku='tea' count=1"),
        ("info", "talk", "by logging tea"),
        ("warning", "talk", "odd"),
    ]
    assert batch.lines[0].at <= batch.lines[1].at <= batch.lines[2].at


@pytest.mark.usefixtures("_caught")
def test_an_exception_is_logged_with_its_traceback_and_a_failed_attempt_loses_no_line() -> None:
    [batch] = said(call_of(talk.fails_loudly))
    assert [line.level for line in batch.lines] == ["error", "error"]
    assert all("ValueError: no such tea" in line.message and "in fails_loudly" in line.message for line in batch.lines)


@pytest.mark.usefixtures("_caught")
def test_a_task_that_logs_without_end_ends_with_how_much_was_dropped() -> None:
    batches = said(call_of(talk.floods, MAX_LINES + 500))
    lines = [line for batch in batches for line in batch.lines]
    assert len(lines) == MAX_LINES + 1
    assert lines[0].message == "0"
    assert (lines[-1].level, lines[-1].message.partition(" more")[0]) == ("warning", "500")


def test_outside_of_tasks_nothing_is_caught() -> None:
    reporter = Listed()
    execute(call_of(orders.double, 1), (), reporter)
    logging.getLogger("talk").warning("nobody speaks")
    assert not reporter.logs
