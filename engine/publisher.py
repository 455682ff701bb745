"""The publisher: state changes onto the state topic, in order, as few writes as possible; the last stage acknowledges.

One write is under way at a time, and two begin no closer together than a few milliseconds: the first change after a
pause goes out at once, and under load what comes meanwhile shares a write.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

import msgspec

from engine.broker import Outgoing, Sink
from engine.errors import KafkaUnavailable, RecordTooLarge
from engine.events import Headers, Position
from engine.letter_writer import LetterWriter
from engine.logs import logger
from engine.metrics import Counts
from engine.oversize import smaller
from engine.runs import FlowRun
from engine.states import Envelope, StateChange
from engine.telemetry import Tracer
from engine.trace_contexts import child_of
from engine.untold import Untold

_MAX_BACKOFF_SECONDS = 5.0
#: A write takes at most so many changes, so that one never outgrows the producer.
_MAX_BATCH = 2_000
#: Time between the beginnings of two writes: the least at first, doubled while changes keep coming. A write costs this
#: process, Kafka and every reader about the same whether it carries five changes or five hundred.
_LEAST_SPACING_SECONDS = 0.005
_MOST_SPACING_SECONDS = 0.080


class _Pending(msgspec.Struct, frozen=True, gc=False):
    record: Outgoing
    #: None of what is no state change.
    change: StateChange | None = None
    envelope: Envelope | None = None
    parent: str = ""
    context: str = ""
    on_acknowledged: Callable[[], None] | None = None
    on_written: Callable[[Position], None] | None = None
    on_refused: Callable[[RecordTooLarge], None] | None = None


class Publisher:
    """Writes the state changes of one engine."""

    def __init__(
        self, sink: Sink, topic: str, tracer: Tracer, letters: LetterWriter | None = None, counts: Counts | None = None
    ) -> None:
        """``letters`` takes the ends before which a dead letter is to be written."""
        self._letters = letters
        #: Told of each end of a run before that is queued; must not raise.
        self.on_end: Callable[[FlowRun, StateChange], None] = lambda run, change: None
        self._counts = counts or Counts()
        #: Ends that wait for their letter.
        self._held = 0
        self.untold = Untold()
        self._sink = sink
        self._topic = topic
        self._tracer = tracer
        self._waiting: list[_Pending] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        #: Empty while writes succeed; otherwise why the last one did not.
        self.trouble = ""

    @property
    def backlog(self) -> int:
        """Changes that wait for their write."""
        return len(self._waiting)

    def publish(
        self,
        run: FlowRun,
        envelope: Envelope,
        change: StateChange,
        partition: int,
        parent: str,
        on_acknowledged: Callable[[], None] | None = None,
    ) -> None:
        """Queue a change. ``parent`` is the context of the span it belongs to; ``on_acknowledged`` must not raise."""
        self._counts.told(run, change)
        context = child_of(parent, change.run_id, change.epoch, change.seq, "send")
        value, headers = envelope.write(change, context)
        record = Outgoing(self._topic, run.record_key, value, headers, partition)
        pending = _Pending(record, change, envelope, parent, context, on_acknowledged)
        if change.is_flow_run and change.state.is_end:
            self.on_end(run, change)
        if self._letters is not None and self._letters.takes(change):
            # A run's end is its last change, so nothing of the run can overtake it.
            self._idle.clear()
            self._held += 1
            self.untold.add(run)
            self._letters.add(run, change, functools.partial(self._let_go, run, pending))
            return
        self._append(pending)

    def append(
        self,
        value: bytes,
        headers: Headers,
        partition: int,
        on_written: Callable[[Position], None],
        on_refused: Callable[[RecordTooLarge], None],
    ) -> None:
        """Queue what is no state change, behind what is queued.

        ``on_written`` is told where it lies, or ``on_refused`` that the topic takes no record so large; neither may raise.
        """
        record = Outgoing(self._topic, None, value, headers, partition)
        self._append(_Pending(record, on_written=on_written, on_refused=on_refused))

    def _let_go(self, run: FlowRun, pending: _Pending) -> None:
        self._held -= 1
        self._append(pending)
        self.untold.tell([run])

    async def run(self) -> None:
        """Write until cancelled. Raises what no repetition mends: RecordTooLarge where the topic takes next to nothing."""
        spacing_seconds = 0.0
        while True:
            if not self._waiting:
                if not self._held:
                    self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                spacing_seconds = _LEAST_SPACING_SECONDS
            begun_at = time.monotonic()
            batch, self._waiting = self._waiting[:_MAX_BATCH], self._waiting[_MAX_BATCH:]
            await self._write(batch)
            await asyncio.sleep(max(0.0, begun_at + spacing_seconds - time.monotonic()))
            spacing_seconds = min(spacing_seconds * 2, _MOST_SPACING_SECONDS)

    async def drain(self) -> None:
        """Wait until everything queued so far is acknowledged."""
        await self._idle.wait()

    def _append(self, pending: _Pending) -> None:
        self._waiting.append(pending)
        self._idle.clear()
        self._wake.set()

    async def _write(self, batch: list[_Pending]) -> None:
        backoff_seconds = 0.1
        while True:
            started_at = time.time()
            try:
                positions = await self._send(batch)
                break
            except KafkaUnavailable as error:
                # The batch stays first in line: written again it may repeat changes, which readers drop by their seq.
                if not self.trouble:
                    logger.warning("state changes wait for Kafka", changes=len(batch), error=str(error))
                self.trouble = str(error)
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(backoff_seconds * 2, _MAX_BACKOFF_SECONDS)
        self.trouble = ""
        if self._tracer.is_on:
            ended_at = time.time()
            for pending in batch:
                if pending.change is not None:
                    self._tracer.send(pending.context, pending.parent, pending.change, self._topic, started_at, ended_at)
        for pending, position in zip(batch, positions, strict=True):
            if pending.on_acknowledged is not None:
                pending.on_acknowledged()
            elif pending.on_written is not None and position is not None:
                pending.on_written(position)

    async def _send(self, batch: list[_Pending]) -> list[Position | None]:
        """Where each lies; None for what was refused."""
        try:
            return [*await self._sink.write([pending.record for pending in batch])]
        except RecordTooLarge as error:
            # Halved until it is alone; the others go out in their order, before and after it.
            if len(batch) > 1:
                middle = len(batch) // 2
                return await self._send(batch[:middle]) + await self._send(batch[middle:])
            return [await self._send_smaller(batch[0], error)]

    async def _send_smaller(self, pending: _Pending, error: RecordTooLarge) -> Position | None:
        """A step must be told, or all that follows it in its run is void: it goes without what makes it large."""
        change, envelope, record = pending.change, pending.envelope, pending.record
        if change is None or envelope is None:
            if pending.on_refused is not None:
                pending.on_refused(error)
            return None
        logger.error("a state change is told in part", run_id=change.run_id, seq=change.seq, error=str(error))
        value, headers = envelope.write(smaller(change), pending.context)
        try:
            [position] = await self._sink.write([msgspec.structs.replace(record, value=value, headers=headers)])
        except RecordTooLarge:  # a topic that takes very little; where this does not fit either, the engine ends with the error
            value, headers = envelope.write(smaller(change, is_bare=True), pending.context)
            [position] = await self._sink.write([msgspec.structs.replace(record, value=value, headers=headers)])
        return position
