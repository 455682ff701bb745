"""Origins: fetches single records back from where they lie, as many of a topic as are asked for in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.broker import Broker, Partition, Record, Source
from engine.events import Position

_POLL_SECONDS = 0.1
_POLL_RECORDS = 500
#: Rather read on over a gap than seek, up to so many records.
_GAP_RECORDS = 500


async def fetch(broker: Broker, topic: str, wanted: Mapping[Partition, set[int]]) -> dict[Position, Record]:
    """The records of one topic at these offsets; those that are gone are not in the answer.

    Raises KafkaUnavailable, and TopicError where the topic does not exist.
    """
    left = {place: sorted(offsets) for place, offsets in wanted.items() if offsets}
    source: Source

    async def begin(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
        ends = await source.end_offsets(assigned)
        for place in assigned:
            # Asked for beforehand: a reader that is sent before the first record goes on with another one, and says nothing.
            first = await source.offset_at(place, 0) if place in left else None
            kept = [] if first is None else [n for n in left.get(place, ()) if first <= n < ends[place]]
            left[place] = kept
        for place in set(left) - set(assigned):
            left[place] = []
        return {place: left[place][0] if left[place] else ends[place] for place in assigned}

    source = broker.source([topic], group=None, on_assigned=begin)
    found: dict[Position, Record] = {}
    try:
        await source.start()
        source.pause([place for place in source.assignment if not left.get(place)])
        while any(left.values()):
            records = await source.poll(timeout_seconds=_POLL_SECONDS, max_records=_POLL_RECORDS)
            for record in records:
                if record.offset in wanted.get((record.topic, record.partition), ()):
                    found[record.position] = record
            for place, offsets in left.items():
                await _go_on(source, place, offsets)
    finally:
        await source.close()
    return found


async def _go_on(source: Source, place: Partition, offsets: list[int]) -> None:
    """Drop what was passed, whether it was there or not, and jump over what nobody asked for."""
    if not offsets:
        return
    at = await source.position(place)
    while offsets and offsets[0] < at:
        offsets.pop(0)
    if not offsets:
        source.pause([place])
    elif offsets[0] > at + _GAP_RECORDS:
        source.seek(place, offsets[0])
