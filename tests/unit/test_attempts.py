"""engine.attempts: what a running task learns of itself."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

import engine
from engine.attempts import Attempt, attempt, current
from engine.errors import EngineError, NoAttempt
from tests.unit.samples import orders
from tests.unit.test_worker import RUN_ID, call_of, run


def test_a_running_task_learns_which_attempt_of_what_it_is() -> None:
    told, _ = run(call_of(orders.tells, attempt=2))
    assert isinstance(told, Attempt)
    assert (told.number, told.flow, told.run_id, told.task) == (2, "fulfil", RUN_ID, "tells")
    assert told.task_run_id == f"{RUN_ID}/tells/0"
    assert told.deadline_at is not None
    now = datetime.now(UTC)
    assert 0 < (told.remaining_seconds(now) or 0) <= 30


async def test_an_async_task_learns_it_too() -> None:
    from engine.worker import execute_async
    from tests.unit.test_worker import Listed

    told = await execute_async(call_of(orders.tells_later, attempt=3), (), Listed())
    assert (told.number, told.deadline_at) == (3, None)
    assert told.remaining_seconds(datetime.now(UTC)) is None
    with pytest.raises(NoAttempt):
        attempt()


def test_all_attempts_of_a_task_run_have_one_key_and_others_have_another() -> None:
    first, second = (run(call_of(orders.tells, attempt=number))[0] for number in (1, 2))
    assert first.idempotency_key == second.idempotency_key == first.task_run_id
    other, _ = run(msgspec.structs.replace(call_of(orders.tells), index="1"))
    assert other.idempotency_key != first.idempotency_key


def test_no_time_remains_after_the_deadline() -> None:
    told, _ = run(call_of(orders.tells))
    assert told.remaining_seconds(told.deadline_at - timedelta(seconds=2)) == 2.0
    assert told.remaining_seconds(told.deadline_at + timedelta(seconds=2)) == 0.0


def test_outside_a_task_there_is_no_attempt_and_the_error_says_so() -> None:
    run(call_of(orders.tells))
    run(call_of(orders.raises, "value"))
    with pytest.raises(EngineError, match=r"attempt\(\) was asked for outside a running task"):
        engine.attempt()


def test_threads_of_a_task_are_outside() -> None:
    current.set((call_of(orders.tells), 1.0))
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(current.get()))
    thread.start()
    thread.join()
    current.set(None)
    assert answers == [None]
