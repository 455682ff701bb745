"""What sources of the log in memory hand out, noted as they do: how much is read is what a user waits for."""

from __future__ import annotations

import pytest

from engine.broker import Record
from engine.memory import MemorySource


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """The records that come from sources from now on; single records that readers fetch are not among them."""
    read: list[Record] = []
    poll = MemorySource.poll

    async def polled(self: MemorySource, *, timeout_seconds: float, max_records: int) -> list[Record]:
        records = await poll(self, timeout_seconds=timeout_seconds, max_records=max_records)
        read.extend(records)
        return records

    monkeypatch.setattr(MemorySource, "poll", polled)
    return read
