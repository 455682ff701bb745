"""Snapshots: everything that lies on a topic now, partition by partition in order; then it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from engine.broker import Broker, Partition, Record, Source

_POLL_SECONDS = 0.1
_POLL_RECORDS = 1_000


async def snapshot(broker: Broker, topic: str, since_ms: int = 0) -> AsyncIterator[Record]:
    """The records of a topic from ``since_ms`` (milliseconds since the epoch) up to what is there when it begins.

    Raises KafkaUnavailable, and TopicError where the topic does not exist.
    """
    source: Source
    ends: dict[Partition, int] = {}

    async def begin(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
        ends.update(await source.end_offsets(assigned))
        found = {place: await source.offset_at(place, since_ms) for place in assigned}
        # Where nothing is so young there is nothing to read, whatever the end.
        return {place: ends[place] if at is None else at for place, at in found.items()}

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
