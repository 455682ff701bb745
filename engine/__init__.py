"""An event-driven task engine: Kafka events become Dask task graphs, every state change goes back onto Kafka."""

from engine.errors import EngineError
from engine.events import Event
from engine.flows import flow, on
from engine.retries import Retry, exponential, fixed, jittered
from engine.states import Failure, State, StateChange
from engine.subscriber import Subscription, subscribe
from engine.tasks import task

__all__ = [
    # Declare what events start.
    "flow",
    "on",
    "task",
    "Event",
    # Say what happens when a task fails.
    "Retry",
    "exponential",
    "fixed",
    "jittered",
    # Hear what became of it.
    "subscribe",
    "Subscription",
    "StateChange",
    "State",
    "Failure",
    # What anything here may raise.
    "EngineError",
]
