"""Whatever comes in, and whatever user code does: no crash, no blocked partition, the reason in the right place."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from engine.broker import Outgoing
from engine.errors import DaskUnavailable, KafkaUnavailable, RecordTooLarge
from engine.events import Headers
from engine.kafka import KafkaBroker
from engine.settings import Settings
from engine.states import State
from tests.app_under_test import AppUnderTest
from tests.integration import flows_bad as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import child_environment, dask_of_ones_own
from tests.waiting import eventually

GOOD = b'{"id": "a", "count": 1}'
BINARY: Headers = (("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/shop"), ("ce_type", b"order.made"))
STRUCTURED: Headers = (("content-type", b"application/cloudevents+json"),)
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

MALFORMED_DATA, MALFORMED_EVENT, INVALID = b"malformed-data", b"malformed-event", b"invalid-parameters"

#: Name: value, headers, reason, and words of the error.
BAD: dict[str, tuple[bytes | None, Headers, bytes, bytes]] = {
    "empty value": (b"", (), INVALID, b"object"),
    "null value": (None, (), INVALID, b"object"),
    "one byte": (b"\x00", (), MALFORMED_DATA, b""),
    "not UTF-8": (b'{"id": "\xff", "count": 1}', (), MALFORMED_DATA, b"utf-8"),
    "truncated JSON": (GOOD[:-3], (), MALFORMED_DATA, b""),
    "NaN": (b'{"id": "a", "count": NaN}', (), MALFORMED_DATA, b""),
    "100,000 nested arrays": (b"[" * 100_000 + b"]" * 100_000, (), b"", b""),
    "100,000 nested arrays in a field that is not asked for": (
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "id": "a", "count": 1}',
        (),
        MALFORMED_DATA,
        b"",
    ),
    "5,000 digits": (b'{"id": "a", "count": ' + b"9" * 5_000 + b"}", (), b"", b""),
    "wrong field": (b'{"id": "a", "count": "many"}', (), INVALID, b"$.count"),
    "missing field": (b'{"id": "a"}', (), INVALID, b"count"),
    "not an object": (b"[1, 2]", (), INVALID, b"array"),
    "CloudEvent without id": (GOOD, tuple(h for h in BINARY if h[0] != "ce_id"), MALFORMED_EVENT, b"id"),
    "specversion 9": (GOOD, (("ce_specversion", b"9"), *BINARY[1:]), MALFORMED_EVENT, b"specversion"),
    "repeated header": (GOOD, (*BINARY, ("ce_id", b"2")), MALFORMED_EVENT, b"ce_id is there twice"),
    "header that is not UTF-8": (GOOD, (*BINARY, ("ce_subject", b"\xff")), MALFORMED_EVENT, b"ce_subject"),
    "structured without id": (b'{"specversion": "1.0", "source": "/s", "type": "t"}', STRUCTURED, MALFORMED_EVENT, b"id"),
    "structured that is no JSON": (b"{", STRUCTURED, MALFORMED_EVENT, b""),
}


async def assert_goes_on(app: AppUnderTest, partition: int = 0) -> None:
    """A good event on the same partition completes."""
    id = f"good-{len(app.changes)}"
    await app.send_record("orders", GOOD, app.headers(id), partition=partition)
    assert (await app.run("deliver", id)).result == "a x1"
    assert app.running is not None
    assert not app.running.done()


@pytest.mark.parametrize("name", BAD)
async def test_a_record_that_cannot_be_a_run_is_a_dead_letter_as_it_came(apps: Apps, name: str) -> None:
    value, headers, reason, words = BAD[name]
    app = await apps.start(flows.deliver, event_partitions=1)
    position = await app.send_record("orders", value, headers, key=b"\xfekey")
    await assert_goes_on(app)
    [letter] = await app.letters(1)
    assert (letter.key, letter.value) == (b"\xfekey", value)
    assert letter.headers[: len(headers)] == headers
    added = dict(letter.headers[len(headers) :])
    assert added["x-engine-reason"] in ((reason,) if reason else (MALFORMED_DATA, INVALID))
    assert words.lower() in added["x-engine-error"].lower()
    assert added["x-engine-origin"] == str(position).encode()
    assert added["x-engine-at"]
    assert added.get("x-engine-flow") == (None if reason == MALFORMED_EVENT else b"deliver")
    assert len(app.ends()) == 1


async def test_a_null_key_is_no_trouble_nor_is_a_dead_letter_with_one(apps: Apps) -> None:
    app = await apps.start(flows.deliver, event_partitions=1)
    await app.send_record("orders", GOOD, app.headers("keyless"), key=None)
    assert (await app.run("deliver", "keyless")).end.state is State.COMPLETED
    await app.send_record("orders", b"{", key=None)
    [letter] = await app.letters(1)
    assert letter.key is None


@pytest.mark.parametrize(
    "trace",
    [
        (("traceparent", b"00-xyz-01"),),
        (("traceparent", b"\xff\xfe"),),
        (("traceparent", b""),),
        (("traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"),),
        (("traceparent", TRACE), ("traceparent", TRACE)),
    ],
    ids=["nonsense", "not text", "empty", "zeros", "twice"],
)
async def test_a_malformed_traceparent_starts_a_new_trace(apps: Apps, trace: Headers) -> None:
    app = await apps.start(flows.deliver, event_partitions=1)
    await app.send_record("orders", GOOD, (*app.headers("e"), *trace))
    run = await app.run("deliver", "e")
    assert run.end.state is State.COMPLETED
    traces = {(change.traceparent or "")[3:35] for change in run.changes}
    assert len(traces) == 1
    assert traces.isdisjoint({"0" * 32, TRACE[3:35].decode()})


class TestSize:
    async def test_a_record_of_one_megabyte_is_taken(self, apps: Apps) -> None:
        app = await apps.start(flows.deliver, event_partitions=1)
        value = b'{"count": 1, "id": "' + b"x" * 1_000_000 + b'"}'
        await app.send_record("orders", value, app.headers("large"))
        run = await app.run("deliver", "large")
        assert run.end.state is State.COMPLETED
        assert run.end.result_ref == f"dask:variable/run-{run.id}"
        await assert_goes_on(app)

    async def test_a_record_that_kafka_does_not_take_is_the_producers_trouble(self, apps: Apps) -> None:
        app = await apps.start(flows.deliver, event_partitions=1)
        with pytest.raises(RecordTooLarge):
            await app.send_record("orders", b"x" * 1_100_000, app.headers("large"))
        await assert_goes_on(app)

    @pytest.mark.parametrize(("size", "is_kept"), [(250_000, True), (330_000, False)])
    async def test_a_record_above_the_limit_is_a_dead_letter(self, apps: Apps, size: int, is_kept: bool) -> None:
        """Kept whole where the dead-letter topic takes it; else the letter says where the record lies."""
        app = await apps.start(flows.deliver, event_partitions=1, max_record_bytes=320_000)
        value = b'{"count": 1, "id": "' + b"x" * size + b'"}'
        # Spaces make no larger parameters, but a larger record.
        value = value if not is_kept else value[:-1] + b" " * (320_000 - 65_536 - len(value)) + b"}"
        other = KafkaBroker(Settings(kafka=apps.kafka)).sink()  # its own settings have no such limit
        await other.start()
        [position] = await other.write([Outgoing(app.topic("orders"), b"k", value, app.headers("large"))])
        await other.close()
        await assert_goes_on(app)
        if is_kept:
            assert (await app.run("deliver", "large")).end.state is State.COMPLETED
            return
        [letter] = await app.letters(1)
        added = dict(letter.headers)
        assert (letter.key, letter.value) == (b"k", None)
        assert added["x-engine-reason"] == b"too-large"
        assert added["x-engine-origin"] == str(position).encode()


class TestWiring:
    @pytest.mark.parametrize(
        ("kind", "type"),
        [
            ("raise", "RuntimeError"),
            ("exit", "SystemExit"),
            ("argument", "WiringError"),
            ("look", "WiringError"),
            ("signature", "WiringError"),
        ],
    )
    async def test_a_flow_that_raises_while_wiring_fails_its_run(self, apps: Apps, kind: str, type: str) -> None:
        app = await apps.start(flows.wire_badly, flows.deliver, event_partitions=1)
        run = await app.do("wirings", {"kind": kind}, "wire_badly")
        assert run.story == [(None, State.SCHEDULED), (None, State.RUNNING), (None, State.FAILED)]
        assert run.end.error is not None
        assert run.end.error.type == type
        assert "flows_bad.py" in run.end.error.traceback
        await assert_goes_on(app)

    async def test_a_run_of_a_flow_that_no_handler_has_any_more_crashes(self, apps: Apps) -> None:
        first = await apps.start(flows.deliver, event_partitions=1, state_partitions=1)
        await assert_goes_on(first)
        states, topic = await first.records(first.settings.states_topic), first.settings.states_topic
        [scheduled] = [r for r in states if ("ce_type", b"engine.flow_run.scheduled") in r.headers]
        gone = (scheduled.value or b"").replace(b'"deliver"', b'"renamed"')
        other = scheduled.headers[4][1][::-1]
        gone = gone.replace(scheduled.headers[4][1], other)
        await first.write(Outgoing(topic, other, gone, scheduled.headers, 0))
        run = await first.run_of(other.decode())
        assert run.end.state is State.CRASHED
        assert run.end.error is not None
        assert "deliver" in run.end.error.message
        await assert_goes_on(first)


class TestTasks:
    @pytest.mark.parametrize(
        ("kind", "state", "type"),
        [
            ("unpicklable error", State.FAILED, "Stubborn"),
            ("sys.exit", State.FAILED, "SystemExit"),
            ("deep", State.FAILED, "RecursionError"),
            ("killed", State.CRASHED, "KilledWorker"),
        ],
    )
    async def test_whatever_a_task_does_its_run_ends(self, apps: Apps, kind: str, state: State, type: str) -> None:
        app = await apps.start(flows.misdeed, flows.deliver, event_partitions=1)
        run = await app.do("misdeeds", {"kind": kind}, "misdeed")
        assert (run.end.state, run.states("misbehave")[-1]) == (state, state)
        assert run.end.error is not None
        assert run.end.error.type == type
        await assert_goes_on(app)

    async def test_nan_is_null_in_json(self, apps: Apps) -> None:
        app = await apps.start(flows.misdeed, event_partitions=1)
        assert (await app.do("misdeeds", {"kind": "no JSON"}, "misdeed")).result is None

    @pytest.mark.parametrize(("topic", "flow", "data"), [("misdeeds", "misdeed", {}), ("handed-on", "hand_on", {"copies": 10})])
    async def test_a_result_that_cannot_leave_its_worker_fails_its_task(
        self, apps: Apps, topic: str, flow: str, data: dict[str, int]
    ) -> None:
        """As the run's own, that nobody could fetch; as ten made on both workers and taken by one task."""
        app = await apps.start(flows.misdeed, flows.hand_on, flows.deliver, event_partitions=1)
        run = await app.do(topic, {"kind": "unpicklable result", **data}, flow)
        assert (run.end.state, run.states("misbehave")[-1]) == (State.FAILED, State.FAILED)
        assert run.end.error is not None
        assert run.end.error.type == "ResultStuck"
        assert "task misbehave, a Homebound, cannot be pickled" in run.end.error.message
        await assert_goes_on(app)

    async def test_a_result_that_nobody_takes_may_stay_what_it_is(self, apps: Apps) -> None:
        app = await apps.start(flows.drop, flows.deliver, event_partitions=1)
        run = await app.do("dropped", {"kind": "unpicklable result"}, "drop")
        assert (run.end.state, run.result) == (State.COMPLETED, "dropped")
        await assert_goes_on(app)


class TestWhatIsNotThere:
    async def test_a_topic_that_does_not_exist_is_made(self, apps: Apps) -> None:
        app = apps.make(flows.deliver)
        assert await app.log.partitions(app.topic("orders")) is None
        await app.start()
        assert await app.log.partitions(app.topic("orders")) == 2
        await assert_goes_on(app)

    async def test_a_scheduler_that_comes_late_is_waited_for(self, apps: Apps, tmp_path: Path) -> None:
        async with dask_of_ones_own(tmp_path, child_environment(), workers=1) as dask:
            address = dask.address
            await dask.stop()
            app = apps.make(flows.deliver, dask=address, connect_timeout_seconds=60.0)
            starting = asyncio.create_task(app.start())
            await eventually(lambda: app.app.readiness()["dispatcher"] == "starting")
            await dask.start()
            await starting
            assert app.app.readiness()["dask"] == "ok"
            await assert_goes_on(app)
            await app.stop()

    @pytest.mark.parametrize(("what", "error"), [("dask", DaskUnavailable), ("kafka", KafkaUnavailable)])
    async def test_a_service_that_never_comes_is_named_and_ends_the_engine(
        self, apps: Apps, what: str, error: type[Exception]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        options = {what: f"tcp://{nobody}" if what == "dask" else nobody}
        app = apps.make(flows.deliver, connect_timeout_seconds=0.5, **options)
        with pytest.raises(error, match=nobody):
            await app.app.run()
