"""Flows that log, imported by the tests and by the workers."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import engine
from engine import flow, on, task

log = engine.logger("both")


@task
def both(number: int, gate: str) -> int:
    """Logs both ways, then goes on only when somebody opens the gate."""
    log.info("by the engine", number=number)
    logging.getLogger("both").info("by logging %d", number)
    while not Path(gate).exists():
        time.sleep(0.02)
    return number


@task
def floods(lines: int) -> int:
    """Logs some 100 MB."""
    text = "x" * 1_000
    for _ in range(lines):
        logging.getLogger("flood").info(text)
    log.warning("never seen")
    return lines


@flow(on("both"))
def mapped(numbers: list[int], gate: str) -> object:
    log.info("wired")
    return both.map(numbers, gate=gate)


@flow(on("flood"))
def flooded(lines: int) -> object:
    return floods(lines)
