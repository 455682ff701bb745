"""Doomed engines: log and executor as one life of an engine sees them, with the points at which it may die."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from engine.broker import (
    Broker,
    OffsetReader,
    OnAssigned,
    OnRevoked,
    Outgoing,
    Partition,
    Reader,
    Record,
    Sink,
    Source,
    TopicSpec,
)
from engine.declarations import is_declaration
from engine.events import Position
from engine.executor import Call, Executor, Listener, Report, RunEnd, Submission
from engine.parcels import Outcome, Parcel
from engine.states import is_ownership, type_of
from tests.chaos.points import Life

#: The header of a run's own dead letter.
_OF_A_RUN = "x-engine-run"
_CLOSING = b"engine.checkpoint"
_CHECKPOINTS = (_CLOSING, b"engine.checkpoint_part", b"engine.ids")


class DoomedBroker:
    """The log, as one life of an engine sees it."""

    def __init__(self, inner: Broker, life: Life, states_topic: str) -> None:
        self._inner, self._life, self._states_topic = inner, life, states_topic
        self._sinks = 0

    def source(
        self,
        topics: Sequence[str],
        *,
        group: str | None,
        from_latest: bool = False,
        on_assigned: OnAssigned | None = None,
        on_revoked: OnRevoked | None = None,
    ) -> Source:
        name = {None: "reader", "intake": "intake", "dispatch": "dispatcher"}[group and group.rpartition(".")[2]]
        is_takeover = on_assigned is not None and name == "dispatcher"
        assigned = _assigned(on_assigned, self._life) if is_takeover and on_assigned is not None else on_assigned
        revoked = None if on_revoked is None else _revoked(on_revoked, self._life)
        source = self._inner.source(topics, group=group, from_latest=from_latest, on_assigned=assigned, on_revoked=revoked)
        self._life.sources.append(source)
        return DoomedSource(source, self._life, name)

    def sink(self) -> Sink:
        self._sinks += 1
        # The app makes the intake's first.
        return DoomedSink(self._inner.sink(), self._life, "intake" if self._sinks == 1 else "publisher")

    def reader(self) -> Reader:
        return DoomedReader(self._inner.reader(), self._life)

    def offset_reader(self) -> OffsetReader:
        return self._inner.offset_reader()

    async def ensure_topics(self, topics: Sequence[TopicSpec]) -> list[str]:
        return await self._inner.ensure_topics(topics)

    async def partitions(self, topic: str) -> int | None:
        return await self._inner.partitions(topic)

    async def close(self) -> None:
        """The log outlives every engine."""


def _assigned(inner: OnAssigned, life: Life) -> OnAssigned:
    async def assigned(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        await life.pass_by("takeover: assigned")
        starts = await inner(partitions)
        if life.on_takeover is not None:
            await life.on_takeover()
        await life.pass_by("takeover: done")
        return starts

    return assigned


def _revoked(inner: OnRevoked, life: Life) -> OnRevoked:
    async def revoked(partitions: Sequence[Partition]) -> None:
        if not life.is_dead:  # nobody asks the dead
            await inner(partitions)

    return revoked


class DoomedSource:
    """A member of a group; see DoomedBroker."""

    def __init__(self, inner: Source, life: Life, name: str) -> None:
        self._inner, self._life, self._name = inner, life, name
        for method in ("pause", "resume", "seek", "end_offsets", "committed", "offset_at", "position"):
            setattr(self, method, getattr(inner, method))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def assignment(self) -> frozenset[Partition]:
        return self._inner.assignment

    async def start(self) -> None:
        await self._inner.start()

    async def poll(self, *, timeout_seconds: float, max_records: int) -> list[Record]:
        if self._life.is_dead:
            await self._life.rest()
        records = await self._inner.poll(timeout_seconds=timeout_seconds, max_records=max_records)
        if records:
            await self._life.pass_by(f"{self._name}: after poll")
        return records

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        await self._life.pass_by(f"{self._name}: before commit")
        self._life.on_commit({place: offset for place, offset in offsets.items() if place in self._inner.assignment})
        is_done = await self._inner.commit(offsets)
        await self._life.pass_by(f"{self._name}: after commit")
        return is_done

    async def close(self) -> None:
        if not self._life.is_dead:
            await self._inner.close()


class DoomedSink:
    """A producer; see DoomedBroker."""

    def __init__(self, inner: Sink, life: Life, name: str) -> None:
        self._inner, self._life, self._name = inner, life, name

    async def start(self) -> None:
        await self._inner.start()

    async def write(self, records: Sequence[Outgoing]) -> list[Position]:
        if any(is_ownership(type_of(record.headers)) for record in records):
            await self._life.pass_by("takeover: before ownership")
            positions = await self._inner.write(records)
            await self._life.pass_by("takeover: after ownership")
            return positions
        if records and all(is_declaration(type_of(record.headers)) for record in records):
            # Nobody's run hangs on them: whoever dies there dies at its start, before it has done anything.
            if self._life.is_dead:
                await self._life.rest()
            return await self._inner.write(records)
        if (own := next((n for n, one in enumerate(records) if type_of(one.headers) in _CHECKPOINTS), None)) is not None:
            return await self._write_checkpoint(records, own)
        # The letter writer shares the intake's.
        is_letter = self._name == "intake" and all(any(name == _OF_A_RUN for name, _ in one.headers) for one in records)
        name = "letters" if is_letter else self._name
        point = f"{name}: {'after bind, ' if name == 'intake' else ''}before send"
        was_dead = self._life.is_dead
        if self._life.reach(point):
            if self._life.is_late and not was_dead:
                self._life.late += records
            await self._life.rest()
        if len(records) > 1 and self._life.reach(f"{name}: in the middle of send"):
            await self._inner.write(records[: len(records) // 2])
            await self._life.rest()
        positions = await self._inner.write(records)
        await self._life.pass_by(f"{name}: after send")
        return positions

    async def _write_checkpoint(self, records: Sequence[Outgoing], first: int) -> list[Position]:
        await self._life.pass_by("checkpoint: before send")
        if self._life.reach("checkpoint: in the middle of send"):
            await self._inner.write(records[: first + (type_of(records[first].headers) != _CLOSING)])
            await self._life.rest()
        positions = await self._inner.write(records)
        await self._life.pass_by("checkpoint: after send")
        return positions

    async def close(self) -> None:
        await self._inner.close()


class DoomedReader:
    """What reads checkpoints back, in the middle of a takeover."""

    def __init__(self, inner: Reader, life: Life) -> None:
        self._inner, self._life = inner, life

    async def read(self, partition: Partition, offsets: Collection[int]) -> dict[int, Record]:
        await self._life.pass_by("takeover: before a checkpoint is read")
        records = await self._inner.read(partition, offsets)
        await self._life.pass_by("takeover: after a checkpoint was read")
        return records

    async def close(self) -> None:
        await self._inner.close()


class DoomedExecutor:
    """The executor, as one life of an engine sees it; what it runs outlives the engine."""

    def __init__(self, inner: Executor, life: Life) -> None:
        self._inner, self._life = inner, life

    @property
    def trouble(self) -> str:
        return self._inner.trouble

    @property
    def slots(self) -> int:
        return self._inner.slots

    async def start(self, listener: Listener) -> None:
        await self._inner.start(DoomedListener(listener, self._life))

    def own(self, partition: int, epoch: int) -> None:
        if not self._life.reach("takeover: before the cluster knows"):
            self._inner.own(partition, epoch)

    async def held(self, partition: int, epoch: int) -> list[str]:
        return await self._inner.held(partition, epoch)

    def submit(self, submissions: Sequence[Submission]) -> None:
        if not self._life.reach("executor: before submit"):
            self._inner.submit(submissions)
            self._life.reach("executor: after submit")

    def send(self, parcel: Parcel, owners: Sequence[tuple[int, int]]) -> None:
        if not self._life.reach("executor: before submit"):
            self._inner.send(parcel, owners)
            self._life.reach("executor: after submit")

    def cancel(self, run_id: str) -> None:
        if not self._life.reach("executor: before cancel"):
            self._inner.cancel(run_id)
            self._life.reach("executor: after cancel")

    def cancel_packed(self, run_ids: Sequence[str]) -> None:
        if not self._life.is_dead:
            self._inner.cancel_packed(run_ids)

    def release(self, run_id: str, keep_seconds: float, end: RunEnd | None = None) -> None:
        if not self._life.reach("executor: before release"):
            self._inner.release(run_id, keep_seconds, end)
            self._life.reach("executor: after release")

    def release_parcels(self, run_ids: Sequence[str], keep_seconds: float) -> None:
        if not self._life.reach("executor: before release"):
            self._inner.release_parcels(run_ids, keep_seconds)
            self._life.reach("executor: after release")

    async def fetch(self, call: Call) -> Any:
        if self._life.is_dead:
            await self._life.rest()
        return await self._inner.fetch(call)

    async def close(self) -> None:
        """The next engine uses it, too."""


class DoomedListener:
    """What hears of results; see DoomedExecutor."""

    def __init__(self, inner: Listener, life: Life) -> None:
        self._inner, self._life = inner, life

    def on_reports(self, reports: Sequence[Report]) -> None:
        self._hear(lambda: self._inner.on_reports(reports))

    def on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        self._hear(lambda: self._inner.on_outcomes(outcomes))

    def on_deaths(self, run_ids: Sequence[str], reason: str) -> None:
        self._hear(lambda: self._inner.on_deaths(run_ids, reason))

    def on_refused(self, parcel_id: str) -> None:
        self._hear(lambda: self._inner.on_refused(parcel_id))

    def on_reset(self) -> None:
        self._hear(self._inner.on_reset)

    def _hear(self, tell: Callable[[], None]) -> None:
        if not self._life.reach("executor: before a result"):
            tell()
            self._life.reach("executor: after a result")
