"""Commits that Kafka refuses, loses or interrupts by a rebalance: every event has one run and one end all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from structlog.testing import capture_logs

from engine.broker import OnAssigned, OnRevoked, Partition
from engine.errors import KafkaUnavailable
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker, MemorySource
from engine.states import State
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.integration import flows_letters as flows
from tests.waiting import eventually

EVENTS = 60


class FaultySource(MemorySource):
    """Its first commits go wrong: what Kafka answers to a member that it has expelled, that comes in the middle of a
    rebalance, or that it does not answer at all."""

    def __init__(
        self,
        broker: MemoryBroker,
        topics: Sequence[str],
        group: str | None,
        from_latest: bool,
        on_assigned: OnAssigned | None,
        on_revoked: OnRevoked | None,
        faults: list[str],
    ) -> None:
        super().__init__(broker, topics, group, from_latest, on_assigned, on_revoked)
        self._faults = faults

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        """See MemorySource."""
        # A rebalance itself asks for a last commit: that one is taken.
        if not self._faults or self._group is None or self._group.rebalancing.locked():
            return await super().commit(offsets)
        match self._faults.pop(0):
            case "refused":
                return False
            case "lost":
                raise KafkaUnavailable("memory", "no answer in time")
            case "written, but not answered":
                await super().commit(offsets)
                raise KafkaUnavailable("memory", "no answer in time")
            case _:  # a rebalance in the middle of it, after which the partitions are as they were, or another's
                async with self._group.rebalancing:
                    await self._broker.rebalance(self._group)
                return False


class FaultyBroker(MemoryBroker):
    """A log whose groups have trouble."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__()
        self.faults = faults

    def source(
        self,
        topics: Sequence[str],
        *,
        group: str | None,
        from_latest: bool = False,
        on_assigned: OnAssigned | None = None,
        on_revoked: OnRevoked | None = None,
    ) -> MemorySource:
        """See MemoryBroker."""
        return FaultySource(self, topics, group, from_latest, on_assigned, on_revoked, self.faults)


@pytest.mark.parametrize("fault", ["refused", "lost", "written, but not answered", "rebalance", "all of them"])
@pytest.mark.parametrize("engines", [1, 2])
async def test_every_event_has_one_run_and_one_end(fault: str, engines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.intake._COMMIT_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("engine.dispatcher._COMMIT_INTERVAL_SECONDS", 0.0)
    every = ["refused", "rebalance", "lost", "rebalance", "written, but not answered", "rebalance"]
    broker = FaultyBroker(every * 2 if fault == "all of them" else [fault] * 12)
    settings = fresh_settings()
    apps = [AppUnderTest(settings, [flows.errand], broker, InlineExecutor(), broker) for _ in range(engines)]
    try:
        for app in apps:
            await app.start()
        watching = apps[0]
        for n in range(EVENTS):
            await watching.send("errands", {"name": f"n{n}"}, id=f"e{n}")
            if n % 10 == 0:
                await asyncio.sleep(0)
        expected = {watching.run_id("errand", f"e{n}") for n in range(EVENTS)}
        await eventually(lambda: {end.run_id for end in watching.ends()} == expected)
        await eventually(lambda: not broker.faults)
        # What was not committed is read again, by the next engine at the latest, and nothing comes of it.
        for app in apps:
            await app.stop()
        apps.append(last := AppUnderTest(settings, [flows.errand], broker, InlineExecutor(), broker))
        await last.start()
        await last.do("errands", {"name": "last"}, "errand", id="last")
        ends = {(end.run_id, end.seq) for end in last.ends()}
        assert len(ends) == EVENTS + 1
        assert {end.state for end in last.ends()} == {State.COMPLETED}
        assert {c.state for c in last.changes if c.seq == 0} == {State.SCHEDULED}
    finally:
        for app in apps:
            await app.close()


async def test_that_offsets_cannot_be_committed_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.intake._COMMIT_INTERVAL_SECONDS", 0.0)
    broker = FaultyBroker(["lost"] * 4)
    app = AppUnderTest(fresh_settings(), [flows.errand], broker, InlineExecutor(), broker)
    try:
        with capture_logs() as lines:
            await app.start()
            await app.do("errands", {"name": "tea"}, "errand", id="e0")
            await eventually(lambda: not broker.faults)
        assert [line["event"] for line in lines].count("cannot commit the events taken in") == 1
    finally:
        await app.close()
