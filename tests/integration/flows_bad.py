"""Flows and tasks that do what they should not, imported by the tests and by the workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import msgspec

from engine import flow, on, task


class Order(msgspec.Struct):
    id: str
    count: int


class Stubborn(Exception):
    """Cannot leave its process."""

    def __init__(self, reason: object) -> None:
        super().__init__("cannot travel")
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        raise TypeError("not me")


class Homebound:
    """A value that cannot leave its process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@task
def ship(id: str, count: int) -> str:
    return f"{id} x{count}"


@task
def misbehave(kind: str) -> Any:
    match kind:
        case "unpicklable error":
            raise Stubborn(kind)
        case "unpicklable result":
            return Homebound()
        case "sys.exit":
            sys.exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "deep":
            return misbehave.function(kind)
        case "no JSON":
            return float("nan")
    return kind


@task
def take(value: Any) -> str:
    return type(value).__name__


@task
def take_all(*values: Any) -> list[str]:
    return [type(value).__name__ for value in values]


@flow(on("orders"))
def deliver(order: Order) -> Any:
    return ship(order.id, order.count)


@flow(on("misdeeds"))
def misdeed(kind: str) -> Any:
    return misbehave(kind)


@flow(on("handed-on"))
def hand_on(kind: str, copies: int) -> Any:
    """Results that must leave the worker that made them: more of them than one worker has, taken by one task."""
    return take_all(*misbehave.map([kind] * copies))


@flow(on("dropped"))
def drop(kind: str) -> Any:
    misbehave(kind)
    return "dropped"


@flow(on("wirings"))
def wire_badly(kind: str) -> Any:
    match kind:
        case "raise":
            raise RuntimeError("no wiring today")
        case "exit":
            sys.exit(4)
        case "argument":
            return take(threading.Lock())
        case "look":
            return 1 if ship("a", 1) else 2
        case "signature":
            return ship("a")  # type: ignore[call-arg]
    return kind
