"""engine.worker: whatever user code does, a report leaves, and what is raised can travel."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import msgspec
import pytest

from engine.deadlines import run_within
from engine.errors import TaskFailed
from engine.executor import Call, Report
from engine.graph import dump
from engine.states import State, encode
from engine.tasks import Handle, Task
from engine.telemetry import Tracer
from engine.worker import execute, execute_async, failure_of
from tests.unit.samples import orders

RUN_ID = "0123456789abcdef" * 2


class Listed:
    """A reporter that keeps what it hears."""

    address = "tcp://worker:1"
    restarts = True
    tracer = Tracer(None, None, None)

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.is_told = threading.Event()

    def begin(self, report: Report) -> None:
        self.reports.append(report)

    def end(self, report: Report) -> None:
        self.reports.append(report)

    def stuck(self, report: Report, key: str) -> None:
        self.reports.append(report)
        self.is_told.set()


def call_of(task: Task[..., Any], *args: Any, returns: bool = True, limit: int = 1_000, attempt: int = 1) -> Call:
    arguments, dependencies = dump((args, {}))
    return Call(
        index=0,
        task=task.name,
        function=task.reference,
        flow="fulfil",
        run_id=RUN_ID,
        arguments=arguments,
        dependencies=dependencies,
        attempt=attempt,
        depth=0,
        is_async=task.is_async,
        returns=returns,
        inline_result_bytes=limit,
        timeout_seconds=task.timeout_seconds,
        traceparent="00-0123456789abcdef0123456789abcdef-0123456789abcdef-00",
        scheduled_at=1.0,
    )


def run(call: Call, *results: Any) -> tuple[Any, list[Report]]:
    """The value, or the TaskFailed, and the reports."""
    reporter = Listed()
    try:
        if call.is_async:
            return asyncio.run(execute_async(call, results, reporter)), reporter.reports
        return execute(call, results, reporter), reporter.reports
    except TaskFailed as error:
        return error, reporter.reports


@pytest.mark.parametrize(("task", "expected"), [(orders.double, 42), (orders.later, 22)])
def test_a_value_is_reported_before_it_is_returned(task: Task[..., Any], expected: int) -> None:
    value, [begun, ended] = run(call_of(task, 21, attempt=2))
    assert value == expected
    assert (begun.state, ended.state) == (State.RUNNING, State.COMPLETED)
    assert (ended.run_id, ended.index, ended.attempt, ended.worker) == (RUN_ID, 0, 2, "tcp://worker:1")
    assert begun.started_at == ended.started_at <= ended.at
    assert ended.result == str(expected).encode()


def test_results_of_other_calls_take_the_places_of_their_handles() -> None:
    value, _ = run(call_of(orders.total, [Handle("a", 4), 1, Handle("b", 2)]), 10, 20)
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


def test_texts_of_errors_are_cut() -> None:
    failure = failure_of(ValueError("x" * 100_000))
    assert len(failure.message) == 4_096
    assert len(failure.traceback) == 32_768


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
    assert raised.type == "AttributeError"
    assert reports[-1].state is State.FAILED
    raised, _ = run(msgspec.structs.replace(gone, function="no_such_module:f"))
    assert raised.type == "ModuleNotFoundError"


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
    ("kind", "is_final", "retry_after_seconds"),
    [("terminal", True, None), ("retryable", False, 7.0), ("on", False, None), ("other", True, None)],
)
def test_a_report_says_what_the_error_means_for_another_attempt(
    kind: str, is_final: bool, retry_after_seconds: float | None
) -> None:
    _, [_, ended] = run(call_of(orders.raises_for_retry, kind))
    assert (ended.is_final, ended.retry_after_seconds) == (is_final, retry_after_seconds)


def test_the_traceback_of_a_timeout_says_where_the_code_was() -> None:
    raised, _ = run(call_of(orders.spins))
    assert "in spins" in raised.traceback
    assert "engine/deadlines.py" not in raised.traceback


def test_a_task_that_cannot_be_stopped_is_reported_once_and_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_within, "__kwdefaults__", {**(run_within.__kwdefaults__ or {}), "grace_seconds": 0.1})
    reporter = Listed()
    call = call_of(orders.is_stuck, Handle("told", 1))
    with pytest.raises(TaskFailed):
        execute(call, [reporter.is_told], reporter)
    begun, ended = reporter.reports
    assert (begun.state, ended.state) == (State.RUNNING, State.FAILED)
    assert ended.error is not None
    assert ended.error.type == "TaskTimeout"
    assert "could not be stopped: the worker process was restarted" in ended.error.message
    assert "in is_stuck" in ended.error.traceback
    assert "engine/" not in ended.error.traceback
