"""engine.durable: outside a flow its functions are what their names say, inside a task they are refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import engine
from engine.errors import WiringError
from engine.handles import recorder
from tests.unit.test_tasks import Noted


def test_time_and_chance_outside_a_flow_are_pythons() -> None:
    before = datetime.now(UTC)
    assert before <= engine.now() <= datetime.now(UTC)
    assert 0 <= engine.random() < 1
    assert engine.random() != engine.random()


async def test_a_sleep_outside_a_flow_is_a_sleep_and_a_time_that_is_past_is_none() -> None:
    async with asyncio.timeout(5):
        await engine.sleep(0.001)
        await engine.sleep(until=datetime.now(UTC) - timedelta(days=1))


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({}, "it takes either seconds or until"),
        ({"seconds": 1, "until": datetime(2026, 1, 1, tzinfo=UTC)}, "it takes either seconds or until"),
        ({"until": datetime(2026, 1, 1)}, "has no time zone"),
    ],
)
async def test_a_sleep_that_says_too_little_or_too_much_is_refused(arguments: dict[str, Any], cause: str) -> None:
    with pytest.raises(WiringError, match=cause):
        await engine.sleep(**arguments)


async def test_an_event_cannot_be_waited_for_outside_a_flow() -> None:
    with pytest.raises(WiringError, match=r"outside of a run.*engine\.testing"):
        await engine.wait_for_event("orders")


async def test_inside_a_task_all_are_refused() -> None:
    token = recorder.set(Noted(takes_calls=False))
    try:
        for ask in (engine.now, engine.random):
            with pytest.raises(WiringError, match=f"engine.{ask.__name__}: it was called inside a task"):
                ask()
        with pytest.raises(WiringError, match=r"engine\.sleep: it was called inside a task.*use Python's own"):
            await engine.sleep(1)
        with pytest.raises(WiringError, match="inside a task"):
            await engine.wait_for_event("orders")
    finally:
        recorder.reset(token)
