"""A reader of single records of the log in memory, by their offsets."""

from __future__ import annotations

from collections.abc import Callable, Collection

from engine.broker import Partition, Record


class MemoryReader:
    """Reads single records."""

    def __init__(self, logs: Callable[[str], list[list[Record]]]) -> None:
        """``logs`` answers the partitions of a topic, and raises TopicError where it does not exist."""
        self._logs = logs

    async def read(self, partition: Partition, offsets: Collection[int]) -> dict[int, Record]:
        """The records at these offsets that there are. Raises TopicError where the topic does not exist."""
        topic, number = partition
        logs = self._logs(topic)
        log = logs[number] if number < len(logs) else []
        return {offset: log[offset] for offset in offsets if 0 <= offset < len(log)}

    async def close(self) -> None:
        """Nothing to free."""
