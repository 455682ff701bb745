"""Attempts: what a running task may ask about itself; values only, it never looks at the clock."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime
from typing import Protocol

import msgspec

from engine.errors import NoAttempt
from engine.runs import task_run_id_of
from engine.states import later, utc

__all__ = ["Attempt", "attempt", "current"]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of a task run."""

    #: 1 for the first.
    number: int
    flow: str
    run_id: str
    task: str
    task_run_id: str
    #: When its time is over, in UTC; None where it has no ``timeout_seconds``.
    deadline_at: datetime | None = None

    @property
    def idempotency_key(self) -> str:
        """Equal for all attempts of a task run and for no other: for services that drop what they have done already."""
        return self.task_run_id

    def remaining_seconds(self, now: datetime) -> float | None:
        """How long it may still run, never below 0, at the aware time ``now``; None where nothing limits it."""
        return None if self.deadline_at is None else max(0.0, (self.deadline_at - now).total_seconds())


class Running(Protocol):
    """What is known of a task that runs; a Call is one."""

    @property
    def flow(self) -> str:
        """Name of its flow."""
        ...

    @property
    def run_id(self) -> str:
        """Its run."""
        ...

    @property
    def task(self) -> str:
        """Its name."""
        ...

    @property
    def index(self) -> str:
        """Its place among the calls of the run."""
        ...

    @property
    def attempt(self) -> int:
        """1 for the first."""
        ...

    @property
    def timeout_seconds(self) -> float | None:
        """What an attempt may take."""
        ...


#: The call that runs in this context and when it began, in seconds since the epoch; worth an Attempt only when asked for.
current: ContextVar[tuple[Running, float] | None] = ContextVar("attempt", default=None)


def attempt() -> Attempt:
    """The attempt that runs here. Raises NoAttempt outside a task and in threads that a task has started."""
    running = current.get()
    if running is None:
        raise NoAttempt
    call, started_at = running
    return Attempt(
        number=call.attempt,
        flow=call.flow,
        run_id=call.run_id,
        task=call.task,
        task_run_id=task_run_id_of(call.run_id, call.task, call.index),
        deadline_at=None if call.timeout_seconds is None else later(utc(started_at), call.timeout_seconds),
    )
