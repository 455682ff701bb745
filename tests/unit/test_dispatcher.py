"""engine.dispatcher: what a ledger is fed has no gap, and nothing of a partition is committed whose owner is in doubt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.broker import Outgoing, TopicSpec
from engine.checkpoints import Checkpoint
from engine.dispatcher import Dispatcher
from engine.inline import InlineExecutor
from engine.ledger import Ledger
from engine.leftovers import Leftovers
from engine.memory import MemoryBroker
from engine.publisher import Publisher
from engine.runs import FlowRun, run_id_of
from engine.settings import Settings
from engine.states import Envelope, Ownership, State, StateChange, utc, write_ownership
from engine.telemetry import Tracer
from engine.waitlist import Waitlist

SETTINGS = Settings(app="t", state_partitions=2)
TOPIC = SETTINGS.states_topic


class Driver:
    """Leads nothing."""

    def __init__(self) -> None:
        self.waitlist = Waitlist()

    def own(self, partition: int, epoch: int) -> None:
        pass

    def drop(self, partition: int) -> None:
        self.waitlist.drop(partition)

    def cancel(self, ledger: Ledger, run: FlowRun) -> None:
        pass


class Rebalanced(Dispatcher):
    """Partition 1 is lost and comes back while partition 0 is taken over anew, as a rebalance beside it would have it."""

    is_rebalancing = False

    async def _take_over(self, number: int, **options: Any) -> Ledger:
        if self.is_rebalancing and number == 0:
            self._drop(1)
            await super()._take_over(1)
        return await super()._take_over(number, **options)


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    broker = MemoryBroker()
    await broker.ensure_topics([TopicSpec(TOPIC, 2)])
    yield broker
    await broker.close()


async def started(broker: MemoryBroker, kind: type[Dispatcher] = Dispatcher) -> Dispatcher:
    """A dispatcher that owns both partitions and has read nothing."""
    publisher = Publisher(broker.sink(), TOPIC, Tracer(None, None, None))
    leftovers = Leftovers(InlineExecutor(threads=1), 0.0)
    dispatcher = kind(SETTINGS, broker, broker.sink(), Driver(), publisher, leftovers)  # type: ignore[arg-type]
    await dispatcher._source.start()
    return dispatcher


async def schedule(broker: MemoryBroker, partition: int, *numbers: int) -> None:
    for number in numbers:
        run_id = run_id_of("t", "f", "/s", str(number))
        change = StateChange(run_id=run_id, flow="f", state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(time.time()))
        value, headers = Envelope.of("t", run_id).write(change, "")
        await broker.sink().write([Outgoing(TOPIC, None, value, headers, partition)])


async def own(broker: MemoryBroker, partition: int) -> None:
    value, headers = write_ownership("t", Ownership(partition, "somebody else", utc(1.0)))
    await broker.sink().write([Outgoing(TOPIC, None, value, headers, partition)])


async def test_what_was_read_for_a_ledger_that_was_dropped_is_not_fed_to_the_next(broker: MemoryBroker) -> None:
    """It would be a gap: what lies before it would be passed over, and the runs there lost."""
    dispatcher = await started(broker, Rebalanced)
    await schedule(broker, 1, 1, 2, 3)
    await own(broker, 0)
    first, second = broker.log((TOPIC, 0)), broker.log((TOPIC, 1))
    await dispatcher._take_all([first[0], *second[:3]])
    dispatcher.is_rebalancing = True  # type: ignore[attr-defined]
    await dispatcher._take_all([first[1], second[3]])
    await dispatcher._take_all(second)
    assert len(dispatcher._ledgers[1].runs) == 3
    await dispatcher._source.close()


async def test_a_partition_that_stayed_is_in_doubt_before_it_is_known_where_it_ends(broker: MemoryBroker) -> None:
    """Somebody else may have owned it in between; a checkpoint of ours may be void."""
    dispatcher = await started(broker)
    await dispatcher._take_all([broker.log((TOPIC, n))[0] for n in range(2)])
    assert len(dispatcher._undoubted()) == 2
    asked = asyncio.Event()
    may_answer = asyncio.Event()
    end_offsets = dispatcher._source.end_offsets

    async def slow(partitions: Any) -> Any:
        asked.set()
        await may_answer.wait()
        return await end_offsets(partitions)

    dispatcher._source.end_offsets = slow  # type: ignore[method-assign]
    await own(broker, 0)
    assigning = asyncio.create_task(dispatcher._assigned([(TOPIC, 0), (TOPIC, 1)]))
    await asked.wait()
    assert dispatcher._undoubted() == []
    may_answer.set()
    await assigning
    assert [ledger.partition for ledger in dispatcher._undoubted()] == [1], "nothing has come that we do not know"
    checkpoint = Checkpoint(0, 0, utc(time.time()), 1, 0)
    dispatcher._checkpointer.restored(dispatcher._ledgers[0], checkpoint, 1)
    dispatcher._committed_at = 0.0
    await dispatcher._commit()
    assert await dispatcher._source.committed((TOPIC, 0)) is None
    await dispatcher._source.close()


async def test_a_partition_that_somebody_else_took_is_taken_back_above_them(broker: MemoryBroker) -> None:
    dispatcher = await started(broker)
    await own(broker, 0)
    log = broker.log((TOPIC, 0))
    await dispatcher._take_all(log[:2])
    assert dispatcher._ledgers[0].epoch == 2
    assert not dispatcher._ledgers[0].is_usurped
    await dispatcher._source.close()
