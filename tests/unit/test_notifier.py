"""engine.notifier: on a log in memory: at least once, in nobody's way, from where it was, rules over time made anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine import notifier
from engine.addressees import Addressees
from engine.broker import Outgoing, TopicSpec
from engine.command_errors import NotDelivered
from engine.flows import flow
from engine.memory import MemoryBroker
from engine.notices import Notice
from engine.notifier import Notifier
from engine.outbox import Outbox
from engine.retries import Retry
from engine.rules import Rule, rule
from engine.sender_builder import Outboxes
from engine.settings import Settings
from engine.states import Envelope, Ownership, State, StateChange, utc, write_ownership
from engine.targets import AppriseTarget, notify
from engine.tasks import task
from tests.waiting import eventually

SETTINGS = Settings(app="app", http="", state_partitions=2, grace_seconds=0.2)
TOPIC = SETTINGS.states_topic
ONE = notify(env="ONE", retry=Retry(5, 0.0))
TWO = notify(env="TWO", retry=Retry(5, 0.0))
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits half a second for a commit here."""
    for name in ("_COMMIT_SECONDS", "_TICK_SECONDS", "_POLL_SECONDS"):
        monkeypatch.setattr(notifier, name, 0.02)


@task(on_state={State.RETRYING: ONE})
def price() -> int:
    return 1


@flow(on_state={State.FAILED: [ONE, TWO]})
def fulfil() -> Any:
    return price()


class Inbox:
    """What a target gets; it hangs while ``open`` is not set, and fails so many times."""

    concurrency = 1

    def __init__(self) -> None:
        self.got: list[Notice] = []
        self.open = asyncio.Event()
        self.open.set()
        self.failing = 0

    async def send(self, notice: Notice) -> None:
        await self.open.wait()
        if self.failing:
            self.failing -= 1
            raise NotDelivered("busy", False, None)
        self.got.append(notice)

    @property
    def runs(self) -> list[str]:
        return [notice.change.run_id for notice in self.got if notice.change is not None]

    is_busy = False

    def close(self) -> None: ...


class World:
    """A log, and notifiers on it, one after the other or side by side."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.broker = MemoryBroker()
        self.rules = rules
        self.inboxes: dict[AppriseTarget, Inbox] = {ONE: Inbox(), TWO: Inbox()}
        self.one, self.two = self.inboxes.values()
        self.offset = 0.0

    def now(self) -> float:
        return time.time() + self.offset

    async def make_topic(self) -> None:
        await self.broker.ensure_topics([TopicSpec(TOPIC, 2)])

    async def write(self, *changes: StateChange, partition: int = 0) -> None:
        sink = self.broker.sink()
        await sink.start()
        records = [Envelope.of("app", change.run_id).write(change, TRACE) for change in changes]
        await sink.write([Outgoing(TOPIC, None, *record, partition) for record in records])
        await sink.close()

    async def own(self, partition: int = 0) -> None:
        """A new owner of a partition: what older ones write from now on is void."""
        sink = self.broker.sink()
        await sink.write([Outgoing(TOPIC, None, *write_ownership("app", Ownership(partition, "me", utc(1.0))), partition)])

    def committed(self) -> dict[int, int]:
        return {place[1]: offset for place, offset in self.broker.group(SETTINGS.notify_group).committed.items()}

    @asynccontextmanager
    async def notifying(self, most_waiting: int = 500) -> AsyncIterator[Notifier]:
        outboxes = Outboxes(
            {
                target: Outbox(target.name, inbox, stuck_seconds=5.0, most_waiting=most_waiting)
                for target, inbox in self.inboxes.items()
            },
            [],
        )
        addressees = Addressees({"fulfil": fulfil}, [price], self.rules)
        made = Notifier(SETTINGS, self.broker, addressees, outboxes, self.now)
        ready = asyncio.Event()
        running = asyncio.create_task(made.run(ready.set))
        try:
            await asyncio.wait_for(ready.wait(), 30)
            await eventually(lambda: len(self.committed()) == 2)
            yield made
        finally:
            made.stop()
            await running


@asynccontextmanager
async def world(rules: Sequence[Rule] = ()) -> AsyncIterator[World]:
    made = World(rules)
    await made.make_topic()
    yield made


def change(run_id: str, state: State = State.FAILED, seq: int = 2, **fields: Any) -> StateChange:
    given: dict[str, Any] = {"flow": "fulfil", "epoch": 0, "attempt": 1, "at": utc(time.time())}
    return StateChange(run_id=run_id, state=state, seq=seq, **{**given, **fields})


async def test_flows_and_tasks_have_their_states_told_and_nothing_else() -> None:
    async with world() as log, log.notifying():
        await log.write(change("r", State.SCHEDULED, 0), change("r", State.RUNNING, 1))
        await log.write(change("r", State.RETRYING, 2, task="price", task_run_id="r/price/0"), change("r", State.FAILED, 3))
        await log.write(change("other", State.FAILED, 3, flow="unknown"), partition=1)
        await eventually(lambda: log.two.got)
        await eventually(lambda: len(log.one.got) == 2)
        assert [notice.origin for notice in log.one.got] == ["task price", "flow fulfil"]
        assert [notice.title for notice in log.two.got] == ["app: fulfil FAILED"]
        await eventually(lambda: log.committed() == {0: 4, 1: 1})


async def test_repeats_and_what_a_stale_owner_writes_are_not_told() -> None:
    async with world() as log, log.notifying():
        await log.own()
        await log.own()
        await log.write(change("a", epoch=1), change("a", epoch=1), change("stale", epoch=0), change("b", epoch=1))
        await eventually(lambda: len(log.two.got) == 2)
    assert log.one.runs == log.two.runs == ["a", "b"]


async def test_it_begins_with_what_comes_and_goes_on_where_it_was() -> None:
    async with world() as log:
        await log.write(change("old"))
        async with log.notifying():
            await log.write(change("a"))
            await eventually(lambda: log.two.got)
        await log.write(change("b"))
        async with log.notifying():
            await eventually(lambda: len(log.two.got) == 2)
    assert log.two.runs == ["a", "b"]


async def test_what_was_under_way_when_it_stopped_is_told_after_the_next_start() -> None:
    async with world() as log:
        log.one.open.clear()
        async with log.notifying():
            await log.write(change("a"), change("b"))
            await eventually(lambda: len(log.two.got) == 2)
            assert log.committed()[0] == 0, "one target has not heard of it yet"
        log.one.open.set()
        async with log.notifying():
            await eventually(lambda: log.one.runs == ["a", "b"])
            await eventually(lambda: log.committed()[0] == 2)
    assert {notice.id for notice in log.two.got[:2]} == {notice.id for notice in log.two.got[2:]}, "told twice, of one id"


async def test_a_target_that_hangs_holds_up_no_other_and_a_failure_is_tried_again() -> None:
    async with world() as log:
        log.one.open.clear()
        log.two.failing = 3
        async with log.notifying():
            await log.write(*(change(str(n)) for n in range(50)))
            await eventually(lambda: len(log.two.got) == 50)
            assert log.one.got == []


async def test_reading_waits_while_an_outbox_is_full_and_nothing_is_lost() -> None:
    async with world() as log:
        log.one.open.clear()
        async with log.notifying(most_waiting=5):
            await log.write(*(change(str(n)) for n in range(40)))
            await eventually(lambda: len(log.two.got) >= 4)
            log.one.open.set()
            await eventually(lambda: len(log.one.got) == 40)
            await eventually(lambda: log.committed()[0] == 40)
    assert log.two.runs == [str(n) for n in range(40)]


async def test_without_a_topic_it_waits_and_then_misses_nothing() -> None:
    log = World()
    outboxes = Outboxes({target: Outbox(target.name, inbox, stuck_seconds=5.0) for target, inbox in log.inboxes.items()}, [])
    waiting = Notifier(SETTINGS, log.broker, Addressees({"fulfil": fulfil}, [], ()), outboxes)
    with capture_logs() as logs:
        running = asyncio.create_task(waiting.run())
        await eventually(lambda: [line for line in logs if line["event"] == "notifications wait"])
    await log.make_topic()
    await log.write(change("a"))
    await eventually(lambda: log.two.got)
    waiting.stop()
    await running


async def test_a_second_notifier_takes_its_share_and_rules_that_count_rest() -> None:
    quiet = rule("quiet", to=ONE, no_run_seconds=60)
    async with world([quiet]) as log, log.notifying():
        with capture_logs() as logs:
            async with log.notifying():
                await eventually(lambda: [line for line in logs if "rules that count rest" in line["event"]])
                log.offset = 3_600
                await log.write(change("a"), partition=0)
                await log.write(change("b"), partition=1)
                await eventually(lambda: sorted(log.two.runs) == ["a", "b"])
                assert all(notice.rule is None for notice in log.one.got)


async def test_rules_over_time_are_told_once_per_episode_over_restarts() -> None:
    rules = [
        rule("many", to=TWO, failures=3, within_seconds=600),
        rule("slow", to=TWO, longer_than_seconds=600),
        rule("quiet", to=TWO, no_run_seconds=1_200),
        rule("every", to=TWO, states=State.CRASHED),
    ]
    async with world(rules) as log:

        def titles() -> list[str]:
            return [notice.rule for notice in log.two.got if notice.rule is not None]

        async with log.notifying():
            await log.write(change("long", State.SCHEDULED, 0), change("long", State.RUNNING, 1))
            await log.write(change("a"), change("b"), partition=1)
            await log.write(change("c", State.CRASHED))
            await eventually(lambda: sorted(titles()) == ["every", "many"])
            await eventually(lambda: log.committed() == {0: 3, 1: 2})
        async with log.notifying():
            await log.write(change("d"))
            await eventually(lambda: log.committed()[0] == 4)
            assert sorted(titles()) == ["every", "many"], "the same episode"
        log.offset = 601
        async with log.notifying():
            await eventually(lambda: sorted(titles()) == ["every", "many", "slow"])
            log.offset = 1_300
            await eventually(lambda: sorted(titles()) == ["every", "many", "quiet", "slow"])
            await log.write(change("e", State.SCHEDULED, 0, at=utc(log.now())))
            await eventually(lambda: log.committed()[0] == 5)
    assert sorted(titles()) == ["every", "many", "quiet", "slow"]
