"""Snapshots: everything that lies on a topic now, partition by partition in order; then it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence

from engine.broker import Broker, Partition, Record, Source

_POLL_SECONDS = 0.1
_POLL_RECORDS = 1_000


async def snapshot(
    broker: Broker, topic: str, since_ms: int = 0, *, starts: Mapping[int, int] | None = None
) -> AsyncGenerator[Record, None]:
    """The records of a topic from ``since_ms`` (milliseconds since the epoch) up to what is there when it begins.

    With ``starts`` only those partitions are read, each from that offset on. Raises KafkaUnavailable, and TopicError where
    the topic does not exist. Whoever leaves it early closes it (``contextlib.aclosing``).
    """
    source: Source
    ends: dict[Partition, int] = {}

    async def begin(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
        ends.update(await source.end_offsets(assigned))
        found = {place: await source.offset_at(place, since_ms) for place in assigned}
        if starts is not None:
            # What has expired cannot be asked for: an offset below the first would start at either end.
            found = {
                place: max(first, starts[place[1]]) if first is not None and place[1] in starts else None
                for place, first in found.items()
            }
        # Where nothing is so young there is nothing to read, whatever the end.
        return {place: ends[place] if at is None else min(at, ends[place]) for place, at in found.items()}

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
