"""An event-driven task engine: Kafka events become Dask task graphs, every state change goes back onto Kafka."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.attempts import Attempt, attempt
    from engine.durable import now, random, sleep, wait_for_event
    from engine.errors import (
        EngineError,
        EventTimeout,
        RetryableError,
        TaskCrashed,
        TaskFailed,
        TaskTimeout,
        TerminalError,
    )
    from engine.events import Event
    from engine.flows import flow, on
    from engine.handles import Handle, MapHandle, unmapped
    from engine.log_catcher import logger
    from engine.retries import Retry, exponential, fixed, jittered
    from engine.rules import Rule, rule
    from engine.sharing import Attached, attach
    from engine.states import Failure, State, StateChange
    from engine.subscriber import Subscription, subscribe
    from engine.targets import notify, webhook
    from engine.tasks import task

__all__ = [
    # Declare what events start.
    "flow",
    "on",
    "task",
    "Event",
    "unmapped",
    "Handle",
    "MapHandle",
    # Wait, in an async flow.
    "sleep",
    "wait_for_event",
    "now",
    "random",
    # Say what happens when a task fails.
    "Retry",
    "exponential",
    "fixed",
    "jittered",
    "TerminalError",
    "RetryableError",
    # Ask, inside a task, which attempt of what it is.
    "attempt",
    "Attempt",
    # Say something in a task or a flow: it goes to the run's log.
    "logger",
    # Hear what became of it.
    "subscribe",
    "Subscription",
    "StateChange",
    "State",
    "Failure",
    # Be told of it.
    "notify",
    "webhook",
    "rule",
    "Rule",
    # Share its futures while it runs.
    "attach",
    "Attached",
    # What anything here may raise.
    "TaskFailed",
    "TaskTimeout",
    "TaskCrashed",
    "EventTimeout",
    "EngineError",
]

# Imported when first used: a worker or a handler under test needs no Kafka client, and `engine --help` needs nothing.
_HOMES = {
    "flow": "engine.flows",
    "on": "engine.flows",
    "task": "engine.tasks",
    "Event": "engine.events",
    "unmapped": "engine.handles",
    "Handle": "engine.handles",
    "MapHandle": "engine.handles",
    "sleep": "engine.durable",
    "wait_for_event": "engine.durable",
    "now": "engine.durable",
    "random": "engine.durable",
    "Retry": "engine.retries",
    "exponential": "engine.retries",
    "fixed": "engine.retries",
    "jittered": "engine.retries",
    "TerminalError": "engine.errors",
    "RetryableError": "engine.errors",
    "attempt": "engine.attempts",
    "Attempt": "engine.attempts",
    "logger": "engine.log_catcher",
    "subscribe": "engine.subscriber",
    "Subscription": "engine.subscriber",
    "attach": "engine.sharing",
    "Attached": "engine.sharing",
    "notify": "engine.targets",
    "webhook": "engine.targets",
    "rule": "engine.rules",
    "Rule": "engine.rules",
    "StateChange": "engine.states",
    "State": "engine.states",
    "Failure": "engine.states",
    "TaskFailed": "engine.errors",
    "TaskCrashed": "engine.errors",
    "EventTimeout": "engine.errors",
    "EngineError": "engine.errors",
    "TaskTimeout": "engine.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
