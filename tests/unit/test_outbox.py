"""engine.outbox and engine.deliveries: one target's notices: tried again, bounded, given up, and what that does to offsets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from engine.command_errors import NotDelivered
from engine.deliveries import GIVE_UP_SECONDS, Delivery, Holds, hold_all
from engine.notices import Notice
from engine.outbox import Outbox
from engine.retries import Retry
from engine.states import utc
from engine.targets import Address, AppriseTarget
from tests.waiting import eventually

QUICK = AppriseTarget(Address(None, "URL"), ("f.py", 1), Retry(3, 0.0))
USUAL = AppriseTarget(Address(None, "URL"), ("f.py", 1))


def notice(name: str) -> Notice:
    return Notice(id=name, app="shop", origin="flow f", title=name, text=name, at=utc(1.0))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """A sender that keeps what it is given, fails as it is told, or hangs."""

    def __init__(self, fail: Callable[[str], NotDelivered | None] = lambda id: None, concurrency: int = 1) -> None:
        self.concurrency = concurrency
        self.fail = fail
        self.tried: list[str] = []
        self.taken: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, notice: Notice) -> None:
        self.tried.append(notice.id)
        await self.open.wait()
        if (error := self.fail(notice.id)) is not None:
            raise error
        self.taken.append(notice.id)

    is_busy = False

    def close(self) -> None: ...


class Post:
    """An outbox at work."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self.outbox, self.clock = outbox, clock
        self.finished: list[str] = []

    def offer(self, name: str, target: AppriseTarget = QUICK) -> bool:
        return self.outbox.offer(Delivery(notice(name), target, self.clock.now, lambda: self.finished.append(name)))


@asynccontextmanager
async def at_work(sender: Shelf, **options: int) -> AsyncIterator[Post]:
    clock = Clock()
    outbox = Outbox("target", sender, stuck_seconds=5.0, clock=clock, **options)
    running = asyncio.create_task(outbox.run())
    await asyncio.sleep(0)
    yield Post(outbox, clock)
    outbox.stop()
    sender.open.set()
    await running


async def test_what_is_offered_is_delivered_in_order_and_released() -> None:
    sender = Shelf()
    async with at_work(sender) as post:
        assert all(post.offer(name) for name in "abc")
        await eventually(lambda: post.finished == ["a", "b", "c"])
    assert sender.taken == ["a", "b", "c"]


async def test_a_failure_is_tried_again_and_holds_up_nothing_behind_it() -> None:
    trouble = {"a": 2}

    def fail(id: str) -> NotDelivered | None:
        trouble[id] = trouble.get(id, 0) - 1
        return NotDelivered("busy", False, None) if trouble[id] >= 0 else None

    sender = Shelf(fail)
    async with at_work(sender) as post:
        assert all(post.offer(name) for name in "ab")
        await eventually(lambda: len(post.finished) == 2)
    assert sender.taken == ["b", "a"]
    assert sender.tried.count("a") == 3


async def test_what_has_failed_for_the_last_time_is_given_up_with_a_line_in_the_log() -> None:
    sender = Shelf(lambda id: NotDelivered("it answered 500", False, None))
    with capture_logs() as logs:
        async with at_work(sender) as post:
            post.offer("a")
            await eventually(lambda: post.finished == ["a"])
    assert sender.tried == ["a"] * 3
    [given_up] = [line for line in logs if line["event"] == "notification given up"]
    assert given_up["log_level"] == "error"
    assert (given_up["delivery"], given_up["attempts"], given_up["error"]) == ("a", 3, "it answered 500")


async def test_a_final_failure_is_not_tried_again() -> None:
    sender = Shelf(lambda id: NotDelivered("gone", True, None))
    async with at_work(sender) as post:
        post.offer("a")
        await eventually(lambda: post.finished == ["a"])
    assert sender.tried == ["a"]


async def test_a_full_outbox_of_a_working_target_asks_to_wait_and_that_of_a_stuck_one_gives_up_the_oldest() -> None:
    sender = Shelf()
    sender.open.clear()
    with capture_logs() as logs:
        async with at_work(sender, most_waiting=3) as post:
            assert all(post.offer(name) for name in "abc")
            await eventually(lambda: sender.tried == ["a"])
            assert not post.offer("d"), "it may have room soon"
            post.clock.now += 6
            assert post.offer("d")
            assert post.finished == ["b"], "the oldest that is not under way"
            assert post.outbox.waiting == 3
            assert post.offer("e")
            sender.open.set()
            await eventually(lambda: len(post.finished) == 5)
    assert sender.taken == ["a", "d", "e"]
    counts = [line["count"] for line in logs if "takes nothing" in line["event"]]
    assert sum(counts) == 2


async def test_stopping_ends_what_is_under_way_and_leaves_the_rest_to_the_next_start() -> None:
    sender = Shelf()
    sender.open.clear()
    outbox = Outbox("target", sender, stuck_seconds=5.0)
    finished: list[str] = []
    running = asyncio.create_task(outbox.run())
    for name in "ab":
        outbox.offer(Delivery(notice(name), QUICK, 0.0, lambda name=name: finished.append(name)))  # type: ignore[misc]
    await eventually(lambda: sender.tried == ["a"])
    outbox.stop()
    sender.open.set()
    await running
    assert finished == ["a"]


def test_back_off_doubles_and_ends_after_ten_attempts() -> None:
    delivery = Delivery(notice("a"), USUAL, 0.0, lambda: None)
    waits: list[float | None] = []
    for attempt in range(1, 11):
        delivery.attempts = attempt
        waits.append(delivery.wait_seconds(0.0))
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, None]


def test_what_has_waited_long_behind_others_is_tried_once_unless_its_own_policy_says_more() -> None:
    old = Delivery(notice("a"), USUAL, 0.0, lambda: None)
    old.attempts = 1
    assert old.wait_seconds(GIVE_UP_SECONDS) is None
    own = Delivery(notice("a"), QUICK, 0.0, lambda: None)
    own.attempts = 1
    assert own.wait_seconds(GIVE_UP_SECONDS) == 0.0


def test_a_target_may_say_when() -> None:
    delivery = Delivery(notice("a"), USUAL, 0.0, lambda: None)
    delivery.attempts = 1
    assert delivery.wait_seconds(0.0, retry_after_seconds=42.0) == 42.0


def test_an_offset_is_safe_when_all_before_it_have_been_told() -> None:
    holds = Holds(5)
    assert holds.safe_offset == 5
    first = hold_all([(holds, 5)])
    holds.pass_by(6)
    again, second = hold_all([(holds, 6)]), hold_all([(holds, 6)])
    holds.pass_by(9)
    assert (holds.safe_offset, holds.next_offset) == (5, 9)
    again()
    assert holds.safe_offset == 5
    first()
    assert holds.safe_offset == 6
    second()
    assert holds.safe_offset == 9


def test_what_no_record_has_set_off_holds_every_partition() -> None:
    one, two = Holds(3), Holds(7)
    release = hold_all([(one, one.next_offset), (two, two.next_offset)])
    one.pass_by(10)
    two.pass_by(10)
    assert (one.safe_offset, two.safe_offset) == (3, 7)
    release()
    assert (one.safe_offset, two.safe_offset) == (10, 10)


@pytest.mark.parametrize("times", [1, 2])
def test_a_delivery_is_finished_once(times: int) -> None:
    finished: list[str] = []
    delivery = Delivery(notice("a"), QUICK, 0.0, lambda: finished.append("a"))
    for _ in range(times):
        delivery.finish()
    assert finished == ["a"]
