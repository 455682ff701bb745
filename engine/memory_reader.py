"""A reader of single records of the log in memory, by their offsets."""

from __future__ import annotations

from collections.abc import Callable, Collection

from engine.broker import Partition, Record


class MemoryReader:
    """Reads single records."""

    def __init__(self, log: Callable[[Partition], list[Record]]) -> None:
        self._log = log

    async def read(self, partition: Partition, offsets: Collection[int]) -> dict[int, Record]:
        """The records at these offsets that there are."""
        log = self._log(partition)
        return {offset: log[offset] for offset in offsets if 0 <= offset < len(log)}

    async def close(self) -> None:
        """Nothing to free."""
