"""Async flows that are taken over, and one that has changed meanwhile. Imported by tests, workers and engines."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import msgspec

import engine
from engine import Retry, TaskFailed, fixed, flow, on, task

_PREFIX = os.environ.get("TESTED_PREFIX", "")


class Paid(msgspec.Struct):
    order: str
    amount: int


@task
def step(folder: str, name: str, waits: bool = False) -> str:
    """Note that it ran; one that waits goes on when the file ``go`` is there."""
    with Path(folder, "notes").open("a") as notes:
        notes.write(f"{name}\n")
    while waits and not Path(folder, "go").exists():
        threading.Event().wait(0.01)
    return name


@task
def book(folder: str, order: str) -> None:
    """Fails the first time."""
    before = Path(folder, f"tried {order}")
    if not before.exists():
        before.touch()
        raise ConnectionError("the bank is closed")


@task
def fail(folder: str) -> str:
    step.function(folder, "fail")
    raise ValueError("no")


@task
def large(size: int) -> list[str]:
    return ["x" * 100] * size


@flow(on(f"{_PREFIX}orders", type="order.created"))
async def checkout(order: str, folder: str, topic: str) -> Any:
    """Tasks, a failure that is dealt with, a sleep, an event, a task that waits, all awaited."""
    first = await asyncio.gather(step(folder, "one"), step(folder, "two"))
    try:
        await fail(folder)
    except TaskFailed as error:
        first.append(error.type)
    began_at, chance = engine.now(), engine.random()
    await step(folder, f"then {began_at.isoformat()} {chance}")
    await engine.sleep(0.2)
    paid = await engine.wait_for_event(
        topic, type="order.paid", where=lambda event: event.data.order == order, data=Paid, timeout_seconds=60
    )
    last = await step(folder, "last", True)
    rows = await large(300)
    return {
        "first": first,
        "paid": paid.data.amount,
        "last": last,
        "rows": len(rows),
        "slept": (engine.now() - began_at).total_seconds() >= 0.2,
        "then": f"then {began_at.isoformat()} {chance}",
    }


@flow(on(f"{_PREFIX}orders", type="order.created"))
async def wait_only(order: str, folder: str, topic: str) -> int:
    paid = await engine.wait_for_event(topic, type="order.paid", where=lambda e: e.data.order == order, data=Paid)
    return paid.data.amount


@flow(on(f"{_PREFIX}bills", type="bill.written"), retry=Retry(2, wait=fixed(0.05), on=ConnectionError))
async def settle(order: str, folder: str, topic: str) -> Paid:
    """Its first attempt that is paid fails, its second does not; where too little is paid, there is no second."""
    paid = await engine.wait_for_event(topic, type="bill.paid", where=lambda e: e.data.order == order, data=Paid)
    if paid.data.amount < 0:
        raise ValueError("that is not enough")
    await book(folder, order)
    return paid.data


@flow(on(f"{_PREFIX}changes"), name="changing")
async def before(folder: str) -> Any:
    await step(folder, "a")
    return await step(folder, "b", True)


@flow(on(f"{_PREFIX}changes"), name="renamed")
async def after(folder: str) -> Any:
    await step(folder, "a")
    return await large(1)


@flow(on(f"{_PREFIX}blocks"))
async def block(folder: str) -> None:
    while folder:
        pass
