"""Flows whose times all come from workers: tries again, sleeps, limits, and children."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import engine
from engine import Retry, TaskFailed, fixed, flow, on, task

log = engine.logger()


@task(retry=Retry(attempts=2, wait=fixed(0.3)))
def flaky(number: int) -> int:
    log.info("tried", number=number)
    if engine.attempt().number == 1:
        raise ValueError("once")
    time.sleep(0.05)
    return number


@task
def parent(number: int) -> Any:
    return flaky.spawn(number)


@task(timeout_seconds=0.5)
def endless() -> None:
    while True:
        time.sleep(0.01)


@flow(on("skews"))
async def skewed(count: int) -> dict[str, Any]:
    begin = engine.now()
    values = await asyncio.gather(*[flaky(number) for number in range(count)], parent(count))
    await engine.sleep(0.3)
    try:
        await endless()
    except TaskFailed as error:
        return {"values": values, "error": error.type, "took": (engine.now() - begin).total_seconds()}
    raise AssertionError


@flow(on("packs"), pack=True)
def packed(number: int) -> Any:
    return flaky(number)
