"""Watches a topic of ends without reading it while the clock runs: the broker stamps what it appends, so one may look later."""

from __future__ import annotations

from engine.broker import Record
from engine.kafka import KafkaBroker

#: Made so, a topic's records carry the moment at which the broker appended them, not that at which a producer made them.
APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}


class Ends:
    """A reader of a whole topic, from its end on, that is paused unless it is asked to read."""

    def __init__(self, broker: KafkaBroker, topic: str) -> None:
        self._source = broker.source([topic], group=None, from_latest=True)
        self._read_to: dict[tuple[str, int], int] = {}

    async def open(self) -> None:
        await self._source.start()
        partitions = sorted(self._source.assignment)
        self._source.pause(partitions)
        self._read_to = await self._source.end_offsets(partitions)

    async def close(self) -> None:
        await self._source.close()

    async def unread(self) -> int:
        """How many records were appended since the last read: one small request, whatever their number."""
        ends = await self._source.end_offsets(list(self._read_to))
        return sum(ends.values()) - sum(self._read_to.values())

    async def read(self) -> list[Record]:
        """All records that are there now and were not read before."""
        ends = await self._source.end_offsets(list(self._read_to))
        records: list[Record] = []
        self._source.resume(list(ends))
        while any(self._read_to[partition] < end for partition, end in ends.items()):
            for record in await self._source.poll(timeout_seconds=0.5, max_records=20_000):
                self._read_to[record.topic, record.partition] = record.offset + 1
                records.append(record)
        self._source.pause(list(ends))
        return records
