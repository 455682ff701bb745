"""Events that come again on real Kafka: no second run inside the window, a new one after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
import pytest

from engine.broker import Outgoing
from engine.dead_letters import Letter, read_letter, write_letter
from engine.inline import InlineExecutor
from engine.kafka import KafkaBroker
from engine.letter_lists import LetterList, Status
from engine.settings import Settings
from engine.states import State, encode
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.integration import flows_letters as flows
from tests.waiting import eventually

COUNT = 40


class Engines:
    def __init__(self, kafka: str, stack: AsyncExitStack) -> None:
        self._kafka, self._stack = kafka, stack

    async def start(self, settings: Settings | None = None, **options: object) -> AppUnderTest:
        settings = settings or fresh_settings(kafka=self._kafka, **options)
        app = AppUnderTest(settings, [flows.errand], KafkaBroker(settings), InlineExecutor(), KafkaBroker(settings))
        self._stack.push_async_callback(app.close)
        await app.start()
        return app


@pytest.fixture
async def engines(kafka: str) -> AsyncIterator[Engines]:
    async with AsyncExitStack() as stack:
        yield Engines(kafka, stack)


def events(app: AppUnderTest) -> list[Outgoing]:
    return [
        Outgoing(app.topic("errands"), b"%d" % n, encode({"name": f"n{n}", "shop": ""}), app.headers(f"e-{n}"))
        for n in range(COUNT)
    ]


async def assert_nothing_ran_again(app: AppUnderTest, number: int = COUNT) -> None:
    """What comes after has run, so what came before was read; each partition of the topic has one."""
    late = [await app.send_record("errands", b'{"name": "late"}', app.headers(f"late-{n}"), partition=n) for n in range(2)]
    for n in range(len(late)):
        await app.run("errand", f"late-{n}")
    raw = [read for record in await app.records(app.settings.states_topic) if (read := _change(record.value)) is not None]
    ran = [run_id for run_id, state in raw if state == "RUNNING"]
    assert len(ran) == len(set(ran)) == number + len(late)


def _change(value: bytes | None) -> tuple[str, str] | None:
    data = msgspec.json.decode(value or b"{}")
    return (data["run_id"], data["state"]) if "state" in data and "task" not in data else None


async def test_a_producers_repeats_and_a_whole_topic_sent_again_make_no_second_run(engines: Engines) -> None:
    app = await engines.start()
    once = events(app)
    await app.write(*(copy for event in once for copy in (event, event)))
    await eventually(lambda: len(app.ends()) == COUNT)
    await app.write(*once)
    await assert_nothing_ran_again(app)


async def test_a_group_that_is_set_back_to_the_start_makes_no_second_run(engines: Engines) -> None:
    app = await engines.start()
    await app.write(*events(app))
    await eventually(lambda: len(app.ends()) == COUNT)
    await app.stop()
    topic = app.topic("errands")
    group = app.log.source([topic], group=app.settings.intake_group)
    await group.start()
    before = [await group.committed((topic, n)) for n in range(2)]
    assert sum(offset or 0 for offset in before) == COUNT
    assert await group.commit({(topic, n): 0 for n in range(2)})
    await group.close()
    again = await engines.start(app.settings)
    again.source = app.source
    await assert_nothing_ran_again(again)


async def test_after_the_window_an_event_runs_again(engines: Engines) -> None:
    app = await engines.start(dedup_window_seconds=0.0, state_partitions=1)
    [event, *_] = events(app)
    await app.write(event)
    run_id = app.run_id("errand", "e-0")
    await app.run_of(run_id)
    await app.write(event)

    async def ends() -> int:
        raw = [_change(record.value) for record in await app.records(app.settings.states_topic)]
        return raw.count((run_id, "COMPLETED"))

    for _ in range(100):
        if await ends() == 2:
            return
    raise AssertionError("it did not run again")


async def test_a_crash_between_a_letter_and_its_runs_end_leaves_one_letter_to_readers(engines: Engines) -> None:
    """The log as such a crash leaves it: the letter is there, the end of the run is not; the next owner comes to it."""
    app = await engines.start()
    topic = app.settings.dead_letters_topic
    value = encode({"name": "tea", "needs": "/nowhere/at/all", "shop": "s"})
    await app.send_record("errands", value, app.headers("e-1"))
    assert (await app.run("errand", "e-1")).end.state is State.FAILED
    [record] = await app.records(topic)
    letter = read_letter(record)
    assert isinstance(letter, Letter)
    await app.stop()
    # The letter of a run that the state topic does not know to have ended.
    details = msgspec.structs.replace(letter.details, run_id=app.run_id("errand", "e-2"))
    await app.write(write_letter(topic, details, None, value, app.headers("e-2"), 1_000_000))
    await app.send_record("errands", value, app.headers("e-2"))
    again = await engines.start(app.settings)
    again.source = app.source
    assert (await again.run("errand", "e-2")).end.state is State.FAILED
    made = LetterList()
    for found in await app.records(topic):
        made.add(found)
    of_run = [entry.status for entry in made.entries() if entry.letter.details.run_id == app.run_id("errand", "e-2")]
    assert of_run == [Status.OPEN, Status.REPEAT]
