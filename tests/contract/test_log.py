"""What the engine needs of a log of records (the docstrings of engine/broker.py), in memory and on real Kafka."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence

import pytest
from aiokafka.partitioner import DefaultPartitioner

from engine.broker import Outgoing, Partition, TopicSpec
from engine.errors import KafkaUnavailable, RecordTooLarge, TopicError
from engine.events import Position
from tests.contract.under_test import Log, a_group, numbered, places, read, values
from tests.waiting import eventually


class TestTopics:
    async def test_only_missing_topics_are_made(self, log: Log) -> None:
        """ensure_topics answers what it made, and a second call makes nothing."""
        old, new = await log.topic(3), f"test-{uuid.uuid4().hex}"
        specs = [TopicSpec(old, 5), TopicSpec(new, 2)]
        assert await log.broker.ensure_topics(specs) == [new]
        assert await log.broker.ensure_topics(specs) == []
        assert await log.broker.partitions(old) == 3
        assert await log.broker.partitions(new) == 2

    async def test_two_that_make_the_same_topic_at_once_both_succeed(self, log: Log) -> None:
        name = f"test-{uuid.uuid4().hex}"
        await asyncio.gather(*(log.broker.ensure_topics([TopicSpec(name, 2)]) for _ in range(3)))
        assert await log.broker.partitions(name) == 2

    async def test_a_missing_topic_has_no_partitions(self, log: Log) -> None:
        assert await log.broker.partitions("no-such-topic") is None

    async def test_an_invalid_name_is_a_topic_error(self, log: Log) -> None:
        with pytest.raises(TopicError, match="not/valid"):
            await log.broker.ensure_topics([TopicSpec("not/valid", 1)])


class TestWriting:
    async def test_positions_are_exact(self, log: Log) -> None:
        """Each answered position is where the record is read again, over partitions and several writes."""
        topic = await log.topic(3)
        sink = await log.sink()
        records = [Outgoing(topic, b"k%d" % (n % 50), b"%d" % n) for n in range(500)]
        positions = [p for start in (0, 200, 201) for p in await sink.write(records[start : {0: 200, 200: 201}.get(start)])]
        found = {record.position: record.value for record in await read(await log.source(topic), 500)}
        assert [found[position] for position in positions] == [record.value for record in records]

    async def test_order_holds_within_a_partition_over_many_batches(self, log: Log) -> None:
        """A write larger than a batch, and the writes after it, keep their order."""
        topic = await log.topic(2)
        sink = await log.sink()
        sent = [Outgoing(topic, None, b"%05d" % n + b"." * 2000, partition=n % 2) for n in range(1500)]
        for start in range(0, 1500, 500):
            await sink.write(sent[start : start + 500])
        records = await read(await log.source(topic), 1500)
        for partition in (0, 1):
            mine = [record for record in records if record.partition == partition]
            assert values(mine) == [out.value for out in sent if out.partition == partition]
            assert [record.offset for record in mine] == list(range(750))

    async def test_writes_at_the_same_time_are_safe_and_in_the_order_called(self, log: Log) -> None:
        topic = await log.topic(1)
        sink = await log.sink()
        written = await asyncio.gather(*(sink.write([Outgoing(topic, b"k", b"%d" % n)]) for n in range(100)))
        assert [positions[0].offset for positions in written] == list(range(100))
        assert values(await read(await log.source(topic), 100)) == [b"%d" % n for n in range(100)]

    async def test_nothing_to_write(self, log: Log) -> None:
        assert await (await log.sink()).write([]) == []

    async def test_a_key_chooses_its_partition_as_with_any_kafka_client(self, log: Log) -> None:
        topic = await log.topic(7)
        keys = [uuid.uuid4().hex.encode()[:n] for n in range(33)]
        positions = await (await log.sink()).write([Outgoing(topic, key, b"") for key in keys])
        theirs = DefaultPartitioner()
        assert [p.partition for p in positions] == [theirs(key, list(range(7)), list(range(7))) for key in keys]

    async def test_without_a_key_a_write_stays_together(self, log: Log) -> None:
        topic = await log.topic(8)
        positions = await (await log.sink()).write(numbered(topic, 20))
        assert len({position.partition for position in positions}) == 1

    async def test_what_a_record_may_carry(self, log: Log) -> None:
        """Null key, null value, both, empty ones, repeated headers, an empty header: all come as they were sent."""
        topic = await log.topic(1)
        headers = (("a", b"1"), ("b", b""), ("a", b"2"), ("ü", "é".encode()))
        sent = [
            Outgoing(topic, None, b"v"),
            Outgoing(topic, b"k", None),
            Outgoing(topic, None, None),
            Outgoing(topic, b"", b""),
            Outgoing(topic, b"k", b"\xff\x00", headers),
        ]
        await log.write(*sent)
        found = await read(await log.source(topic), len(sent))
        assert [(r.key, r.value, r.headers) for r in found] == [(o.key, o.value, o.headers) for o in sent]
        assert all(record.timestamp_ms > 1_600_000_000_000 for record in found)

    async def test_a_record_of_a_megabyte(self, log: Log) -> None:
        topic = await log.topic(1, max_message_bytes="3000000")
        big = bytes(1_000_000) + b"end"
        await log.write(Outgoing(topic, b"k", b"small"), Outgoing(topic, b"k", big * 2), Outgoing(topic, b"k", b"after"))
        assert values(await read(await log.source(topic), 3)) == [b"small", big * 2, b"after"]

    async def test_large_records_come_from_all_partitions_also_to_who_seeks(self, log: Log) -> None:
        topic = await log.topic(3, max_message_bytes="11000000")
        big = bytes(3_500_000)
        for n in range(3):
            await log.write(*[Outgoing(topic, b"k", value, (), n) for value in (b"small", big, b"between", big * 2, b"after")])
        source = await log.source(topic)
        found = await read(source, 15)
        assert sorted((r.partition, r.offset, len(r.value or b"")) for r in found) == [
            (n, *place) for n in range(3) for place in enumerate((5, 3_500_000, 7, 7_000_000, 5))
        ]
        source.pause([(topic, 0), (topic, 1)])
        source.seek((topic, 2), 1)
        assert [(r.partition, r.offset) for r in await read(source, 4)] == [(2, n) for n in (1, 2, 3, 4)]

    async def test_an_oversized_record_stops_its_write_before_anything_is_written(self, log: Log) -> None:
        topic = await log.topic(1)
        sink = await log.sink()
        with pytest.raises(RecordTooLarge) as caught:
            await sink.write([Outgoing(topic, b"k", b"first"), Outgoing(topic, b"k", bytes(1_100_000))])
        assert caught.value.topic == topic
        assert caught.value.size > caught.value.limit == 1_048_588
        assert await sink.write([Outgoing(topic, b"k", b"next")]) == [Position(topic, 0, 0)]

    async def test_a_topic_that_takes_little_gets_small_batches(self, log: Log) -> None:
        """The limit of a topic holds for a batch: many small records still pass."""
        topic = await log.topic(1, max_message_bytes="5000")
        sink = await log.sink()
        assert len(await sink.write(numbered(topic, 3000))) == 3000
        with pytest.raises(RecordTooLarge):
            await sink.write([Outgoing(topic, None, bytes(5001))])

    async def test_a_missing_topic(self, log: Log) -> None:
        with pytest.raises(TopicError, match="no-such-topic"):
            await (await log.sink()).write([Outgoing("no-such-topic", None, b"")])

    async def test_a_missing_partition(self, log: Log) -> None:
        topic = await log.topic(1)
        with pytest.raises(TopicError, match="partition 4"):
            await (await log.sink()).write([Outgoing(topic, None, b"", partition=4)])

    async def test_a_closed_sink_writes_nothing(self, log: Log) -> None:
        topic = await log.topic(1)
        sink = await log.sink()
        await sink.close()
        with pytest.raises(KafkaUnavailable):
            await sink.write([Outgoing(topic, None, b"")])


class TestReading:
    async def test_a_missing_topic(self, log: Log) -> None:
        for group in (None, a_group()):
            with pytest.raises(TopicError, match="no-such-topic"):
                await log.source("no-such-topic", group=group)

    async def test_an_empty_poll_ends_in_time(self, log: Log) -> None:
        source = await log.source(await log.topic(1), group=a_group())
        async with asyncio.timeout(3):
            assert await source.poll(timeout_seconds=0.05, max_records=10) == []

    async def test_a_poll_gives_no_more_than_asked(self, log: Log) -> None:
        topic = await log.topic(1)
        await log.write(*numbered(topic, 25))
        source = await log.source(topic)
        first = await read(source, 1, max_records=10)
        assert 0 < len(first) <= 10
        assert len(first) + len(await read(source, 25 - len(first), max_records=10)) == 25

    async def test_without_a_group_every_partition_is_read_and_nothing_committed(self, log: Log) -> None:
        topic = await log.topic(3)
        await log.write(*(record for n in range(3) for record in numbered(topic, 4, partition=n)))
        asked: list[Sequence[Partition]] = []

        async def skip_two(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
            asked.append(assigned)
            return {(topic, 0): 2}

        source = await log.source(topic, on_assigned=skip_two)
        assert asked == [places(topic, 3)]
        assert source.assignment == frozenset(places(topic, 3))
        assert len(await read(source, 10)) == 10
        assert await source.commit({(topic, 0): 4}) is False
        assert await source.committed((topic, 0)) is None

    @pytest.mark.parametrize("grouped", [False, True])
    async def test_from_latest_begins_with_what_comes_after_the_start(self, log: Log, grouped: bool) -> None:
        topic = await log.topic(2)
        await log.write(*numbered(topic, 5, partition=0), *numbered(topic, 5, partition=1))
        source = await log.source(topic, group=a_group() if grouped else None, from_latest=True)
        await log.write(Outgoing(topic, None, b"new", partition=1))
        assert values(await read(source, 2, polls=5)) == [b"new"]

    async def test_several_topics(self, log: Log) -> None:
        """The same key in two topics is two records."""
        one, two = await log.topic(1), await log.topic(2)
        await log.write(Outgoing(one, b"k", b"1"), Outgoing(two, b"k", b"2"))
        source = await log.source(one, two, group=a_group())
        assert source.assignment == frozenset([(one, 0), *places(two, 2)])
        assert {(r.topic, r.value) for r in await read(source, 2)} == {(one, b"1"), (two, b"2")}

    async def test_seek_goes_back_and_forward(self, log: Log) -> None:
        topic = await log.topic(1)
        await log.write(*numbered(topic, 10))
        source = await log.source(topic)
        assert len(await read(source, 10)) == 10
        source.seek((topic, 0), 7)
        assert [record.offset for record in await read(source, 3)] == [7, 8, 9]
        source.seek((topic, 0), 2)
        assert [record.offset for record in await read(source, 8)] == list(range(2, 10))

    async def test_pause_and_resume_lose_nothing(self, log: Log) -> None:
        """A paused partition gives nothing, the others go on; resumed, it goes on where it was."""
        topic = await log.topic(2)
        await log.write(*numbered(topic, 30, partition=0), *numbered(topic, 30, partition=1))
        source = await log.source(topic)
        first = await read(source, 1, max_records=5)
        source.pause([(topic, 0)])
        rest = await read(source, 60, polls=20, max_records=5)
        assert {record.partition for record in rest} == {1}
        assert len([r for r in first + rest if r.partition == 1]) == 30
        source.resume([(topic, 0)])
        again = first + await read(source, 30 - len([r for r in first if r.partition == 0]))
        assert [r.offset for r in again if r.partition == 0] == list(range(30))

    async def test_offsets_that_can_be_asked_for(self, log: Log) -> None:
        """end_offsets is the next offset; offset_at is the first record not older, or None."""
        topic = await log.topic(2)
        await log.write(*numbered(topic, 3, partition=1))
        source = await log.source(topic)
        assert await source.end_offsets(places(topic, 2)) == {(topic, 0): 0, (topic, 1): 3}
        at = (await read(source, 3))[0].timestamp_ms
        assert await source.offset_at((topic, 1), at - 1000) == 0
        assert await source.offset_at((topic, 1), at) == 0
        assert await source.offset_at((topic, 1), at + 3_600_000) is None
        assert await source.offset_at((topic, 0), 0) is None

    async def test_position_is_where_reading_goes_on(self, log: Log) -> None:
        """After the last record handed out, be more of them fetched; where seek says; at the end when all is read."""
        topic = await log.topic(1)
        await log.write(*numbered(topic, 10))
        source = await log.source(topic)
        handed_out = await read(source, 1, max_records=4)
        assert await source.position((topic, 0)) == handed_out[-1].position.next_offset
        source.seek((topic, 0), 2)
        assert await source.position((topic, 0)) == 2
        assert len(await read(source, 8)) == 8
        assert await source.position((topic, 0)) == 10

    async def test_what_goes_wrong_in_on_assigned_is_raised_by_a_poll(self, log: Log) -> None:
        """And nothing of the assignment is handed out from a wrong place."""
        topic = await log.topic(1)
        await log.write(*numbered(topic, 3))

        async def fail(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
            raise ValueError("no ledger")

        source = await log.source(topic, group=a_group(), on_assigned=fail)
        with pytest.raises(ValueError, match="no ledger"):
            await read(source, 1)
        assert await read(source, 1, polls=5) == []

    async def test_nothing_is_handed_out_before_on_assigned_has_answered(self, log: Log) -> None:
        topic = await log.topic(1)
        await log.write(*numbered(topic, 5))
        may_answer = asyncio.Event()

        async def wait(assigned: Sequence[Partition]) -> Mapping[Partition, int]:
            await may_answer.wait()
            return {(topic, 0): 3}

        source = log.broker.source([topic], group=a_group(), on_assigned=wait)
        log.closing(source)
        starting = asyncio.create_task(source.start())
        await eventually(lambda: source.assignment)
        assert await read(source, 1, polls=5) == []
        may_answer.set()
        await starting
        assert [record.offset for record in await read(source, 2)] == [3, 4]

    async def test_a_poll_ends_when_the_source_is_closed(self, log: Log) -> None:
        source = await log.source(await log.topic(1), group=a_group())
        polling = asyncio.create_task(source.poll(timeout_seconds=2, max_records=1))
        await source.close()
        assert await polling == []


class TestReader:
    """Single records by their offsets."""

    async def test_each_is_the_record_at_its_offset_however_far_apart_they_lie(self, log: Log) -> None:
        topic = await log.topic(2)
        sink = await log.sink()
        await sink.write(numbered(topic, 3000, partition=1))
        headers = (("a", b"1"), ("b", b""))
        [last] = await sink.write([Outgoing(topic, b"key", None, headers, 1)])
        reader = log.reader()
        wanted = [2999, 0, 1, 2, 400, 2, 2500]  # in any order, side by side, over small gaps and wide ones
        found = await reader.read((topic, 1), wanted)
        assert {offset: record.value for offset, record in found.items()} == {n: b"%d" % n for n in wanted}
        assert all(record.position == Position(topic, 1, offset) for offset, record in found.items())
        found = await reader.read((topic, 1), {last.offset, 7})  # and the same reader again, backwards
        assert (found[7].value, found[last.offset].key, found[last.offset].value) == (b"7", b"key", None)
        assert found[last.offset].headers == headers

    async def test_what_the_log_does_not_hold_is_left_out(self, log: Log) -> None:
        topic = await log.topic(2)
        await log.write(*numbered(topic, 3, partition=0))
        reader = log.reader()
        assert sorted(await reader.read((topic, 0), [-1, 2, 3, 10**9])) == [2]
        assert await reader.read((topic, 0), [3, 4]) == {}
        assert await reader.read((topic, 1), [0, 5]) == {}, "an empty partition"
        assert await reader.read((topic, 2), [0]) == {}, "no partition"
        assert await reader.read((topic, 0), []) == {}
        await log.write(*numbered(topic, 1, partition=1))
        assert sorted(await reader.read((topic, 1), [0, 1])) == [0], "what has come since"

    async def test_records_of_megabytes_among_small_ones(self, log: Log) -> None:
        topic = await log.topic(1, max_message_bytes="6000000")
        sink = await log.sink()
        big = {offset: bytes([offset]) * 2_500_000 for offset in (1, 3)}
        for offset in range(5):
            await sink.write([Outgoing(topic, None, big.get(offset, b"small"))])
        found = await log.reader().read((topic, 0), range(5))
        assert {offset: record.value for offset, record in found.items()} == {n: big.get(n, b"small") for n in range(5)}

    async def test_a_missing_topic(self, log: Log) -> None:
        with pytest.raises(TopicError, match="no-such-topic"):
            await log.reader().read(("no-such-topic", 0), [0])

    async def test_it_may_be_closed_before_it_was_used_and_twice(self, log: Log) -> None:
        reader = log.broker.reader()
        await reader.close()
        await reader.close()
