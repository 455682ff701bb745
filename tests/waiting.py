"""Waiting for a condition in tests, which never just sleep; the one place that asks again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

#: Far beyond what any condition takes; a test that waits so long has failed.
PATIENCE_SECONDS = 30.0


async def eventually(condition: Callable[[], object], timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Return when ``condition()`` is true. Raises AssertionError when it is not in time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            while not condition():  # noqa: ASYNC110  # any condition, so there is no event to wait for
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise AssertionError(f"not so within {timeout_seconds:g} s") from error


async def eventually_said(ask: Callable[[], Awaitable[object]], timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """The same for what has to be asked for over a network."""
    try:
        async with asyncio.timeout(timeout_seconds):
            while not await ask():  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise AssertionError(f"not so within {timeout_seconds:g} s") from error
