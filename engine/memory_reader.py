"""Readers of the log in memory from outside: of single records by their offsets, and of how groups stand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from engine.broker import Partition, Record, Standing


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


class MemoryOffsets:
    """Reads how groups stand."""

    def __init__(
        self, logs: Callable[[], Mapping[str, list[list[Record]]]], committed: Callable[[str], Mapping[Partition, int]]
    ) -> None:
        self._logs, self._committed = logs, committed

    async def read(self, groups: Sequence[str], topics: Collection[str]) -> Standing:
        """See engine.broker.OffsetReader."""
        committed = {group: dict(self._committed(group)) for group in groups}
        wanted = {*topics, *(topic for places in committed.values() for topic, _ in places)}
        logs = self._logs()
        ends = {(topic, n): len(log) for topic in wanted & logs.keys() for n, log in enumerate(logs[topic])}
        return Standing(dict.fromkeys(ends, 0), ends, committed)

    async def close(self) -> None:
        """Nothing to free."""
