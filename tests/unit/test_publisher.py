"""The publisher on a log in memory: whatever a change weighs, its step is told, in order, and says what it lacks."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable

import msgspec
import pytest

from engine.broker import TopicSpec
from engine.errors import RecordTooLarge
from engine.memory import MemoryBroker
from engine.oversize import smaller
from engine.publisher import Publisher
from engine.runs import FlowRun
from engine.states import ABSENT, Envelope, Failure, State, StateChange, read, utc
from engine.telemetry import Tracer
from tests.waiting import eventually

TOPIC = "shop.states"
RUN_ID = "ab" * 16


def a_run() -> FlowRun:
    scheduled = StateChange(
        run_id=RUN_ID, flow="f", state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1.0), parameters=msgspec.Raw(b"{}")
    )
    return FlowRun(scheduled, 0)


def life(run: FlowRun) -> list[StateChange]:
    """A run whose task has more parents than fit, whose error is long and whose result is large."""
    task = f"{RUN_ID}/t/7"
    parents = tuple(f"{RUN_ID}/t/{n}" for n in range(200))
    error = Failure("ValueError", "m" * 3_000, "t" * 9_000 + "the last line")
    return [
        run.advance(State.RUNNING, 2.0, 3),
        run.advance_task("t", task, State.SCHEDULED, 0, 2.0, 3, parents=parents),
        run.advance_task("t", task, State.RUNNING, 1, 3.0, 3, worker="tcp://w"),
        run.advance_task("t", task, State.RETRYING, 1, 3.0, 3, error=error, reason="as the task asks"),
        run.advance_task("t", task, State.RUNNING, 2, 3.0, 3, worker="tcp://w"),
        run.advance_task("t", task, State.COMPLETED, 2, 4.0, 3, result_ref="store", handled=("1" * 16,) * 200),
        run.advance(State.COMPLETED, 5.0, 3, result=msgspec.Raw(json.dumps("x" * 9_000).encode())),
    ]


async def published(limit: int) -> list[StateChange]:
    broker = MemoryBroker()
    await broker.ensure_topics([TopicSpec(TOPIC, 1, config={"max.message.bytes": str(limit)})])
    publisher = Publisher(broker.sink(), TOPIC, Tracer(None, None, None))
    running = asyncio.create_task(publisher.run())
    run = a_run()
    told: list[int] = []
    for change in life(run):
        acknowledged: Callable[[], None] = functools.partial(told.append, change.seq)
        publisher.publish(run, Envelope.of("shop", RUN_ID), change, 0, "", acknowledged)
    await eventually(lambda: len(told) == 7 or running.done())
    if running.done():
        await running
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert told == [1, 2, 3, 4, 5, 6, 7]
    changes = [read(record.value, record.headers) for record in broker.log((TOPIC, 0))]
    return [change for change in changes if isinstance(change, StateChange)]


async def test_a_change_that_is_too_large_is_told_without_what_makes_it_so() -> None:
    changes = await published(5_000)
    assert [change.seq for change in changes] == [1, 2, 3, 4, 5, 6, 7]
    _, scheduled, running, retrying, _, completed, end = changes
    assert (scheduled.parents, scheduled.reason) == ((), "too large for the state topic, left out: parents")
    assert (running.worker, running.reason) == ("tcp://w", None)
    assert retrying.error is not None
    assert retrying.error.traceback.endswith("the last line")
    assert retrying.reason == "as the task asks; too large for the state topic, left out: part of the error"
    assert (completed.result_ref, len(completed.handled), completed.reason) == ("store", 200, None)
    assert (end.result, end.reason) == (ABSENT, "too large for the state topic, left out: result")


async def test_a_topic_that_takes_very_little_gets_the_bare_steps() -> None:
    changes = await published(1_300)
    assert [change.seq for change in changes] == [1, 2, 3, 4, 5, 6, 7]
    assert (changes[5].handled, changes[5].reason) == ((), "too large for the state topic, left out: handled")


async def test_a_topic_that_takes_no_step_at_all_ends_the_engine_with_its_name() -> None:
    with pytest.raises(RecordTooLarge, match=TOPIC):
        await published(100)


def test_what_is_small_already_is_left_whole() -> None:
    change = life(a_run())[2]
    assert msgspec.structs.replace(smaller(change), reason=None) == change
