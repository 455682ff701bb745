"""What only real Kafka can do to us: not being there, going away, coming back."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Iterator

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from engine.apache import ApacheKafka
from engine.broker import Outgoing, TopicSpec
from engine.errors import KafkaUnavailable, SettingsError
from engine.events import Position
from engine.kafka import KafkaBroker
from engine.settings import Settings
from tests.contract.under_test import read, values

#: One attempt takes at most REQUEST_SECONDS; a busy machine gets some more.
ONE_ATTEMPT_SECONDS = 8.0


@pytest.fixture
def nobody() -> Settings:
    """Settings for an address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Settings(kafka=f"127.0.0.1:{probe.getsockname()[1]}")


@pytest.fixture(scope="module")
def other_kafka(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A Kafka that may be stopped and started; ``kafka`` says whether there can be one."""
    server = ApacheKafka(tmp_path_factory.mktemp("other"))
    asyncio.run(server.start(print))
    yield server
    asyncio.run(server.stop())


@pytest_asyncio.fixture
async def own_kafka(other_kafka: ApacheKafka) -> ApacheKafka:
    """The other Kafka, running."""
    if other_kafka.pid is None:
        await other_kafka.start(print)
    return other_kafka


class TestNotThere:
    """Each answers KafkaUnavailable within one attempt, and leaves no connection behind (warnings are errors)."""

    async def test_source(self, nobody: Settings) -> None:
        async with asyncio.timeout(ONE_ATTEMPT_SECONDS):
            with pytest.raises(KafkaUnavailable, match=nobody.kafka):
                await KafkaBroker(nobody).source(["t"], group="g").start()

    async def test_reader(self, nobody: Settings) -> None:
        reader = KafkaBroker(nobody).reader()
        async with asyncio.timeout(ONE_ATTEMPT_SECONDS):
            with pytest.raises(KafkaUnavailable, match=nobody.kafka):
                await reader.read(("t", 0), [0])
        await reader.close()

    async def test_sink(self, nobody: Settings) -> None:
        async with asyncio.timeout(ONE_ATTEMPT_SECONDS):
            with pytest.raises(KafkaUnavailable, match=nobody.kafka):
                await KafkaBroker(nobody).sink().start()

    async def test_topics(self, nobody: Settings) -> None:
        async with asyncio.timeout(ONE_ATTEMPT_SECONDS):
            with pytest.raises(KafkaUnavailable, match=nobody.kafka):
                await KafkaBroker(nobody).ensure_topics([TopicSpec("t")])

    async def test_somebody_who_listens_but_never_answers(self) -> None:
        """A port that accepts connections and stays silent counts as not there, too."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            broker = KafkaBroker(Settings(kafka=f"127.0.0.1:{silent.getsockname()[1]}"))
            async with asyncio.timeout(ONE_ATTEMPT_SECONDS):
                with pytest.raises(KafkaUnavailable):
                    await broker.partitions("t")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (Settings(kafka_security="TLS"), "kafka_security"),
        (Settings(kafka_security="SASL_PLAINTEXT", kafka_username="u"), "kafka_password"),
        (Settings(kafka_security="SSL", kafka_cafile="no-such.pem"), "kafka_cafile"),
    ],
)
async def test_wrong_security_settings_are_named(settings: Settings, names: str) -> None:
    """Before anything is tried, and without showing a password."""
    with pytest.raises(SettingsError, match=names):
        await KafkaBroker(settings).sink().start()


class TestReader:
    """Offsets that bring no record though they are between those that do."""

    async def test_what_transactions_leave_and_what_was_deleted_is_left_out(
        self, kafka: str, kafka_broker: KafkaBroker
    ) -> None:
        topic = f"test-{uuid.uuid4().hex}"
        await kafka_broker.ensure_topics([TopicSpec(topic, 1)])
        producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic)
        async with producer:
            for number in range(4):  # each with a marker behind it: 0 1, 2 3, 4 5, 6 7
                await producer.begin_transaction()
                await producer.send_and_wait(topic, b"%d" % (2 * number), partition=0)
                await (producer.abort_transaction() if number == 2 else producer.commit_transaction())
        reader, place = kafka_broker.reader(), (topic, 0)
        assert sorted(await reader.read(place, range(9))) == [0, 2, 6]
        for offset in (1, 4, 5, 7):  # alone, with nothing behind the last
            assert await reader.read(place, [offset]) == {}
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        await admin.delete_records({TopicPartition(*place): RecordsToDelete(before_offset=2)})
        await admin.close()
        found = await reader.read(place, [0, 1, 2, 6])
        assert {offset: record.value for offset, record in found.items()} == {2: b"2", 6: b"6"}
        await reader.close()
        await kafka_broker.close()


class TestGoingAway:
    async def test_an_outage_ends_writes_and_commits_in_time_and_everything_goes_on_after_it(
        self, own_kafka: ApacheKafka
    ) -> None:
        """One outage, seen by a sink, several writers and a group's member that all live through it."""
        broker = KafkaBroker(Settings(kafka=own_kafka.bootstrap, session_timeout_seconds=6.0, grace_seconds=2.0))
        topic = f"test-{uuid.uuid4().hex}"
        await broker.ensure_topics([TopicSpec(topic, 1)])
        sink, source = broker.sink(delivery_seconds=1.0), broker.source([topic], group="g")
        await sink.start()
        await source.start()
        assert await sink.write([Outgoing(topic, b"k", b"before")]) == [Position(topic, 0, 0)]
        assert values(await read(source, 1)) == [b"before"]
        await own_kafka.stop()
        async with asyncio.timeout(30):
            writes = [sink.write([Outgoing(topic, b"k", b"lost")]) for _ in range(3)]
            answers = await asyncio.gather(*writes, return_exceptions=True)
            assert [type(answer) for answer in answers] == [KafkaUnavailable] * 3
            with pytest.raises(KafkaUnavailable):
                await source.commit({(topic, 0): 1})
            assert await source.poll(timeout_seconds=0.1, max_records=10) == []
        await own_kafka.start(print)
        written = [await sink.write([Outgoing(topic, b"k", b"after %d" % n)]) for n in range(3)]
        assert [position.offset for (position,) in written] == sorted(position.offset for (position,) in written)
        found = values(await read(source, 4, polls=100))
        assert [value for value in found if value != b"lost"] == [b"after 0", b"after 1", b"after 2"]
        await source.close()
        await sink.close()

    async def test_a_short_outage_only_delays_a_write(self, own_kafka: ApacheKafka) -> None:
        """A write that is under way while Kafka restarts arrives once."""
        broker = KafkaBroker(Settings(kafka=own_kafka.bootstrap))
        topic = f"test-{uuid.uuid4().hex}"
        await broker.ensure_topics([TopicSpec(topic, 1)])
        sink = broker.sink(delivery_seconds=60.0)
        await sink.start()
        await sink.write([Outgoing(topic, b"k", b"before")])
        await own_kafka.stop()
        writing = asyncio.create_task(sink.write([Outgoing(topic, b"k", b"during")]))
        await own_kafka.start(print)
        assert await writing == [Position(topic, 0, 1)]
        assert await sink.write([Outgoing(topic, b"k", b"after")]) == [Position(topic, 0, 2)]
        await sink.close()

    async def test_closing_while_kafka_is_away_ends_in_time(self, own_kafka: ApacheKafka) -> None:
        broker = KafkaBroker(Settings(kafka=own_kafka.bootstrap, session_timeout_seconds=6.0, grace_seconds=2.0))
        topic = f"test-{uuid.uuid4().hex}"
        await broker.ensure_topics([TopicSpec(topic, 1)])
        sink, source = broker.sink(delivery_seconds=1.0), broker.source([topic], group="g")
        await sink.start()
        await source.start()
        await own_kafka.stop()
        writing = asyncio.create_task(sink.write([Outgoing(topic, b"k", b"lost")]))
        async with asyncio.timeout(30):
            await sink.close()
            await source.close()
            with pytest.raises(KafkaUnavailable):
                await writing
