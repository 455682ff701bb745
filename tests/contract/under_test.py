"""A broker under test: makes topics, sources and sinks that are closed in the end, and reads what came."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from engine.broker import Broker, OffsetReader, Outgoing, Partition, Reader, Record, Sink, Source, TopicSpec


class Log:
    """A broker, and all that a test made on it, to be closed in the end."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._open: list[Source | Sink | Reader | OffsetReader] = []

    async def topic(self, partitions: int = 1, **config: str) -> str:
        """A new topic; settings with underscores for dots."""
        name = f"test-{uuid.uuid4().hex}"
        spec = TopicSpec(name, partitions, config={key.replace("_", "."): value for key, value in config.items()})
        assert await self.broker.ensure_topics([spec]) == [name]
        return name

    async def source(self, *topics: str, group: str | None = None, **options: object) -> Source:
        """A source that has started."""
        source = self.broker.source(topics, group=group, **options)  # type: ignore[arg-type]
        self._open.append(source)
        await source.start()
        return source

    def closing(self, part: Source | Sink) -> None:
        """Close this one, too."""
        self._open.append(part)

    async def sink(self) -> Sink:
        """A sink that has started."""
        sink = self.broker.sink()
        self._open.append(sink)
        await sink.start()
        return sink

    def reader(self) -> Reader:
        """A reader of single records."""
        reader = self.broker.reader()
        self._open.append(reader)
        return reader

    def offset_reader(self) -> OffsetReader:
        """A reader of how groups stand."""
        reader = self.broker.offset_reader()
        self._open.append(reader)
        return reader

    async def write(self, *records: Outgoing) -> None:
        """Write with a sink of its own."""
        await (await self.sink()).write(records)

    async def close(self) -> None:
        """Close everything, the latest first."""
        for part in reversed(self._open):
            await part.close()
        await self.broker.close()


async def read(source: Source, count: int, *, polls: int = 200, max_records: int = 1000) -> list[Record]:
    """So many records, or what has come when it is clear that no more come."""
    records: list[Record] = []
    for _ in range(polls):
        if len(records) >= count:
            break
        records += await source.poll(timeout_seconds=0.1, max_records=max_records)
    return records


def values(records: Sequence[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def places(topic: str, count: int) -> list[Partition]:
    return [(topic, n) for n in range(count)]


def numbered(topic: str, count: int, partition: int | None = None, key: bytes | None = None) -> list[Outgoing]:
    return [Outgoing(topic, key, b"%d" % n, partition=partition) for n in range(count)]


def a_group() -> str:
    return f"group-{uuid.uuid4().hex}"
