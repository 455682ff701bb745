"""What an async flow may ask of the engine beside its tasks: time, chance, sleep and events; each is recorded.

Outside a flow they are what their names say, so that a flow can be called by hand; an event cannot be waited for there.
"""

from __future__ import annotations

import asyncio
import random as chance
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from engine.errors import WiringError
from engine.events import Event
from engine.handles import recorder


class Durable(Protocol):
    """A recorder that also answers these; that of an async flow does."""

    def now(self) -> datetime:
        """The time of what the flow has heard last."""
        ...

    def random(self) -> float:
        """The next number of the run's own series."""
        ...

    def sleep(self, until: float) -> Awaitable[None]:
        """Wait until then."""
        ...

    def wait_for_event(
        self,
        topic: str,
        type: str | None,
        source: str | None,
        where: Callable[[Event[Any]], object] | None,
        data: Any,
        timeout_seconds: float | None,
    ) -> Awaitable[Event[Any]]:
        """Wait for an event."""
        ...


def now() -> datetime:
    """The time, for a flow: the same one when the run is gone through again."""
    durable = _durable("now")
    return datetime.now(UTC) if durable is None else durable.now()


def random() -> float:
    """A number from 0 up to 1, for a flow: the same one when the run is gone through again."""
    durable = _durable("random")
    return chance.random() if durable is None else durable.random()  # noqa: S311 - not for secrets


async def sleep(seconds: float | None = None, *, until: datetime | None = None) -> None:
    """Let an async flow wait for ``seconds``, or ``until`` a time, for a month if need be; it costs a little memory alone.

    Raises WiringError where it is given neither or both.
    """
    if (seconds is None) == (until is None):
        raise WiringError("engine.sleep", "it takes either seconds or until", "Write engine.sleep(60), or sleep(until=…).")
    if until is not None and until.tzinfo is None:
        raise WiringError("engine.sleep", f"until={until} has no time zone", "Give an aware time, e.g. with UTC.")
    durable = _durable("sleep")
    if durable is None:
        await asyncio.sleep(seconds if until is None else max(0.0, (until - datetime.now(UTC)).total_seconds()))  # type: ignore[arg-type]
        return
    await durable.sleep(durable.now().timestamp() + seconds if until is None else until.timestamp())  # type: ignore[operator]


async def wait_for_event(
    topic: str,
    *,
    type: str | None = None,
    source: str | None = None,
    where: Callable[[Event[Any]], object] | None = None,
    data: Any = Any,
    timeout_seconds: float | None = None,
) -> Event[Any]:
    """Let an async flow wait for an event of ``topic``; one that came since the run's own start is found as well.

    ``type`` (exact, or ``"order.*"``), ``source`` and ``where`` are as for ``on``; the event's data is decoded to ``data``
    before ``where`` sees it, and events whose data does not fit are passed over. Each event answers one wait of a run at
    most. Raises EventTimeout after ``timeout_seconds``, WiringError outside a flow.
    """
    durable = _durable("wait_for_event")
    if durable is None:
        cause = "it was called outside of a run, where no engine looks for events"
        raise WiringError("engine.wait_for_event", cause, "Run the flow with engine.testing, or with an event.")
    return await durable.wait_for_event(topic, type, source, where, data, timeout_seconds)


def _durable(what: str) -> Durable | None:
    active: Any = recorder.get()
    if active is None or hasattr(active, what):
        return active  # type: ignore[no-any-return]
    if active.takes_calls:
        cause = "it was called in a packed flow, and a run that is packed cannot wait on its own for time or events"
        raise WiringError(f"engine.{what}", cause, "Declare the flow without pack=True.")
    cause = "it was called inside a task, which is not gone through again"
    raise WiringError(f"engine.{what}", cause, "Call it in the flow; in a task use Python's own.")
