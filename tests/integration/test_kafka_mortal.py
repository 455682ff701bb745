"""Kafka that dies or stands still: the engine waits and says so, and then every event has one run and one end."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from engine.apache import ApacheKafka
from engine.broker import Outgoing, Sink
from engine.errors import KafkaUnavailable
from engine.kafka import KafkaBroker
from engine.states import State, encode
from tests.app_under_test import AppUnderTest
from tests.integration import flows_graphs as flows
from tests.integration.conftest import Apps
from tests.waiting import eventually

#: A broker that stands still is given up after the delivery time of a write.
OUTAGE_SECONDS = 60.0


@pytest.fixture(scope="module")
def mortal_kafka(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A Kafka that these tests may kill; ``kafka`` says whether there can be one."""
    server = ApacheKafka(tmp_path_factory.mktemp("mortal"))
    asyncio.run(server.start(print))
    yield server
    asyncio.run(server.stop())


@pytest_asyncio.fixture
async def app(mortal_kafka: ApacheKafka, dask: str) -> AsyncIterator[AppUnderTest]:
    """An app on it."""
    if mortal_kafka.pid is None:
        await mortal_kafka.start(print)
    apps = Apps(mortal_kafka.bootstrap, dask)
    app = await apps.start(flows.diamond, session_timeout_seconds=6.0)
    yield app
    await apps.close()


class Producer:
    """Sends events one by one, each again until Kafka has it."""

    def __init__(self, app: AppUnderTest) -> None:
        self._app = app
        self._sink: Sink = KafkaBroker(app.settings).sink(delivery_seconds=2.0)
        #: Ids of events that Kafka has acknowledged.
        self.acknowledged: list[str] = []
        self.is_done = False

    async def run(self) -> None:
        await self._sink.start()
        while not self.is_done:
            id = uuid.uuid4().hex
            record = Outgoing(self._app.topic("diamonds"), None, encode({"value": 1}), self._app.headers(id))
            while True:
                try:
                    await self._sink.write([record])
                    break
                except KafkaUnavailable:  # may have been written all the same: the repeat makes no second run
                    continue
            self.acknowledged.append(id)
        await self._sink.close()

    async def goes_on(self) -> None:
        """Wait until it gets through again, then let it end."""
        before = len(self.acknowledged)
        await eventually(lambda: len(self.acknowledged) >= before + 20, OUTAGE_SECONDS)
        self.is_done = True


async def all_ended_once(app: AppUnderTest, acknowledged: list[str]) -> None:
    expected = {app.run_id("diamond", id) for id in acknowledged}
    await eventually(lambda: expected <= {end.run_id for end in app.ends()}, timeout_seconds=60.0)
    ends = Counter((end.run_id, end.epoch, end.seq) for end in app.ends())
    assert {end.state for end in app.ends()} == {State.COMPLETED}
    assert len({run_id for run_id, _, _ in ends}) == len(ends), "no run has two ends"
    seqs: dict[str, set[int]] = {}
    for change in app.changes:
        seqs.setdefault(change.run_id, set()).add(change.seq)
    assert all(found == set(range(max(found) + 1)) for found in seqs.values()), "every run's changes are gapless"
    assert set(seqs) == expected, "one run for each event, and no other"


def troubles(app: AppUnderTest) -> dict[str, str]:
    return {part: trouble for part, trouble in app.app.readiness().items() if trouble != "ok"}


async def test_a_broker_that_is_killed_and_comes_back_loses_and_doubles_nothing(
    app: AppUnderTest, mortal_kafka: ApacheKafka
) -> None:
    producer = Producer(app)
    producing = asyncio.create_task(producer.run())
    await eventually(lambda: len(app.ends()) >= 20)
    assert mortal_kafka.pid is not None
    os.kill(mortal_kafka.pid, signal.SIGKILL)
    await mortal_kafka.wait()
    await mortal_kafka.stop()  # what is left of it
    await eventually(lambda: troubles(app), OUTAGE_SECONDS)
    assert any(mortal_kafka.bootstrap in trouble for trouble in troubles(app).values())
    await mortal_kafka.start(print)
    await producer.goes_on()
    await producing
    await all_ended_once(app, producer.acknowledged)
    await eventually(lambda: not troubles(app))


async def test_a_broker_that_stands_still_for_a_while_loses_and_doubles_nothing(
    app: AppUnderTest, mortal_kafka: ApacheKafka
) -> None:
    producer = Producer(app)
    producing = asyncio.create_task(producer.run())
    await eventually(lambda: len(app.ends()) >= 20)
    assert mortal_kafka.pid is not None
    os.kill(mortal_kafka.pid, signal.SIGSTOP)
    try:
        await eventually(lambda: troubles(app), OUTAGE_SECONDS)
    finally:
        os.kill(mortal_kafka.pid, signal.SIGCONT)
    await producer.goes_on()
    await producing
    await all_ended_once(app, producer.acknowledged)
