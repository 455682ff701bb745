"""Checkpoints of an engine on either log: of many parts and blocks; lost ones, and one whose writer had lost the partition."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from structlog.testing import capture_logs

from engine import checkpointer
from engine.broker import Broker, Outgoing, Record, TopicSpec
from engine.checkpoints import Checkpoint, Ids, read_checkpoint, write_checkpoint, write_ids
from engine.inline import InlineExecutor
from engine.kafka import KafkaBroker
from engine.ledger import Ledger
from engine.memory import MemoryBroker
from engine.runs import FlowRun
from engine.seen import Tail
from engine.settings import Settings
from engine.states import CHECKPOINT, State, StateChange, is_ownership, read, type_of, utc
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.integration import flows_durable, flows_letters
from tests.waiting import eventually

S = State
#: Runs that have ended, and runs that wait for an event.
PAST, WAITING = 150, 25
OPTIONS: dict[str, Any] = {"state_partitions": 1, "event_partitions": 1}


class Engines:
    def __init__(self, kafka: str, stack: AsyncExitStack) -> None:
        """``kafka`` is its address, empty for the log in memory."""
        self.kafka, self._stack = kafka, stack
        self._memory = MemoryBroker()

    def broker(self, settings: Settings) -> Broker:
        return KafkaBroker(settings) if self.kafka else self._memory

    def make(self, settings: Settings) -> AppUnderTest:
        flows = [flows_letters.errand, flows_durable.wait_only]
        app = AppUnderTest(settings, flows, self.broker(settings), InlineExecutor(), self.broker(settings))
        self._stack.push_async_callback(app.close)
        return app

    async def lived(self) -> AppUnderTest:
        """An engine that stopped in order, and handed over a checkpoint of what it has done."""
        app = self.make(fresh_settings(kafka=self.kafka, **OPTIONS))
        await app.log.ensure_topics([TopicSpec(app.topic("payments"), 1)])
        await app.start()
        await app.send_many("errands", [(f"e{n}", {"name": f"n{n}"}) for n in range(PAST)])
        for n in range(WAITING):
            data = {"order": str(n), "folder": "", "topic": app.topic("payments")}
            await app.send("orders", data, id=f"w{n}", type="order.created")
        await eventually(lambda: len(app.ends()) == PAST and waits(app) == WAITING)
        await app.stop()
        return app

    async def next(self, app: AppUnderTest) -> tuple[AppUnderTest, Ledger]:
        """Another engine, when it has read the history, and its ledger."""
        following = self.make(app.settings)
        await following.start()
        await eventually(lambda: following.epochs)
        return following, following.app._dispatcher._ledgers[0]


def waits(app: AppUnderTest) -> int:
    return sum(change.task == "engine.wait_for_event" and change.state is S.RUNNING for change in app.changes)


@pytest.fixture(params=["memory", "kafka"])
def kafka_address(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("kafka") if request.param == "kafka" else ""


@pytest.fixture
async def engines(kafka_address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engines]:
    # So that little makes many.
    monkeypatch.setattr(checkpointer, "PART_BYTES", 2_048)
    monkeypatch.setattr(checkpointer, "BLOCK_IDS", 64)
    async with AsyncExitStack() as stack:
        yield Engines(kafka_address, stack)


def whole(records: list[Record], epoch: int) -> Ledger:
    """The ledger of who reads everything, as far as its history goes."""
    ledger = Ledger(0, epoch, 86_400.0)
    for record in records[: epoch + 1]:
        change = read(record.value, record.headers)
        if is_ownership(type_of(record.headers)):
            ledger.begin_epoch(record.offset)
        elif isinstance(change, StateChange):
            ledger.read(record.offset, change)
    return ledger


def held(run: FlowRun) -> dict[str, Any]:
    """All that a run holds; where it lies says nothing of a run that was handed over ahead of its record."""
    values = {name: getattr(run, name) for name in FlowRun.__slots__ if name != "offset"}
    return values | {"tasks": {id_: msgspec.structs.astuple(task) for id_, task in run.tasks.items()}}


def closings(records: list[Record]) -> list[tuple[int, Checkpoint]]:
    found = [record for record in records if type_of(record.headers).decode() == CHECKPOINT]
    return [(record.offset, read_checkpoint(record.value, record.headers)) for record in found]


async def assert_nothing_is_lost_or_doubled(app: AppUnderTest) -> None:
    """The events come again and make nothing; then what the waiting runs wait for: each ends once, and all else did."""
    await app.send_many("errands", [(f"e{n}", {"name": f"n{n}"}) for n in range(PAST)])
    for n in range(WAITING):
        await app.send("payments", {"order": str(n), "amount": n}, id=f"p{n}", type="order.paid")
    for n in range(WAITING):
        assert (await app.run("wait_only", f"w{n}")).result == n
    # Behind what came again on the only partition of its topic.
    await app.do("errands", {"name": "late"}, "errand", id="late")
    assert len(app.ends()) == PAST + WAITING + 1
    for n in (0, PAST - 1):
        run = await app.run("errand", f"e{n}")
        assert [change.seq for change in run.changes] == list(range(len(run.changes)))
    began = [change.run_id for change in app.changes if change.is_flow_run and change.state is S.RUNNING]
    assert len(began) == len(set(began)) == PAST + WAITING + 1


async def test_of_many_parts_and_blocks_it_says_what_the_whole_log_says(engines: Engines) -> None:
    app = await engines.lived()
    following, ledger = await engines.next(app)
    records = await following.records(app.settings.states_topic)
    from_offset, checkpoint = [(offset, c) for offset, c in closings(records) if offset < ledger.epoch][-1]
    assert len(checkpoint.parts) > 3
    assert len(ledger.blocks) >= 2
    assert ledger._restored == (checkpoint.epoch, from_offset), "it went on from this one"
    every = whole(records, ledger.epoch)
    assert len(every.runs) == WAITING
    assert {run.run_id: held(run) for run in ledger} == {run.run_id: held(run) for run in every}
    ids = [following.run_id("errand", f"e{n}") for n in range(PAST)]
    assert all(every.has_seen(id_) and ledger.has_seen(id_) for id_ in ids)
    assert len(ledger.seen) == len(every.seen) == PAST + WAITING
    await assert_nothing_is_lost_or_doubled(following)


async def commit(app: AppUnderTest, offset: int) -> None:
    """As the group of an app that has stopped."""
    group = app.log.source([app.settings.states_topic], group=app.settings.dispatch_group)
    await group.start()
    await eventually(lambda: group.assignment)
    assert await group.commit({(app.settings.states_topic, 0): offset})
    await group.close()


@pytest.mark.parametrize("committed", ["elsewhere", "nowhere"])
async def test_a_committed_offset_without_a_checkpoint_makes_the_next_owner_read_everything(
    engines: Engines, committed: str
) -> None:
    """It is that of another record, or of none."""
    app = await engines.lived()
    records = await app.records(app.settings.states_topic)
    _, checkpoint = closings(records)[-1]
    wrong = checkpoint.epoch if committed == "elsewhere" else records[-1].offset + 1_000
    await commit(app, wrong)
    with capture_logs() as said:
        following, ledger = await engines.next(app)
    assert [entry["checkpoint"] for entry in said if "read from its beginning" in entry["event"]] == [wrong]
    assert len(ledger.runs) == WAITING
    await assert_nothing_is_lost_or_doubled(following)


@pytest.mark.parametrize("kafka_address", ["kafka"], indirect=True)
async def test_a_checkpoint_that_kafka_has_deleted_is_said_to_be_lost_and_the_engine_goes_on(engines: Engines) -> None:
    """Kafka deletes from the front: what lay before it is gone, too, and the open runs with it."""
    app = await engines.lived()
    offset, _ = closings(await app.records(app.settings.states_topic))[-1]
    admin = AIOKafkaAdminClient(bootstrap_servers=engines.kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(app.settings.states_topic, 0): RecordsToDelete(before_offset=offset + 1)})
    await admin.close()
    with capture_logs() as said:
        following, ledger = await engines.next(app)
    assert [entry["checkpoint"] for entry in said if "read from its beginning" in entry["event"]] == [offset]
    assert not ledger.runs
    assert (await following.do("errands", {"name": "new"}, "errand", id="new")).result == "NEW"


async def test_a_void_checkpoint_is_not_gone_on_from(engines: Engines) -> None:
    """A stale owner, which had been paused, wakes up, says that nothing is open and nothing was seen, and even commits it."""
    app = await engines.lived()
    epoch = app.app._dispatcher._ledgers[0].epoch
    second, ledger = await engines.next(app)
    body = write_ids(Ids(Tail().first(0)))
    lie = Checkpoint(0, epoch, utc(time.time()), ledger.epoch, len(body), (), body)
    value, headers = write_checkpoint(app.settings.app, lie)
    [position] = await second.write(Outgoing(app.settings.states_topic, None, value, headers, 0))
    await second.stop()
    await commit(app, position.offset)
    with capture_logs() as said:
        third, ledger = await engines.next(app)
        await eventually(lambda: len(third.app._dispatcher._ledgers[0].runs) == WAITING)
    assert any("checkpoint is void" in entry["event"] for entry in said)
    await assert_nothing_is_lost_or_doubled(third)
