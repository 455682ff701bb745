"""What the engine needs of consumer groups: sharing, handing over, committing; in memory and on real Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from engine.broker import Outgoing, Partition, Source
from tests.contract.under_test import Log, a_group, numbered, places, read
from tests.waiting import eventually


class TestGroups:
    async def test_a_group_goes_on_where_it_committed(self, log: Log) -> None:
        topic, group = await log.topic(1), a_group()
        await log.write(*numbered(topic, 10))
        first = await log.source(topic, group=group)
        assert await first.committed((topic, 0)) is None
        await read(first, 10)
        assert await first.commit({(topic, 0): 4}) is True
        assert await first.committed((topic, 0)) == 4
        await first.close()
        second = await log.source(topic, group=group)
        assert [record.offset for record in await read(second, 6)] == list(range(4, 10))

    async def test_close_commits_nothing(self, log: Log) -> None:
        topic, group = await log.topic(1), a_group()
        await log.write(*numbered(topic, 3))
        first = await log.source(topic, group=group)
        await read(first, 3)
        await first.close()
        assert len(await read(await log.source(topic, group=group), 3)) == 3

    async def test_on_assigned_goes_before_the_committed_offset(self, log: Log) -> None:
        topic, group = await log.topic(2), a_group()
        await log.write(*numbered(topic, 5, partition=0), *numbered(topic, 5, partition=1))
        first = await log.source(topic, group=group)
        await first.commit({(topic, 0): 4, (topic, 1): 4})
        await first.close()

        async def from_one(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
            return {(topic, 0): 1}

        second = await log.source(topic, group=group, on_assigned=from_one)
        found = [(record.partition, record.offset) for record in await read(second, 5)]
        assert sorted(found) == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 4)]

    async def test_only_what_is_still_owned_is_committed(self, log: Log) -> None:
        """After a rebalance a commit of a partition that went elsewhere is left out."""
        topic, group = await log.topic(2), a_group()
        await log.write(*numbered(topic, 5, partition=0), *numbered(topic, 5, partition=1))
        first = await log.source(topic, group=group)
        await read(first, 10)
        second, _ = await self._join(log, first, topic, group)
        (kept,), (gone,) = first.assignment, second.assignment
        assert await first.commit({kept: 3, gone: 5}) is True
        assert await second.committed(gone) is None
        assert await first.committed(kept) == 3

    async def test_two_members_share_and_hand_over(self, log: Log) -> None:
        """Every partition has one owner; who joins gets a share, who leaves gives it back, and nothing is lost."""
        topic, group = await log.topic(4), a_group()
        told: list[tuple[str, str, list[Partition]]] = []
        first = await log.source(topic, group=group, **self._telling("first", told))
        assert first.assignment == frozenset(places(topic, 4))
        second, _ = await self._join(log, first, topic, group, **self._telling("second", told))
        assert first.assignment | second.assignment == frozenset(places(topic, 4))
        assert not first.assignment & second.assignment
        assert len(first.assignment) == 2
        assert told[:2] == [("first", "assigned", places(topic, 4)), ("first", "revoked", places(topic, 4))]
        assert {(who, what) for who, what, _ in told[2:]} == {("first", "assigned"), ("second", "assigned")}
        await log.write(*(record for n in range(4) for record in numbered(topic, 3, partition=n)))
        mine, theirs = await asyncio.gather(read(first, 6), read(second, 6))
        assert {(r.topic, r.partition) for r in mine} == first.assignment
        assert {(r.topic, r.partition) for r in theirs} == second.assignment
        assert len(mine) == len(theirs) == 6
        await first.commit(dict.fromkeys(first.assignment, 3))
        # The partitions of a closed source go to the other one, at what was committed.
        await second.close()
        assert second.assignment == frozenset()
        again = asyncio.create_task(read(first, 6))
        await eventually(lambda: len(first.assignment) == 4)
        assert {(r.topic, r.partition) for r in await again} == {(r.topic, r.partition) for r in theirs}

    async def test_pause_holds_over_a_rebalance(self, log: Log) -> None:
        topic, group = await log.topic(2), a_group()
        first = await log.source(topic, group=group)
        first.pause(places(topic, 2))
        second, _ = await self._join(log, first, topic, group)
        await log.write(*numbered(topic, 3, partition=0), *numbered(topic, 3, partition=1))
        (kept,) = first.assignment
        assert await read(first, 1, polls=10) == []
        assert len(await read(second, 3)) == 3
        first.resume([kept])
        assert {(r.topic, r.partition) for r in await read(first, 3)} == {kept}

    async def test_what_was_taken_away_is_not_handed_out_any_more(self, log: Log) -> None:
        """From the moment on_revoked is told, the old owner gets no record of the old assignment."""
        topic, group = await log.topic(2), a_group()
        await log.write(*numbered(topic, 50, partition=0), *numbered(topic, 50, partition=1))
        revoked = asyncio.Event()

        async def on_revoked(lost: Sequence[Partition]) -> None:
            revoked.set()

        first = await log.source(topic, group=group, on_revoked=on_revoked)
        before = await read(first, 1, max_records=10)
        second, during = await self._join(log, first, topic, group)
        assert revoked.is_set()
        after = during + await read(first, 1)
        assert before
        assert all((r.topic, r.partition) in first.assignment for r in await read(first, 10, polls=3))
        assert after[-1].partition == next(iter(first.assignment))[1]
        assert len(second.assignment) == 1

    async def test_what_goes_wrong_in_on_revoked_is_raised_by_a_poll(self, log: Log) -> None:
        topic, group = await log.topic(2), a_group()

        async def fail(lost: Sequence[Partition]) -> None:
            raise ValueError("cannot let go")

        first = await log.source(topic, group=group, on_revoked=fail)
        with pytest.raises(ValueError, match="cannot let go"):
            await self._join(log, first, topic, group)

    async def test_a_commit_in_on_revoked_reaches_the_next_owner(self, log: Log) -> None:
        topic, group = await log.topic(1), a_group()
        await log.write(*numbered(topic, 6))
        answers: list[bool] = []

        async def on_revoked(lost: Sequence[Partition]) -> None:
            answers.append(await first.commit(dict.fromkeys(lost, 2)))

        first = await log.source(topic, group=group, on_revoked=on_revoked)
        second = log.broker.source([topic], group=group)
        log.closing(second)
        joining = asyncio.create_task(second.start())
        reading = asyncio.create_task(read(first, 10_000, polls=20))
        await joining
        await reading
        assert answers
        assert all(answers)
        owner = first if first.assignment else second
        assert await owner.committed((topic, 0)) == 2

    async def test_nothing_is_lost_while_members_come_and_go(self, log: Log) -> None:
        """Whoever reads commits what it has read: in the end everything was read, and the commits say so."""
        topic, group, total = await log.topic(3), a_group(), 600
        seen: set[tuple[int, int]] = set()
        done = asyncio.Event()

        async def work(source: Source, stop: asyncio.Event) -> None:
            while not stop.is_set() and not done.is_set():
                records = await source.poll(timeout_seconds=0.05, max_records=7)
                seen.update((record.partition, record.offset) for record in records)
                await source.commit({(r.topic, r.partition): r.position.next_offset for r in records})
                if len(seen) == total:
                    done.set()
            await source.close()

        async def visit() -> None:
            stop, visitor = asyncio.Event(), await log.source(topic, group=group)
            working = asyncio.create_task(work(visitor, stop))
            await sink.write([Outgoing(topic, b"%d" % n, b"v", partition=n % 3) for n in range(150)])
            before = len(seen)
            await eventually(lambda: len(seen) > before or done.is_set())
            stop.set()
            await working

        sink = await log.sink()
        steady = asyncio.create_task(work(await log.source(topic, group=group), asyncio.Event()))
        for _ in range(4):
            await visit()
        await steady
        assert seen == {(n, offset) for n in range(3) for offset in range(total // 3)}
        after = await log.source(topic, group=group)
        # A commit that the group refused during a rebalance may leave some to be read again, never to be skipped.
        committed = [await after.committed(place) or 0 for place in places(topic, 3)]
        assert len(await read(after, total, polls=5)) == total - sum(committed)

    @staticmethod
    def _telling(who: str, told: list[tuple[str, str, list[Partition]]]) -> dict[str, object]:
        async def on_assigned(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
            told.append((who, "assigned", list(assigned)))
            return {}

        async def on_revoked(lost: Sequence[Partition]) -> None:
            told.append((who, "revoked", list(lost)))

        return {"on_assigned": on_assigned, "on_revoked": on_revoked}

    @staticmethod
    async def _join(log: Log, first: object, topic: str, group: str, **options: object):  # type: ignore[no-untyped-def]
        """A second member, and what the first one polled while it joined."""
        joining = asyncio.create_task(log.source(topic, group=group, **options))
        during = []
        while not joining.done() or not first.assignment:  # type: ignore[attr-defined]
            during += await first.poll(timeout_seconds=0.1, max_records=1)  # type: ignore[attr-defined]
        return await joining, during


class TestOffsetReader:
    async def test_it_tells_where_a_group_stands_without_joining_it(self, log: Log) -> None:
        topic, group = await log.topic(2), a_group()
        await log.write(*numbered(topic, 5, partition=0), *numbered(topic, 2, partition=1))
        member = await log.source(topic, group=group)
        await member.commit({(topic, 0): 3})
        reader = log.offset_reader()
        standing = await reader.read([group, a_group()], [])
        assert dict(standing.committed[group]) == {(topic, 0): 3}
        assert standing.ends == {(topic, 0): 5, (topic, 1): 2}
        assert standing.begins == {(topic, 0): 0, (topic, 1): 0}
        assert member.assignment == {(topic, 0), (topic, 1)}
        await member.commit({(topic, 1): 1})
        assert (await reader.read([group], [])).committed[group] == {(topic, 0): 3, (topic, 1): 1}

    async def test_topics_are_told_of_that_no_group_reads_and_missing_ones_are_left_out(self, log: Log) -> None:
        topic, group = await log.topic(1), a_group()
        await log.write(*numbered(topic, 4))
        standing = await log.offset_reader().read([group], [topic, "no-such-topic"])
        assert (standing.ends, standing.committed) == ({(topic, 0): 4}, {group: {}})
        assert (await log.offset_reader().read([group], ["no-such-topic"])).ends == {}
