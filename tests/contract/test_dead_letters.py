"""Dead letters and replays through a whole engine: on the log in memory and on real Kafka, with tasks in threads."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from engine.broker import Outgoing, Record, Source
from engine.dead_letters import Content, Letter, Replay, read_letter, write_replay
from engine.flows import Flow
from engine.inline import InlineExecutor
from engine.kafka import KafkaBroker
from engine.memory import MemoryBroker
from engine.runs import repeat_id_of, run_id_of
from engine.settings import Settings
from engine.states import Envelope, State, StateChange, utc
from engine.stops import LIMIT_RECORDS, write_resumed
from engine.translator import write_scheduled
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.integration import flows_letters as flows
from tests.waiting import eventually

BAD = b'{"name": 7}'


class Place:
    def __init__(self, kafka: str, memory: MemoryBroker, stack: AsyncExitStack) -> None:
        self._kafka, self._memory, self._stack = kafka, memory, stack

    async def start(self, *wanted: Flow[..., object], settings: Settings | None = None, **options: object) -> AppUnderTest:
        """With ``settings`` of another one it shares its topics and groups."""
        if settings is None:
            settings = fresh_settings(kafka=self._kafka, **options) if self._kafka else fresh_settings(**options)
        broker, log = (KafkaBroker(settings), KafkaBroker(settings)) if self._kafka else (self._memory, self._memory)
        app = AppUnderTest(settings, wanted, broker, InlineExecutor(), log)
        self._stack.push_async_callback(app.close)
        await app.start()
        return app


@pytest.fixture(params=["memory", "kafka"])
def address(request: pytest.FixtureRequest) -> str:
    """Kafka's address, empty for the log in memory. Not asked for in an async fixture: Kafka's own runs a loop."""
    return str(request.getfixturevalue("kafka")) if request.param == "kafka" else ""


@pytest.fixture
async def place(address: str) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        yield Place(address, MemoryBroker(), stack)


def as_letter(record: Record) -> Letter:
    found = read_letter(record)
    assert isinstance(found, Letter)
    return found


async def replay(app: AppUnderTest, letter: Letter, id: str, *, value: bytes | None = None, flow: str | None = None) -> None:
    details, record = letter.details, letter.record
    asked = Replay(
        id=id,
        origin=details.origin,
        event_at=details.event_at,
        flow=flow or details.flow,
        letter=letter.id,
        repeats=details.run_id,
        key=details.key,
        trace=details.trace,
        content=details.content,
        headers=letter.headers,
    )
    await app.write(write_replay(app.settings.replays_topic, asked, record.key, value or record.value))


async def test_a_replay_with_an_edited_value_runs_once_however_often_it_is_sent(place: Place) -> None:
    app = await place.start(flows.errand)
    await app.send_record("errands", BAD, app.headers("e-1"), key=b"k")
    [letter] = map(as_letter, await app.letters(1))
    assert (letter.details.reason, letter.details.flow) == ("invalid-parameters", "errand")
    for _ in range(2):
        await replay(app, letter, "again-1", value=b'{"name": "tea", "shop": "s"}')
    run = await app.run_of(repeat_id_of(app.run_id("errand", "e-1"), "again-1"))
    assert run.result == "TEA"
    event = run.changes[0].event
    assert event is not None
    assert event.replay is not None
    assert (event.id, event.topic, event.replay.id, event.replay.letter) == (
        "e-1",
        app.topic("errands"),
        "again-1",
        letter.id,
    )
    # What comes behind it on the same topics was read after both copies.
    await replay(app, letter, "again-2", value=b'{"name": "milk", "shop": "s"}')
    await app.run_of(repeat_id_of(app.run_id("errand", "e-1"), "again-2"))
    assert len(app.ends()) == 2


async def test_a_replay_that_fails_again_is_a_letter_again_with_its_origin(place: Place) -> None:
    app = await place.start(flows.errand)
    position = await app.send_record("errands", BAD, app.headers("e-1"), key=b"k")
    [letter] = map(as_letter, await app.letters(1))
    await replay(app, letter, "again", value=b'{"name": 8}')
    found = list(map(as_letter, await app.letters(2)))
    [second] = [one for one in found if one.details.replay]
    assert (second.details.origin, second.details.replay) == (position, "again")
    assert (second.record.key, second.record.value, second.headers) == (b"k", b'{"name": 8}', letter.headers)
    assert second.details.identity != letter.details.identity


@pytest.mark.parametrize("name", ["errand", "packed_errand"])
async def test_a_run_that_fails_leaves_its_event_and_runs_again(place: Place, tmp_path: Path, name: str) -> None:
    flow = getattr(flows, name)
    app = await place.start(flow)
    topic = "errands" if name == "errand" else "packed-errands"
    needed = tmp_path / "money"
    value = msgspec.json.encode({"name": "tea", "needs": str(needed), "shop": "s"})
    position = await app.send_record(topic, value, app.headers("e-1"), key=b"\xff")
    failed = await app.run(name, "e-1")
    assert failed.end.state is State.FAILED
    # Its end was told, so its letter is there.
    [letter] = map(as_letter, await app.records(app.settings.dead_letters_topic))
    details = letter.details
    assert (details.reason, details.run_id, details.origin, details.flow) == ("run-failed", failed.id, position, name)
    assert (letter.record.key, letter.record.value, letter.headers) == (b"\xff", value, app.headers("e-1"))
    assert "money is missing" in details.error
    await replay(app, letter, "too-early")
    early = await app.run_of(repeat_id_of(failed.id, "too-early"))
    assert early.end.state is State.FAILED
    assert early.changes[0].repeats == failed.id
    assert early.changes[0].key == failed.changes[0].key
    found = list(map(as_letter, await app.records(app.settings.dead_letters_topic)))
    [second] = [one for one in found if one.details.replay]
    assert (second.details.origin, second.details.run_id, second.headers) == (position, early.id, letter.headers)
    needed.touch()
    await replay(app, second, "in-time")
    done = await app.run_of(repeat_id_of(failed.id, "in-time"))
    assert done.result == "TEA"
    assert done.changes[0].repeats == early.id


async def test_an_event_that_is_gone_leaves_its_parameters(place: Place, tmp_path: Path) -> None:
    app = await place.start(flows.errand)
    needed = tmp_path / "money"
    topic = app.topic("errands")
    # A SCHEDULED whose origin is no longer there, as retention leaves it.
    await app.send("errands", {"name": "tea", "shop": "s"}, id="first")
    first = await app.run("errand", "first")
    scheduled = first.changes[0]
    assert scheduled.event is not None
    gone = msgspec.structs.replace(scheduled.event, id="gone", offset=10_000)
    run_id = run_id_of(app.settings.app, "errand", app.source, "gone")
    parameters = msgspec.Raw(msgspec.json.encode({"job": {"name": "tea", "needs": str(needed), "shop": "s"}}))
    change = msgspec.structs.replace(scheduled, run_id=run_id, event=gone, parameters=parameters, traceparent=None)
    value, headers = Envelope.of(app.settings.app, run_id).write(change, scheduled.traceparent or "")
    await app.write(Outgoing(app.settings.states_topic, b"s", value, headers))
    assert (await app.run_of(run_id)).end.state is State.FAILED
    [letter] = map(as_letter, await app.records(app.settings.dead_letters_topic))
    assert (letter.details.content, letter.record.value, letter.details.key) == (Content.PARAMETERS, bytes(parameters), "s")
    needed.touch()
    await replay(app, letter, "again")
    done = await app.run_of(repeat_id_of(run_id, "again"))
    assert done.result == "TEA"
    assert done.changes[0].event is not None
    assert (done.changes[0].event.id, done.changes[0].event.topic, done.changes[0].key) == ("gone", topic, "s")


async def test_a_replay_keeps_the_time_of_its_event(place: Place, tmp_path: Path) -> None:
    """Of a poison record as of a run that has failed, and of one that fails once more."""
    app = await place.start(flows.errand)
    sent_at = time.time()
    await app.send_record("errands", BAD, app.headers("poison"))
    await app.do("errands", {"name": "tea", "needs": str(tmp_path / "nothing")}, "errand", id="failed")
    letters = {one.details.reason: one for one in map(as_letter, await app.letters(2))}
    await eventually(lambda: time.time() > sent_at + 1.0)
    for reason, id, value in (("invalid-parameters", "poison", b'{"name": "x"}'), ("run-failed", "failed", None)):
        letter = letters[reason]
        assert letter.details.event_at is not None
        assert sent_at - 0.01 <= letter.details.event_at.timestamp() < sent_at + 1.0
        await replay(app, letter, "again", value=value)
        event = (await app.run_of(repeat_id_of(app.run_id("errand", id), "again"))).changes[0].event
        assert event is not None
        assert event.at == letter.details.event_at
    [third] = [one for one in map(as_letter, await app.letters(3)) if one.details.replay == "again"]  # in any order
    assert third.details.event_at == letters["run-failed"].details.event_at


async def test_an_app_that_no_event_starts_takes_replays_of_what_was_started_by_hand(place: Place, tmp_path: Path) -> None:
    by_hand: Flow[..., object] = Flow(flows.by_hand_or_letter.function, (), "by_hand_or_letter", on_failure="dead-letter")
    app = await place.start(by_hand)
    run_id = "ab" * 16
    needed = tmp_path / "needed"
    parameters = msgspec.Raw(msgspec.json.encode({"job": {"name": "tea", "needs": str(needed)}}))
    now = utc(time.time())
    change = StateChange(
        run_id=run_id, flow=by_hand.name, state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=now, parameters=parameters
    )
    await app.write(write_scheduled(app.settings, change, ""))
    assert (await app.run_of(run_id)).end.state is State.FAILED
    [letter] = map(as_letter, await app.letters(1))
    assert letter.details.event_at is None
    needed.touch()
    await replay(app, letter, "again")
    assert (await app.run_of(repeat_id_of(run_id, "again"))).result == "TEA"


async def test_a_letter_goes_into_a_flow_that_nothing_else_starts(place: Place) -> None:
    app = await place.start(flows.errand, flows.by_hand)
    await app.send_record("errands", BAD, app.headers("e-1"))
    [letter] = map(as_letter, await app.letters(1))
    await replay(app, letter, "again", value=b'{"name": "tea"}', flow="by_hand")
    assert (await app.run_of(repeat_id_of(app.run_id("by_hand", "e-1"), "again"))).result == "TEA BY HAND"
    await replay(app, letter, "lost", flow="nobody")
    reasons = {one.details.reason for one in map(as_letter, await app.letters(2))}
    assert reasons == {"invalid-parameters", "unknown-flow"}


async def test_a_topic_where_nearly_all_fails_is_stopped_alone_and_loses_nothing(place: Place) -> None:
    app = await place.start(flows.errand, flows.packed_errand, dead_letter_limit=0.5, event_partitions=1)
    ids = [f"bad-{n}" for n in range(LIMIT_RECORDS + 50)]
    bad = [Outgoing(app.topic("errands"), None, BAD, app.headers(id)) for id in ids]
    await app.write(*bad)
    await eventually(lambda: "dead_letter_limit" in app.app.readiness()["intake"])
    assert "engine dead-letters resume" in app.app.readiness()["intake"]
    await app.send("errands", {"name": "late", "shop": "s"}, id="late")
    # Another topic goes on.
    assert (await app.do("packed-errands", {"name": "tea"}, "packed_errand")).result == "TEA"
    assert len(await app.records(app.settings.dead_letters_topic)) == LIMIT_RECORDS
    assert app.ends(app.run_id("errand", "late")) == []
    await app.write(write_resumed(app.topic("errands"), app.settings.dead_letters_topic))
    assert (await app.run("errand", "late")).result == "LATE"
    letters = [one for record in await app.records(app.settings.dead_letters_topic) if (one := read_letter(record))]
    assert len(letters) == len(ids)
    assert app.app.readiness()["intake"] == "ok"


async def test_a_topic_whose_runs_nearly_all_fail_is_stopped_too(place: Place) -> None:
    """They are known to fail only when they have ended."""
    app = await place.start(flows.errand, flows.packed_errand, dead_letter_limit=0.9, event_partitions=1)
    bad = {"name": "no", "needs": "/no/such/file"}
    await app.send_many("errands", [(f"bad-{n}", {**bad, "shop": str(n)}) for n in range(LIMIT_RECORDS)])
    await eventually(lambda: "dead_letter_limit" in app.app.readiness()["intake"])
    await app.send("errands", {"name": "late"}, id="late")
    assert (await app.do("packed-errands", {"name": "tea"}, "packed_errand")).result == "TEA"
    assert app.ends(app.run_id("errand", "late")) == []
    await app.write(write_resumed(app.topic("errands"), app.settings.dead_letters_topic))
    assert (await app.run("errand", "late")).result == "LATE"


async def test_each_engine_counts_letters_by_itself_and_a_restart_goes_on(place: Place) -> None:
    """One of two has stopped the topic; the other reads its own partition on, and who comes next reads on, too."""
    first = await place.start(flows.errand, dead_letter_limit=0.5, event_partitions=2)
    second = await place.start(flows.errand, settings=first.settings)
    assigned = {app: app.app._intake._source for app in (first, second)}
    topic = first.topic("errands")
    await eventually(lambda: all(_partitions(source, topic) for source in assigned.values()))
    [mine] = _partitions(assigned[first], topic)
    [other] = _partitions(assigned[second], topic)
    bad = [Outgoing(topic, None, BAD, first.headers(f"bad-{n}"), mine) for n in range(LIMIT_RECORDS)]
    await first.write(*bad)
    await eventually(lambda: "dead_letter_limit" in first.app.readiness()["intake"])
    await first.send_record("errands", b'{"name": "held"}', first.headers("held"), partition=mine)
    await first.send_record("errands", b'{"name": "other"}', first.headers("other"), partition=other)
    assert (await first.run("errand", "other")).result == "OTHER"
    assert second.app.readiness()["intake"] == "ok"
    assert first.ends(first.run_id("errand", "held")) == []
    await first.stop()  # a restart, a deployment: the partition is the other's, which has counted none of it
    assert (await second.run("errand", "held")).result == "HELD"


def _partitions(source: Source, topic: str) -> list[int]:
    return [number for name, number in source.assignment if name == topic]
