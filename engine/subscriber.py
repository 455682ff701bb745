"""Subscribing: typed state changes off the state topic, repeats and void epochs dropped; it writes nothing but offsets."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from pathlib import Path
from types import TracebackType

from engine.broker import Broker, Partition, Record, Source
from engine.errors import EventError
from engine.events import Position
from engine.kafka import KafkaBroker
from engine.logs import logger
from engine.settings import load
from engine.states import Epochs, Ownership, State, StateChange, is_ownership, read, type_of
from engine.telemetry import Tracer

_POLL_SECONDS = 0.2
_POLL_RECORDS = 1_000
_COMMIT_EVERY_RECORDS = 1_000
#: Ended runs whose last seq is remembered, so that a repeat of their end is told for what it is.
_REMEMBERED_RUNS = 100_000
#: What closes subscriptions where a program ends in the middle of it.
_GUARDS: set[AsyncGenerator[None]] = set()


class Deduplicator:
    """Which changes of one partition to deliver, in the order of the log; pure."""

    def __init__(self) -> None:
        self._epochs = Epochs()
        self._open: dict[str, int] = {}
        self._ended: OrderedDict[str, int] = OrderedDict()

    def begin_epoch(self, offset: int) -> None:
        """An ownership record lies at ``offset``."""
        self._epochs.begin(offset)

    def is_new(self, change: StateChange) -> bool:
        """Whether ``change`` counts and was not delivered before."""
        if not self._epochs.admits(change):
            return False
        run_id = change.run_id
        last = self._open.get(run_id, self._ended.get(run_id, -1))
        if change.seq <= last:
            return False
        if change.is_flow_run and change.state.is_end:
            self._open.pop(run_id, None)
            self._ended[run_id] = change.seq
            if len(self._ended) > _REMEMBERED_RUNS:
                self._ended.popitem(last=False)
        else:
            self._open[run_id] = change.seq
        return True


class Changes:
    """What records of the state topic say to a subscriber; pure but for a line in the log."""

    def __init__(self) -> None:
        self._known: dict[Partition, Deduplicator] = {}

    def take(self, record: Record) -> StateChange | None:
        """The change that it carries; None for a repeat, a void one, what is none, and what cannot be read."""
        known = self._known.setdefault((record.topic, record.partition), Deduplicator())
        if is_ownership(type_of(record.headers)):
            known.begin_epoch(record.offset)
            return None
        try:
            change = read(record.value, record.headers)
        except EventError as error:
            # A subscriber can do nothing about it; the dispatcher that owns the partition says so, too.
            logger.error("unreadable record on the state topic", origin=str(record.position), error=str(error))
            return None
        return None if change is None or isinstance(change, Ownership) or not known.is_new(change) else change

    def clear(self) -> None:
        """Begin to compare anew: what another member delivered in between is unknown here."""
        self._known.clear()


class Subscription:
    """An async iterator over state changes; also an async context manager, which closes it.

    Iterated over without ``async with``, it is closed when the loop is left, however that is.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        *,
        group: str | None = None,
        from_beginning: bool = False,
        flows: Collection[str] = (),
        run_id: str | None = None,
        states: Collection[State] = (),
        on_caught_up: Callable[[], None] | None = None,
        owned_broker: bool = False,
        traced_as: str = "",
    ) -> None:
        """``on_caught_up`` is called once, when all that was there at the start was read; what it raises, we raise.

        ``traced_as`` is the name under which it is traced how long each change was dealt with, where anything is traced.
        """
        self._broker = broker
        self._traced_as = traced_as
        self._tracer: Tracer | None = None
        #: The change that is being dealt with, where it lies, and since when; None where nobody traces it.
        self._delivered: tuple[StateChange, Position, float] | None = None
        self._owned_broker = owned_broker
        self._on_caught_up = on_caught_up
        self._ends: dict[Partition, int] = {}
        self._group = group
        self._flows = frozenset(flows)
        self._run_id = run_id
        self._states = frozenset(states)
        self._source: Source = broker.source(
            [topic], group=group, from_latest=not from_beginning, on_assigned=self._assigned, on_revoked=self._revoked
        )
        self._known = Changes()
        self._done: dict[Partition, int] = {}
        self._revocations = 0
        self._uncommitted = 0
        self._is_started = False
        self._is_entered = False
        self._closing: asyncio.Task[None] | None = None
        self._changes: AsyncIterator[StateChange] | None = None

    async def start(self) -> Subscription:
        """Connect now rather than at the first change. Raises KafkaUnavailable or TopicError."""
        if not self._is_started:
            await self._source.start()
            self._is_started, self._closing = True, None
            if self._traced_as and (tracer := Tracer.from_environment(self._traced_as)).is_on:
                self._tracer = tracer
            if self._on_caught_up is not None:
                self._ends = await self._find_ends()
        return self

    async def __aenter__(self) -> Subscription:
        self._is_entered = True
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[StateChange]:
        return self if self._is_entered else self._until_left()

    async def __anext__(self) -> StateChange:
        self._trace()
        if self._changes is None:
            self._changes = self._iterate()
        return await anext(self._changes)

    async def close(self) -> None:
        """Commit what was delivered (with a group), and disconnect; whoever calls, it is done once and to its end."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="engine-subscription-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._trace()
        if self._is_started:
            await self._commit()
            await self._source.close()
            self._is_started = False
        if self._owned_broker:
            await self._broker.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
            self._tracer = None

    async def _until_left(self) -> AsyncIterator[StateChange]:
        # Who breaks out of the loop lets go of this generator, and its end is all that tells us. Where the program ends with
        # that, asyncio waits for no generator but those that are still there: for the guard.
        guard = self._guard()
        await anext(guard)
        _GUARDS.add(guard)
        try:
            while True:
                yield await anext(self)
        finally:
            await self.close()
            _GUARDS.discard(guard)
            await guard.aclose()

    async def _guard(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self.close()

    async def _iterate(self) -> AsyncIterator[StateChange]:
        await self.start()
        while True:
            self._notice_caught_up()
            records = await self._source.poll(timeout_seconds=_POLL_SECONDS, max_records=_POLL_RECORDS)
            revocations = self._revocations
            for record in records:
                change = self._read(record)
                if change is not None:
                    if self._tracer is not None:
                        self._delivered = (change, record.position, time.time())
                    yield change
                # After the yield: a change counts as delivered when the next one is asked for.
                if revocations == self._revocations:
                    self._done[record.topic, record.partition] = record.offset + 1
                    self._uncommitted += 1
            if self._uncommitted >= _COMMIT_EVERY_RECORDS:
                await self._commit()

    async def _find_ends(self) -> dict[Partition, int]:
        partitions = sorted(self._source.assignment)
        ends = await self._source.end_offsets(partitions)
        # A partition whose records have all expired ends at an offset that no record will ever bring.
        return {p: end for p, end in ends.items() if end and await self._source.offset_at(p, 0) is not None}

    def _notice_caught_up(self) -> None:
        if self._on_caught_up is not None and all(self._done.get(p, 0) >= end for p, end in self._ends.items()):
            tell, self._on_caught_up = self._on_caught_up, None
            tell()

    def _read(self, record: Record) -> StateChange | None:
        change = self._known.take(record)
        if change is None:
            return None
        wanted = (
            (not self._flows or change.flow in self._flows)
            and (self._run_id is None or change.run_id == self._run_id)
            and (not self._states or change.state in self._states)
        )
        return change if wanted else None

    def _trace(self) -> None:
        """The change delivered last has been dealt with."""
        if self._delivered is not None and self._tracer is not None:
            change, position, since = self._delivered
            self._delivered = None
            self._tracer.receive(change, position, self._group, since, time.time())

    async def _assigned(self, partitions: object) -> dict[Partition, int]:
        self._known.clear()
        return {}

    async def _revoked(self, partitions: object) -> None:
        # What comes back has perhaps been read further by another member: it is not taken back to where we were.
        self._revocations += 1
        self._done.clear()
        self._uncommitted = 0

    async def _commit(self) -> None:
        if self._group is not None and self._done and await self._source.commit(self._done):
            self._uncommitted = 0


def subscribe(
    *,
    app: str | None = None,
    kafka: str | None = None,
    group: str | None = None,
    from_beginning: bool = False,
    flows: Collection[str] = (),
    run_id: str | None = None,
    states: Collection[State] = (),
) -> Subscription:
    """State changes as they happen: ``async for change in engine.subscribe(flows=["fulfil"]): …``.

    ``app`` and ``kafka`` default to the settings in force (``ENGINE_*``, ``engine.toml``). With a ``group`` of your own
    several processes share the changes and a restart goes on where it was; without one you get all changes from now on,
    or ``from_beginning``. Filters are by flow names, one run, and states. Changes of one run come in order of ``seq``;
    after a restart with a group the last ones may come again.

    Where the ``OTEL_*`` variables say where spans go, each change that is dealt with leaves one in its run's trace, from
    when it was given to when the next one is asked for.

    Raises SettingsError at once, KafkaUnavailable and TopicError at the first change (or ``async with``).
    """
    settings = load({"app": app, "kafka": kafka}, os.environ, Path.cwd())
    return Subscription(
        KafkaBroker(settings),
        settings.states_topic,
        group=group,
        from_beginning=from_beginning,
        flows=flows,
        run_id=run_id,
        states=states,
        owned_broker=True,
        traced_as=f"{settings.app}-subscriber",
    )
