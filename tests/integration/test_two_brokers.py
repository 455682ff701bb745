"""Kafka with two brokers, one of which goes: the engine waits where it must, says why, and loses and doubles nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from engine.kafka import KafkaBroker
from engine.kafka_sink import KafkaSink
from engine.states import State
from tests.app_under_test import AppUnderTest
from tests.chaos.checker import check
from tests.chaos.histories import Histories
from tests.chaos.observers import OffsetWatcher, Producer, Reader
from tests.integration import flows_graphs as flows
from tests.integration.conftest import Apps
from tests.integration.two_brokers import TwoBrokers
from tests.waiting import eventually, eventually_said

#: Until a dead broker is noticed, partitions have other leaders, clients know them: seconds, or some more on a busy machine.
OUTAGE_SECONDS = 60.0
MOST_OPEN = 20


class ImpatientBroker(KafkaBroker):
    """Gives a write up sooner, so that nobody waits for it here."""

    def sink(self, *, delivery_seconds: float = 3.0) -> KafkaSink:
        return super().sink(delivery_seconds=delivery_seconds)


@pytest.fixture(scope="module")
def two_brokers(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoBrokers]:
    """A Kafka of two brokers; ``kafka`` says whether there can be one."""
    servers = TwoBrokers(tmp_path_factory.mktemp("two"))
    asyncio.run(servers.start())
    yield servers
    asyncio.run(servers.stop())


class Trial:
    """An app, events that keep coming, and somebody who looks at all of it from outside."""

    def __init__(self, app: AppUnderTest) -> None:
        self.app = app
        settings = app.settings
        self.own_topics = [settings.states_topic, settings.dead_letters_topic, settings.replays_topic, settings.logs_topic]
        self._event_topics = [app.topic("diamonds"), app.topic("keyed")]
        self.producer = Producer(settings.kafka, settings.app)
        self._offsets = OffsetWatcher(settings.kafka, settings.app)
        self._is_done = asyncio.Event()

    @property
    def topics(self) -> list[str]:
        """Those of two partitions that are written to all the time."""
        return self.own_topics[:1] + self._event_topics

    @property
    def acknowledged(self) -> int:
        """Events that Kafka has."""
        return sum(one.is_acknowledged for one in self.producer.sent)

    @property
    def troubles(self) -> dict[str, str]:
        """What parts of the engine wait for."""
        return {part: trouble for part, trouble in self.app.app.readiness().items() if trouble != "ok"}

    @asynccontextmanager
    async def events(self) -> AsyncIterator[None]:
        """Events come while it lasts; then everything is to end, and the checker looks at it."""
        producing, watching = asyncio.create_task(self._produce()), asyncio.create_task(self._offsets.run())
        try:
            await eventually(lambda: len(self.app.ends()) >= 10)
            yield
            self._is_done.set()
            await producing
            expected = {self.run_id(one.id, flow) for one in self.producer.sent if one.is_acknowledged for flow in one.flows}
            await eventually(lambda: expected <= {end.run_id for end in self.app.ends()}, OUTAGE_SECONDS)
        finally:
            for task in (producing, watching):
                task.cancel()
            await asyncio.gather(producing, watching, return_exceptions=True)
            await self.producer.close()
        settings = self.app.settings
        reader = Reader(settings.kafka, [settings.states_topic, settings.dead_letters_topic])
        logged = await reader.read_all()
        await reader.close()
        found = Histories(app=settings.app, sent=self.producer.sent, logged=logged, committed=self._offsets.seen)
        # Its tasks note nothing of their own, so nobody can say that one has returned.
        assert [one for one in check(found) if one.kind != "phantom"] == []
        assert {end.state for end in self.app.ends()} == {State.COMPLETED}

    async def goes_on(self) -> None:
        """Events are taken in, and their runs end."""
        ends, events = len(self.app.ends()), self.acknowledged
        await eventually(lambda: len(self.app.ends()) >= ends + 20 and self.acknowledged >= events + 20, OUTAGE_SECONDS)

    def run_id(self, id: str, flow: str) -> str:
        self.app.source = f"/chaos/{self.app.settings.app}"  # the producer's
        return self.app.run_id(flow, id)

    async def _produce(self) -> None:
        number = 0
        while not self._is_done.is_set():
            number += 1
            await self.producer.send("diamonds", f"event-{number}", {"value": number}, ["diamond"])
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def trial(two_brokers: TwoBrokers, dask: str) -> AsyncIterator[Trial]:
    if two_brokers.second.pid is None:
        await two_brokers.second.start(print)
    apps = Apps(two_brokers.bootstrap, dask)
    settings = apps.settings(session_timeout_seconds=6.0, max_open_runs=MOST_OPEN, poll_records=MOST_OPEN)
    trial = Trial(apps.make(flows.diamond, flows.in_turn, settings=settings, broker=ImpatientBroker(settings)))
    await trial.app.start()
    await eventually_said(lambda: two_brokers.are_whole(trial.topics), OUTAGE_SECONDS)
    yield trial
    await apps.close()


async def test_too_few_replicas_in_sync_are_waited_for_and_named(
    trial: Trial, two_brokers: TwoBrokers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Events still come and may be committed, and nothing can be made of them; what ran before has ended, and cannot say so."""
    app = trial.app
    await two_brokers.want_in_sync(2, trial.own_topics)
    async with trial.events():
        waiting = {"customer": "c", "folder": str(tmp_path), "name": "go"}
        sent = await trial.producer.send("keyed", "waiting", waiting, ["in_turn"])
        await eventually((tmp_path / "notes").exists)
        await two_brokers.second.stop()
        (tmp_path / "go").touch()
        await eventually(lambda: {"intake", "publisher"} <= trial.troubles.keys(), OUTAGE_SECONDS)
        for part in ("intake", "publisher"):
            said = trial.troubles[part]
            assert f"of {app.settings.states_topic}, 1 of the 2 that its min.insync.replicas asks for" in said
            assert "Kafka at" in said
            assert "too few in-sync replicas of partition" in said
        ends, events = len(app.ends()), trial.acknowledged
        await eventually(lambda: trial.acknowledged >= events + 200, OUTAGE_SECONDS)
        gauges = app.app.gauges()
        assert sum(gauges.open_runs.values()) <= MOST_OPEN
        assert gauges.untold_changes <= MOST_OPEN * 10
        assert len(app.ends()) == ends
        assert app.running is not None
        assert not app.running.done()
        await two_brokers.second.start(print)
        await trial.goes_on()
        await eventually(lambda: not trial.troubles, OUTAGE_SECONDS)
    assert app.ends(trial.run_id(sent.id, "in_turn"))
    for noise in ("_fail_all", "given up"):
        assert noise not in caplog.text, "giving a write up leaves no traceback in the log"


async def test_a_broker_that_dies_leaves_its_partitions_to_the_other(trial: Trial, two_brokers: TwoBrokers) -> None:
    """It led half of everything, of the groups' offsets, too; all goes on without it."""
    async with trial.events():
        await two_brokers.kill_second()
        await trial.goes_on()
        assert two_brokers.second.pid is None
        await eventually(lambda: not trial.troubles, OUTAGE_SECONDS)
