"""The letter writer: the dead letter of a run that failed, before its end is told; it decides nothing else.

Order matters. The end is on the state topic only after its letter is on the dead-letter topic: a crash between the two
leaves the run open, its next owner comes to the same end and writes the letter again, and letters of one run are one
letter to their readers (``Details.identity``). The other way round a crash would lose the letter for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

import msgspec

from engine.broker import Broker, Partition, Record, Sink
from engine.dead_letters import Content, Details, read_replay, write_letter
from engine.errors import EngineError, KafkaUnavailable, RecordTooLarge, TopicError
from engine.events import Headers, Position, Reason
from engine.logs import logger
from engine.metrics import Counts
from engine.origins import fetch
from engine.runs import FlowRun
from engine.settings import Settings
from engine.states import Origin, State, StateChange

_REASONS = {State.FAILED: Reason.RUN_FAILED, State.CRASHED: Reason.RUN_CRASHED}
_MAX_BACKOFF_SECONDS = 5.0
#: Runs whose events are fetched in one go.
_MAX_BATCH = 200
#: What a letter says of the error at the least.
_BARE_ERROR = 200


class _Pending(msgspec.Struct, frozen=True):
    run: FlowRun
    change: StateChange
    tell: Callable[[], None]


class LetterWriter:
    """Writes the letters of the flows that ask for them."""

    def __init__(
        self, settings: Settings, broker: Broker, sink: Sink, flows: Collection[str], counts: Counts | None = None
    ) -> None:
        """``flows`` are the names of those with ``on_failure="dead-letter"``."""
        self._settings = settings
        self._broker = broker
        self._sink = sink
        self._flows = frozenset(flows)
        self._counts = counts or Counts()
        self._waiting: list[_Pending] = []
        self._wake = asyncio.Event()

    def takes(self, change: StateChange) -> bool:
        """Whether a letter goes before this change."""
        return change.state in _REASONS and change.is_flow_run and change.flow in self._flows

    def add(self, run: FlowRun, change: StateChange, tell: Callable[[], None]) -> None:
        """Write the letter of a run, then ``tell`` its end."""
        self._waiting.append(_Pending(run, change, tell))
        self._wake.set()

    async def run(self) -> None:
        """Write letters until cancelled."""
        while True:
            await self._wake.wait()
            batch, self._waiting = self._waiting[:_MAX_BATCH], self._waiting[_MAX_BATCH:]
            if not self._waiting:
                self._wake.clear()
            await self._write_patiently(batch)
            for pending in batch:
                pending.tell()

    async def _write_patiently(self, batch: list[_Pending]) -> None:
        backoff_seconds = 0.1
        while True:
            try:
                events = await self._fetch({lies for p in batch if (lies := _lies(p.run)) is not None})
                await self._write(batch, events)
                return
            except KafkaUnavailable as error:
                # The runs stay open meanwhile, so nothing is lost; written again, letters repeat, and readers tell repeats.
                logger.warning("dead letters of failed runs wait for Kafka", error=str(error))
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(backoff_seconds * 2, _MAX_BACKOFF_SECONDS)

    async def _fetch(self, wanted: Collection[Position]) -> Mapping[Position, Record]:
        topics: dict[str, dict[Partition, set[int]]] = {}
        for position in wanted:
            of_topic = topics.setdefault(position.topic, {})
            of_topic.setdefault((position.topic, position.partition), set()).add(position.offset)
        found: dict[Position, Record] = {}
        for offsets in topics.values():
            with suppress(TopicError):  # the topic is gone and its events with it: their letters carry parameters
                found.update(await fetch(self._broker, offsets))
        return found

    async def _write(self, batch: list[_Pending], events: Mapping[Position, Record]) -> None:
        topic, limit = self._settings.dead_letters_topic, self._settings.max_record_bytes
        letters = [
            write_letter(topic, *_letter(pending, events.get(lies) if (lies := _lies(pending.run)) else None), limit)
            for pending in batch
        ]
        try:
            await self._sink.write(letters)
        except RecordTooLarge:
            # A topic with a smaller limit than ours. One by one it turns out which it is; that one goes without its value.
            for pending, letter in zip(batch, letters, strict=True):
                try:
                    await self._sink.write([letter])
                except RecordTooLarge:
                    await self._write_small(pending)
        for pending in batch:
            reason, event = _REASONS[pending.change.state].value, pending.run.event
            self._counts.letter("" if event is None else event.topic, reason)
            logger.warning("dead letter", reason=reason, run_id=pending.run.run_id)

    async def _write_small(self, pending: _Pending) -> None:
        """As much of a letter as the topic takes: without its value, then with next to nothing but where that lies."""
        topic, limit = self._settings.dead_letters_topic, self._settings.max_record_bytes
        details, key, _, headers = _letter(pending, None)
        small = msgspec.structs.replace(details, content=Content.ABSENT)
        try:
            await self._sink.write([write_letter(topic, small, key, None, headers, limit)])
        except RecordTooLarge:  # a topic that takes very little; where not even this fits the engine ends with the error
            bare = msgspec.structs.replace(small, error=small.error[:_BARE_ERROR], key=None)
            await self._sink.write([write_letter(topic, bare, None, None, (), limit)])


def _lies(run: FlowRun) -> Position | None:
    """Where the record of the run's event lies: that of the replay where there was one."""
    event = run.event
    if event is None:
        return None
    return _origin(event) if event.replay is None else Position(event.replay.topic, event.replay.partition, event.replay.offset)


def _origin(event: Origin) -> Position:
    return Position(event.topic, event.partition, event.offset)


def _letter(pending: _Pending, record: Record | None) -> tuple[Details, bytes | None, bytes | None, Headers]:
    run, change = pending.run, pending.change
    error = change.error
    replay = run.event.replay if run.event is not None else None
    details = Details(
        reason=_REASONS[change.state],
        error="" if error is None else f"{error.type}: {error.message}",
        origin=None if run.event is None else _origin(run.event),
        at=change.at.isoformat(),
        event_at=None if run.event is None else run.event.at,
        flow=run.flow,
        replay=None if replay is None else replay.id,
        run_id=run.run_id,
        key=run.key,
        trace=run.traceparent,
    )
    if record is None:
        return _of_parameters(details, run)
    headers, content = record.headers, Content.EVENT
    if replay is not None:
        try:
            told = read_replay(record.headers)
        except EngineError:
            return _of_parameters(details, run)  # Somebody wrote over the replay; the run knows what it ran with.
        headers, content = told.headers, told.content
    return msgspec.structs.replace(details, content=content), record.key, record.value, headers


def _of_parameters(details: Details, run: FlowRun) -> tuple[Details, bytes | None, bytes | None, Headers]:
    """The letter where the event is gone from its topic: it says so, and carries what the flow was given."""
    event = run.event
    headers: Headers = ()
    if event is not None and event.type:
        attributes = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
        headers = tuple((f"ce_{name}", text.encode(errors="replace")) for name, text in attributes.items())
    return msgspec.structs.replace(details, content=Content.PARAMETERS), None, run.parameters, headers
