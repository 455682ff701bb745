"""The flows of ``tracing``: each engine has a topic of its own, which it is told by a variable."""

from __future__ import annotations

import os

from engine import flow, on, task

TOPIC = os.environ.get("BENCH_TOPIC", "bench-traced")


@task
def double(number: int) -> int:
    return number * 2


@flow(on(TOPIC, type="one"))
def one(number: int):  # type: ignore[no-untyped-def]
    return double(number)
