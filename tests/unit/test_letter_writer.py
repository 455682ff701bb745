"""engine.letter_writer: no end is told of a run before its letter is written."""

from __future__ import annotations

import asyncio
import functools

import msgspec

from engine.broker import Outgoing, Sink, TopicSpec
from engine.dead_letters import Content, Letter, read_letter
from engine.letter_writer import LetterWriter
from engine.memory import MemoryBroker
from engine.publisher import Publisher
from engine.runs import FlowRun
from engine.settings import Settings
from engine.states import Envelope, Failure, Origin, State, StateChange, utc
from engine.telemetry import Tracer
from tests.waiting import eventually

SETTINGS = Settings(app="shop")


def a_run(run_id: str, event: Origin | None = None) -> FlowRun:
    scheduled = StateChange(
        run_id=run_id,
        flow="fulfil",
        state=State.SCHEDULED,
        seq=0,
        epoch=0,
        attempt=0,
        at=utc(1.0),
        parameters=msgspec.Raw(b'{"a":1}'),
        event=event,
    )
    run = FlowRun(scheduled, 0)
    run.advance(State.RUNNING, 2.0, 0)
    return run


async def publish(letters: LetterWriter, sink: Sink, expected: set[State]) -> bool:
    """Publish two ends, wait until these were acknowledged; whether nothing is left to be written."""
    publisher = Publisher(sink, SETTINGS.states_topic, Tracer(None, None, None), letters)
    running = [asyncio.create_task(publisher.run()), asyncio.create_task(letters.run())]
    told: set[State] = set()
    for run_id, state in (("ab" * 16, State.FAILED), ("cd" * 16, State.COMPLETED)):
        run = a_run(run_id)
        error = Failure("ValueError", "no") if state is State.FAILED else None
        change = run.advance(state, 3.0, 0, error=error)
        publisher.publish(run, Envelope.of("shop", run_id), change, 0, "", functools.partial(told.add, state))
    running.append(draining := asyncio.create_task(publisher.drain()))
    if State.FAILED in expected:
        await draining
    else:
        await eventually(lambda: told)
    assert told == expected
    is_drained = draining.done()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return is_drained


async def test_the_end_waits_for_its_letter_and_other_changes_do_not() -> None:
    broker = MemoryBroker()
    await broker.ensure_topics([TopicSpec(SETTINGS.states_topic, 1), TopicSpec(SETTINGS.dead_letters_topic, 1)])
    away, sink = broker.sink(), broker.sink()
    await away.close()  # a sink that is closed answers as Kafka does when it is away
    assert not await publish(LetterWriter(SETTINGS, broker, away, ["fulfil"]), sink, {State.COMPLETED})
    assert await publish(LetterWriter(SETTINGS, broker, sink, ["fulfil"]), sink, {State.COMPLETED, State.FAILED})
    [record] = broker.log((SETTINGS.dead_letters_topic, 0))
    letter = read_letter(record)
    assert isinstance(letter, Letter)
    assert (letter.details.run_id, letter.details.error) == ("ab" * 16, "ValueError: no")
    # A run that had no event: its letter has what the flow was given.
    assert (letter.details.content, record.value) == (Content.PARAMETERS, b'{"a":1}')


async def test_an_event_whose_headers_no_letter_takes_stops_no_letter() -> None:
    broker = MemoryBroker()
    limit = TopicSpec(SETTINGS.dead_letters_topic, 1, config={"max.message.bytes": "5000"})
    await broker.ensure_topics([TopicSpec("orders", 1), limit])
    sink = broker.sink()
    await sink.write([Outgoing("orders", b"k", b"v", (("x-much", b"h" * 10_000),))])
    run = a_run("ab" * 16, Origin("/shop", "1", "", "orders", 0, 0))
    letters = LetterWriter(SETTINGS, broker, sink, ["fulfil"])
    told: list[str] = []
    letters.add(run, run.advance(State.FAILED, 3.0, 0, error=Failure("ValueError", "no")), lambda: told.append("end"))
    running = asyncio.create_task(letters.run())
    await eventually(lambda: told or running.done())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    [record] = broker.log((SETTINGS.dead_letters_topic, 0))
    letter = read_letter(record)
    assert isinstance(letter, Letter)
    assert (told, letter.details.run_id, letter.details.content) == (["end"], "ab" * 16, Content.ABSENT)
    assert str(letter.details.origin) == "orders/0/0", "it says where the record lies"
