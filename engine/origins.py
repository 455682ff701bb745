"""Origins: fetches single records back from where they lie, as many of a topic as are asked for in one go."""

from __future__ import annotations

from collections.abc import Mapping

from engine.broker import Broker, Partition, Record
from engine.events import Position


async def fetch(broker: Broker, wanted: Mapping[Partition, set[int]]) -> dict[Position, Record]:
    """The records at these offsets; those that are gone are not in the answer.

    Raises KafkaUnavailable, and TopicError where a topic does not exist.
    """
    reader = broker.reader()
    try:
        return {r.position: r for place, offsets in wanted.items() for r in (await reader.read(place, offsets)).values()}
    finally:
        await reader.close()
