"""One trace from the producer to the subscriber, whole, at a receiver of our own; and none where nobody wants it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engine import subscribe
from engine.states import State, StateChange
from tests.app_under_test import AppUnderTest, Run
from tests.integration import flows_graphs as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import ROOT, SharedDask, child_environment
from tests.integration.otlp_under_test import Receiver, Span, assert_no_orphan, one
from tests.waiting import eventually

TRACE_ID, PRODUCER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE_ID}-{PRODUCER}-01"

INTERNAL, SEND, RECEIVE = 1, 4, 5


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def traced_dask(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Workers that export to the receiver."""
    environment = child_environment(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.address, OTEL_BSP_SCHEDULE_DELAY="50")
    shared = SharedDask(tmp_path_factory.mktemp("traced-dask"), environment)
    yield shared.address
    shared.stop()


@pytest.fixture
async def apps(kafka: str, traced_dask: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Apps]:
    """Apps that export to the receiver, too."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    apps = Apps(kafka, traced_dask)
    yield apps
    await apps.close()


def expected_count(run: Run) -> int:
    """process, run, a send for each change, a task span or the mark of a beginning for each attempt."""
    attempts = sum(change.state is State.RUNNING for change in run.changes)
    queues = sum(change.state is State.RUNNING and change.task is not None and change.attempt == 1 for change in run.changes)
    return 2 + len(run.changes) + attempts + queues


async def whole_trace(receiver: Receiver, run: Run) -> list[Span]:
    """All spans of a run's trace, when all have come."""
    trace_id = (run.changes[0].traceparent or "")[3:35]
    await eventually(lambda: len(receiver.spans(trace_id)) >= expected_count(run))
    return receiver.spans(trace_id)


def span_id(change: StateChange) -> str:
    return (change.traceparent or "")[36:52]


async def test_the_whole_tree_from_the_producer_to_the_subscriber(apps: Apps, receiver: Receiver) -> None:
    app = await apps.start(flows.two)
    run = await app.do("numbers", {"value": 21}, "two", traceparent=SAMPLED, tracestate="shop=1")
    spans = await whole_trace(receiver, run)
    await app.stop()  # exports what is left: there may be no span that was not expected
    spans = receiver.spans(TRACE_ID)
    assert len(spans) == expected_count(run) == 2 + 9 + 3 + 2
    assert_no_orphan(spans, PRODUCER)

    process = one(spans, f"process {app.topic('numbers')}")
    assert (process.parent_id, process.kind, process.links) == (PRODUCER, RECEIVE, (PRODUCER,))
    assert process.attributes["messaging.system"] == "kafka"
    assert process.attributes["messaging.destination.name"] == app.topic("numbers")
    assert process.attributes["messaging.consumer.group.name"] == app.settings.intake_group
    assert process.attributes["messaging.operation.type"] == "process"
    assert {"messaging.kafka.offset", "messaging.destination.partition.id", "messaging.message.id"} <= set(process.attributes)

    sends = {span.attributes["engine.seq"]: span for span in spans if span.name == f"send {app.settings.states_topic}"}
    assert sorted(sends) == [change.seq for change in run.changes]
    for change in run.changes:
        send = sends[change.seq]
        assert send.span_id == span_id(change), "the record's traceparent is its send's span"
        assert send.kind == SEND
        assert send.attributes["messaging.destination.name"] == app.settings.states_topic
        assert send.attributes["messaging.operation.type"] == "send"
        assert send.attributes["engine.state"] == change.state
    assert sends[0].parent_id == process.span_id

    root = one(spans, "run two")
    assert (root.parent_id, root.kind) == (sends[0].span_id, INTERNAL)
    assert (root.attributes["engine.flow"], root.attributes["engine.run_id"]) == ("two", run.id)
    assert (root.attributes["engine.state"], root.attributes["engine.app"]) == ("COMPLETED", app.settings.app)

    for task in ("double", "add"):
        attempt = one(spans, f"task {task}")
        assert attempt.parent_id == root.span_id
        assert (attempt.service, root.service) == ("engine-worker", f"engine-{app.settings.app}")
        assert attempt.attributes["engine.attempt"] == 1
        queue = one(spans, f"queue {task}")
        assert (queue.parent_id, queue.end) == (root.span_id, attempt.start)
        assert attempt.attributes["engine.queue_seconds"] == pytest.approx((queue.end - queue.start) / 1e9, abs=0.001)
        assert attempt.attributes["engine.worker"].startswith("tcp://127.0.0.1:")
        assert root.start <= attempt.start <= attempt.end <= root.end + 1e9
        for change in run.of(task):
            parent = root if change.state is State.SCHEDULED else attempt
            assert sends[change.seq].parent_id == parent.span_id
    for change in run.changes[1:]:
        if change.task is None:
            assert sends[change.seq].parent_id == root.span_id


async def test_a_subscriber_is_the_last_of_the_trace(apps: Apps, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    app = await apps.start(flows.one)
    run = await app.do("numbers", {"value": 1}, "one", traceparent=f"00-{'ef' * 16}-{PRODUCER}-01")
    monkeypatch.chdir("/")
    where = {"app": app.settings.app, "kafka": app.settings.kafka, "run_id": run.id}
    async with subscribe(**where, group=f"{app.settings.app}.mail", from_beginning=True) as changes:
        async for change in changes:
            if change.is_flow_run and change.state.is_end:
                break
    name = f"process {app.settings.states_topic}"
    await eventually(lambda: len([span for span in receiver.spans("ef" * 16) if span.name == name]) == len(run.changes))
    received = [span for span in receiver.spans("ef" * 16) if span.name == name]
    assert {span.parent_id for span in received} == {span_id(change) for change in run.changes}
    assert {(span.service, span.kind) for span in received} == {(f"{app.settings.app}-subscriber", RECEIVE)}
    assert {span.attributes["messaging.consumer.group.name"] for span in received} == {f"{app.settings.app}.mail"}


async def test_a_run_that_goes_on_is_in_its_trace_from_its_beginning(apps: Apps, receiver: Receiver, tmp_path: Path) -> None:
    app = await apps.start(flows.in_turn)
    trace_id = "12" * 16
    id = await app.send(
        "keyed", {"customer": "c", "folder": str(tmp_path), "name": "go"}, traceparent=f"00-{trace_id}-{PRODUCER}-01"
    )
    await app.heard(task="wait_for", state=State.RUNNING)
    await eventually(lambda: [span for span in receiver.spans(trace_id) if span.name == "start in_turn"])
    seen = receiver.spans(trace_id)
    mark = one(seen, "start in_turn")
    assert mark.start < mark.end, "it was queued"
    assert mark.attributes["engine.run_id"] == app.run_id("in_turn", id)
    assert mark.parent_id in {span.span_id for span in seen if span.name.startswith("send ")}
    assert "run in_turn" not in {span.name for span in seen}
    (tmp_path / "go").touch()
    spans = await whole_trace(receiver, await app.run("in_turn", id))
    assert_no_orphan(spans, PRODUCER)
    assert one(spans, "run in_turn").parent_id == mark.parent_id


async def test_a_retried_task_has_a_span_for_each_attempt(apps: Apps, receiver: Receiver, tmp_path: Path) -> None:
    app = await apps.start(flows.persevere)
    run = await app.do("retries", {"attempt": 2, "folder": str(tmp_path)}, "persevere")
    spans = await whole_trace(receiver, run)
    first, second = sorted((s for s in spans if s.name == "task succeed_at"), key=lambda s: s.attributes["engine.attempt"])
    assert [s.attributes["engine.attempt"] for s in (first, second)] == [1, 2]
    assert first.parent_id == second.parent_id == one(spans, "run persevere").span_id
    assert (first.is_error, second.is_error) == (True, False)
    assert first.attributes["error.type"] == "RuntimeError"
    assert (first.links, second.links) == ((), (first.span_id,))
    parents = {span.attributes["engine.seq"]: span.parent_id for span in spans if "engine.seq" in span.attributes}
    for change in run.of("succeed_at")[1:]:
        assert parents[change.seq] == (first if change.attempt == 1 else second).span_id


async def test_a_failed_run_is_an_error_and_what_did_not_run_has_no_span(apps: Apps, receiver: Receiver) -> None:
    app = await apps.start(flows.break_down)
    run = await app.do("failures", {"value": 1}, "break_down")
    spans = await whole_trace(receiver, run)
    assert_no_orphan(spans, "")
    assert one(spans, "run break_down").is_error
    assert one(spans, "task fail").is_error
    assert Counter(s.name for s in spans if s.name.startswith("task ")) == {"task fail": 1, "task double": 1}


async def test_a_producer_without_a_trace_gets_a_new_one_for_all_runs_of_the_event(apps: Apps, receiver: Receiver) -> None:
    app = await apps.start(flows.one, flows.two)
    for id in ("e", "f"):
        await app.send("numbers", {"value": 1}, id=id)
    runs = [await app.run(name, id) for id in ("e", "f") for name in ("one", "two")]
    traces = [{(change.traceparent or "")[3:35] for change in run.changes} for run in runs]
    assert traces[0] == traces[1] != traces[2] == traces[3]
    [trace_id] = traces[0]
    await eventually(lambda: len(receiver.spans(trace_id)) == expected_count(runs[0]) + expected_count(runs[1]) - 1)
    spans = receiver.spans(trace_id)
    assert_no_orphan(spans, "")
    [root] = [span for span in spans if not span.parent_id]
    assert root.name == f"process {app.topic('numbers')}"


async def test_a_producer_that_is_not_sampled_makes_no_spans(apps: Apps, receiver: Receiver) -> None:
    app = await apps.start(flows.two)
    unsampled = f"00-{'ab' * 16}-{PRODUCER}-00"
    run = await app.do("numbers", {"value": 1}, "two", traceparent=unsampled)
    assert {change.traceparent for change in run.changes} == {unsampled}, "passed on as it came"
    after = await app.do("numbers", {"value": 1}, "two")
    await whole_trace(receiver, after)
    await app.stop()
    assert receiver.spans("ab" * 16) == []


async def test_a_malformed_traceparent_starts_a_trace_that_is_whole(apps: Apps, receiver: Receiver) -> None:
    app = await apps.start(flows.one)
    headers = (*app.headers("e"), ("traceparent", SAMPLED.replace("00-", "zz-", 1).encode()))
    await app.send_record("numbers", b'{"value": 1}', headers)
    spans = await whole_trace(receiver, await app.run("one", "e"))
    assert {span.trace_id for span in spans}.isdisjoint({TRACE_ID})
    assert_no_orphan(spans, "")


async def test_what_becomes_a_dead_letter_is_processed_inside_its_trace(apps: Apps, receiver: Receiver) -> None:
    app = await apps.start(flows.one)
    trace_id = "cd" * 16
    headers = (*app.headers("e"), ("traceparent", f"00-{trace_id}-{PRODUCER}-01".encode()))
    await app.send_record("numbers", b'{"value": "x"}', headers)
    await eventually(lambda: receiver.spans(trace_id))
    [span] = receiver.spans(trace_id)
    assert (span.name, span.parent_id) == (f"process {app.topic('numbers')}", PRODUCER)


WITHOUT_ENDPOINT = """
import asyncio, sys
from engine import testing
from tests.integration import flows_graphs

async def main():
    async with testing.bench(flows_graphs.two, cluster=True) as bench:
        run = (await bench.send("numbers", {"value": 1})).run
        assert run.result() == 3
        return {change.traceparent[-2:] for change in run.changes}

flags = asyncio.run(main())
assert flags == {"00"}, flags
costly = ("opentelemetry.exporter", "opentelemetry.proto", "google.protobuf", "requests")
print([name for name in costly if name in sys.modules])
"""


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["no endpoint", "disabled", "no exporter"],
)
def test_nobody_who_wants_no_traces_pays_for_an_exporter(variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ENDPOINT],
        env=child_environment(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stderr


async def test_a_receiver_that_is_away_stops_nothing(kafka: str, dask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    apps = Apps(kafka, dask)
    try:
        app: AppUnderTest = await apps.start(flows.two)
        run = await app.do("numbers", {"value": 1}, "two", traceparent=SAMPLED)
        assert run.result == 3
        async with asyncio.timeout(20):
            await app.stop()
    finally:
        await apps.close()
