"""Awaited events: what async flows wait for, in terms of the event watcher; decides nothing about runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec

from engine.broker import Broker
from engine.errors import EngineError, EventError
from engine.event_waits import Wait
from engine.event_watcher import EventWatcher
from engine.events import Position, RawEvent, decode_data
from engine.failures import failure_of
from engine.planning import PlannedWait
from engine.runs import FlowRun
from engine.states import Failure, encode

#: Told of each wait once: run, index of the wait, the event encoded or why there is none.
OnEvent = Callable[[str, str, bytes | None, Failure | None], None]


class AwaitedEvents:
    """The open waits of all runs that this engine drives."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._watcher: EventWatcher | None = None
        self._by_run: dict[str, set[str]] = {}
        self._on_event: OnEvent = lambda run_id, index, event, error: None
        #: What a thread has decoded last: waits for one topic mostly ask for one type, one after the other.
        self._last = threading.local()

    @property
    def trouble(self) -> str:
        """Empty while events are looked at; otherwise why not."""
        return "" if self._watcher is None else self._watcher.trouble

    def start(self, on_event: OnEvent) -> None:
        """Call ``on_event`` from now on. On a running event loop."""
        self._on_event = on_event
        self._watcher = EventWatcher(self._broker, self._found, self._failed)

    def add(self, run: FlowRun, planned: PlannedWait, had: frozenset[Position]) -> None:
        """A run waits for an event; those that lay at ``had`` it has had."""
        since = run.scheduled_at
        if run.event is not None:
            had |= {Position(run.event.topic, run.event.partition, run.event.offset)}
            if run.event.at is not None:
                # What came right behind the event that started the run came before the run was scheduled.
                since = min(since, run.event.at.timestamp())
        self._by_run.setdefault(run.run_id, set()).add(planned.index)
        if self._watcher is not None:
            self._watcher.add(
                Wait(
                    wait_id=f"{run.run_id}/{planned.index}",
                    topic=planned.topic,
                    type=planned.type,
                    source=planned.source,
                    matches=lambda event: self._matches(planned, event),
                    since_ms=int(since * 1000),
                    had=had,
                )
            )

    def drop(self, run_id: str, index: str) -> None:
        """The wait is over, or nobody waits for it any more."""
        waits = self._by_run.get(run_id, set())
        waits.discard(index)
        if not waits:
            self._by_run.pop(run_id, None)
        if self._watcher is not None:
            self._watcher.drop(f"{run_id}/{index}")

    def drop_run(self, run_id: str) -> None:
        """All waits of a run are over."""
        for index in list(self._by_run.get(run_id, ())):
            self.drop(run_id, index)

    async def close(self) -> None:
        """Look for nothing more."""
        if self._watcher is not None:
            await self._watcher.close()

    def _matches(self, planned: PlannedWait, event: RawEvent) -> bool:
        last = getattr(self._last, "decoded", None)
        if last is None or last[0] is not event or last[1] is not planned.data:
            try:
                typed = msgspec.structs.replace(event, data=decode_data(event, planned.data))
            except EventError:  # it is no event of this kind, and passed over
                typed = None
            last = self._last.decoded = (event, planned.data, typed)
        typed = last[2]
        return typed is not None and (planned.where is None or bool(planned.where(typed)))

    def _found(self, wait_id: str, event: RawEvent) -> None:
        run_id, _, index = wait_id.partition("/")
        self._on_event(run_id, index, encode(msgspec.structs.replace(event, data=_plain(event))), None)

    def _failed(self, wait_id: str, error: EngineError) -> None:
        run_id, _, index = wait_id.partition("/")
        self._on_event(run_id, index, None, failure_of(error))


def _plain(event: RawEvent) -> Any:
    return decode_data(event, Any)
