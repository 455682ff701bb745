"""engine.flow_loop: the loop of one flow moves only when it is told to, and takes its time from outside."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from engine.errors import WiringError
from engine.flow_loop import MAX_LOST, FlowLoop


class Clock:
    """A clock and timers that tests turn."""

    def __init__(self) -> None:
        self.now = 5.0
        self.timers: dict[float, Callable[[], None]] = {}
        self.loop = FlowLoop("fulfil", lambda: self.now, self._set)  # type: ignore[abstract]

    def _set(self, when: float, ring: Callable[[], None]) -> Callable[[], None]:
        self.timers[when] = ring
        return lambda: self.timers.pop(when, None) and None

    def ring(self, when: float) -> None:
        self.now = when
        self.timers.pop(when)()
        self.loop.advance()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(coroutine)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_moves_until_it_is_told_to(clock: Clock) -> None:
    seen: list[int] = []

    async def body() -> None:
        seen.append(1)

    task = clock.start(body())
    assert seen == []
    clock.loop.advance()
    assert seen == [1]
    assert task.done()


def test_it_runs_until_everything_waits_and_leaves_no_running_loop(clock: Clock) -> None:
    future: asyncio.Future[int] = clock.loop.create_future()

    async def body() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await future

    task = clock.start(body())
    clock.loop.advance()
    assert not task.done()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    future.set_result(7)
    clock.loop.advance()
    assert task.result() == 7


def test_what_is_ready_runs_in_order(clock: Clock) -> None:
    seen: list[int] = []

    async def body(number: int) -> None:
        seen.append(number)
        await asyncio.sleep(0)
        seen.append(number + 10)

    tasks = [clock.start(body(number)) for number in range(3)]
    clock.loop.advance()
    assert seen == [0, 1, 2, 10, 11, 12]
    assert all(task.done() for task in tasks)


def test_a_sleep_is_a_timer_on_the_clock_outside(clock: Clock) -> None:
    async def body() -> float:
        await asyncio.sleep(60)
        return asyncio.get_running_loop().time()

    task = clock.start(body())
    clock.loop.advance()
    assert list(clock.timers) == [65.0]
    clock.ring(65.0)
    assert task.result() == 65.0


def test_a_timer_that_nobody_waits_for_is_forgotten(clock: Clock) -> None:
    future: asyncio.Future[int] = clock.loop.create_future()

    async def body() -> int:
        async with asyncio.timeout(10):
            return await future

    task = clock.start(body())
    clock.loop.advance()
    assert list(clock.timers) == [15.0]
    future.set_result(1)
    clock.loop.advance()
    assert (task.result(), clock.timers) == (1, {})


def test_what_is_left_behind_is_cancelled(clock: Clock) -> None:
    ended: list[str] = []

    async def body() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cleaned up")

    task = clock.start(body())
    clock.loop.advance()
    clock.loop.close_all()
    assert (ended, task.cancelled(), clock.timers) == (["cleaned up"], True, {})


def test_an_error_that_nobody_looked_at_is_kept_until_it_is_asked_for(clock: Clock) -> None:
    async def body() -> None:
        raise LookupError("mine")

    clock.start(body())
    clock.loop.advance()
    gc.collect()
    assert [str(error) for error in clock.loop.take_lost()[0]] == ["mine"]
    assert clock.loop.take_lost() == ([], 0)


def test_of_many_errors_that_nobody_looked_at_some_are_kept_and_the_others_counted(clock: Clock) -> None:
    """Also of tasks that somebody still holds when it is all over, but not of those that somebody has looked at."""

    async def body(number: int) -> None:
        raise LookupError(number)

    tasks = [clock.start(body(number)) for number in range(MAX_LOST + 7)]
    clock.loop.advance()
    assert tasks[0].exception() is not None
    assert clock.loop.take_lost() == ([], 0), "they are held: who knows"
    clock.loop.close_all()
    lost, more = clock.loop.take_lost()
    assert (len(lost), more) == (MAX_LOST, 6)
    assert tasks[0].exception() not in lost


@pytest.mark.parametrize(
    "ask",
    [
        lambda loop: asyncio.to_thread(print),
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: asyncio.open_connection("127.0.0.1", 1),
        lambda loop: asyncio.create_subprocess_exec("true"),
        lambda loop: asyncio.create_subprocess_shell("true"),
        lambda loop: loop.getaddrinfo("localhost", 1),
        lambda loop: loop.run_until_complete(None),
        lambda loop: loop.call_soon_threadsafe(print),
        lambda loop: loop.add_signal_handler(1, print),
    ],
)
def test_what_would_leave_the_flow_is_refused_by_its_name(clock: Clock, ask: Callable[[Any], Any]) -> None:
    async def body() -> None:
        await ask(asyncio.get_running_loop())

    task = clock.start(body())
    clock.loop.advance()
    with pytest.raises(WiringError, match=r"fulfil: an async flow has asked for a thread, a socket or a process"):
        task.result()


@pytest.mark.parametrize("kind", [asyncio.Lock, asyncio.Event, asyncio.Queue, lambda: asyncio.Semaphore(1)])
def test_what_asyncio_offers_beside_works(clock: Clock, kind: Callable[[], Any]) -> None:
    async def body() -> bool:
        made = kind()
        match made:
            case asyncio.Queue():
                await made.put(1)
                return await made.get() == 1
            case asyncio.Event():
                made.set()
                return await made.wait()
        async with made:
            return True

    task = clock.start(body())
    clock.loop.advance()
    assert task.result()
