"""Snapshots: everything that lies on a topic now, partition by partition in order; then it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence

from engine.broker import Broker, Partition, Record, Source

_POLL_SECONDS = 0.1
_POLL_RECORDS = 1_000


async def snapshot(
    broker: Broker, topic: str, since_ms: int = 0, *, starts: Mapping[int, int] | None = None, only: int | None = None
) -> AsyncGenerator[Record, None]:
    """The records of a topic from ``since_ms`` (milliseconds since the epoch) up to what is there when it begins.

    ``starts`` has the offsets from which on partitions are read; one that is not in it is read from its beginning. ``only``
    is the one partition that is read. Raises KafkaUnavailable, and TopicError where the topic does not exist. Whoever
    leaves it early closes it (``contextlib.aclosing``).
    """
    offsets = {} if starts is None else starts
    source: Source
    ends: dict[Partition, int] = {}

    async def begin(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
        ends.update(await source.end_offsets(assigned))
        found = dict(ends)
        for place in assigned:
            if only is None or place[1] == only:
                first = await source.offset_at(place, since_ms)
                # Where nothing is so young there is nothing to read, whatever the end. And what has expired cannot be asked
                # for: an offset below the first would start at either end.
                if first is not None:
                    found[place] = min(max(first, offsets.get(place[1], 0)), ends[place])
        return found

    source = broker.source([topic], group=None, on_assigned=begin)
    try:
        await source.start()
        while True:
            for record in await source.poll(timeout_seconds=_POLL_SECONDS, max_records=_POLL_RECORDS):
                if record.offset < ends[record.topic, record.partition]:
                    yield record
            if all([await source.position(place) >= end for place, end in ends.items()]):
                return
    finally:
        await source.close()
