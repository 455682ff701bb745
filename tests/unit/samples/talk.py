"""Tasks and flows that log."""

from __future__ import annotations

import logging
from typing import Any

import engine
from engine import flow, on, task

log = engine.logger()


def _look_up(sku: str) -> None:
    raise ValueError(f"no such {sku}")


@task
def talks(sku: str) -> str:
    log.bind(sku=sku).info("by the engine", count=1)
    logging.getLogger("talk").info("by logging %s", sku)
    logging.getLogger("talk").warning("odd")
    return sku


@task
async def talks_later(sku: str) -> str:
    return talks(sku)


@task
def fails_loudly() -> None:
    try:
        _look_up("tea")
    except ValueError:
        log.exception("it failed")
        logging.getLogger("talk").exception("it failed")
        raise


@task
def floods(lines: int) -> None:
    for number in range(lines):
        log.info(str(number))


@flow(on("talk"))
def wired(sku: str) -> Any:
    log.info("wired", sku=sku)
    return talks(sku)


@flow(on("talk"))
async def awaits(sku: str) -> Any:
    log.info("begun")
    first = await talks(sku)
    log.info("went on", first=first)
    return await talks(first)


@flow(on("talk"), pack=True)
def packed(sku: str) -> Any:
    log.info("in a parcel")
    return [talks(sku), talks_later(sku)]
