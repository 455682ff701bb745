"""The async flow of handlers.checkout: it waits, goes on when the money comes, and sets right what went wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from engine import State, Subscription
from engine.testing import Bench, Run, bench, run
from handlers import checkout
from handlers.checkout import Checkout, Order, Paid

ORDER = Order("o-1", "tea", "DE")
WAIT = "engine.wait_for_event"


async def order(engine: Bench, data: Order = ORDER) -> asyncio.Task[Run]:
    """Send an order, and come back when its run waits for the money."""

    async def send() -> Run:
        return (await engine.send("orders", data, type="order.created")).run

    async with Subscription(engine.broker, engine.settings.states_topic, from_beginning=True) as changes:
        sending = asyncio.create_task(send())
        async for change in changes:
            if change.task == WAIT and change.state is State.RUNNING:
                break
    return sending


async def pay(engine: Bench, order_id: str = "o-1", **changes: Any) -> None:
    await engine.send("orders", {"order_id": order_id, "payment_id": "p-1"} | changes, type="order.paid")


def tasks(made: Run) -> list[str | None]:
    return [change.task for change in made.changes if change.task and change.state is State.COMPLETED]


async def test_an_order_waits_for_its_money_and_is_shipped() -> None:
    async with bench(checkout.checkout) as engine:
        running = await order(engine)
        assert not running.done()
        await pay(engine)
        made = await running
    assert made.result(Checkout) == Checkout("o-1", "shipped", "DE-o-1")
    assert tasks(made) == ["reserve", WAIT, "ship"]


async def test_money_that_comes_right_behind_the_order_is_found() -> None:
    async with bench(checkout.checkout) as engine:
        outcome, _ = await asyncio.gather(engine.send("orders", ORDER, type="order.created"), pay(engine))
    assert outcome.run.result(Checkout).outcome == "shipped"


async def test_the_money_for_another_order_and_rubbish_ship_nothing() -> None:
    async with bench(checkout.checkout) as engine:
        running = await order(engine)
        await pay(engine, "o-2")
        await pay(engine, payment_id=None)
        await engine.send("orders", b"\xff", type="order.paid")
        await engine.send("orders", Paid("o-1", "p-1"), type="order.refused")
        await pay(engine)
        made = await running
    found = next(change.result for change in made.changes if change.task == WAIT and change.state is State.COMPLETED)
    assert msgspec.json.decode(found)["data"] == {"order_id": "o-1", "payment_id": "p-1"}


def test_an_order_that_is_not_paid_in_time_is_cancelled_and_its_goods_are_put_back() -> None:
    made = run(checkout.checkout, msgspec.structs.replace(ORDER, pay_within_seconds=0.05))
    assert made.result(Checkout) == Checkout("o-1", "cancelled", reason="not paid in time")
    assert tasks(made) == ["reserve", "release"]
    [ended] = [change for change in made.changes if change.task == WAIT and change.state.is_end]
    assert (ended.state, ended.reason) == (State.CANCELLED, "timeout")


async def test_what_cannot_be_shipped_is_paid_back_and_put_back_and_the_run_completes() -> None:
    async with bench(checkout.checkout) as engine:
        running = await order(engine, msgspec.structs.replace(ORDER, country="AQ"))
        await pay(engine)
        made = await running
    assert made.result(Checkout) == Checkout("o-1", "refunded", reason="no carrier goes to AQ")
    assert tasks(made) == ["reserve", WAIT, "refund", "release"]
    assert [change.attempt for change in made.changes if change.task == "ship" and change.state is State.FAILED] == [1]


def test_what_is_not_in_stock_is_cancelled_before_anybody_waits() -> None:
    made = run(checkout.checkout, msgspec.structs.replace(ORDER, quantity=11))
    assert made.result(Checkout) == Checkout("o-1", "cancelled", reason="only 10 of tea are left")
    assert tasks(made) == []
