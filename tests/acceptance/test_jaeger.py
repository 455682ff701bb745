"""``engine dev --jaeger``: whole traces in a real Jaeger, asked for as its own pages do; engines and Jaeger itself die."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind

from engine import subscribe
from engine.broker import Outgoing
from engine.events import Event, to_headers
from engine.kafka import KafkaBroker
from engine.runs import repeat_id_of
from engine.settings import Settings
from engine.states import State, StateChange, encode
from tests import jaeger_under_test
from tests.acceptance.conftest import SOURCE, Stack, engine
from tests.integration.otlp_under_test import Span, assert_no_orphan, one
from tests.waiting import eventually, eventually_said

HANDLERS = """
import time
from pathlib import Path
from engine import Retry, fixed, flow, on, task

def wait_until(condition):
    while not condition():
        time.sleep(0.01)

@task
def meet(folder: str, name: str) -> int:
    # Four threads are all there are, two a worker: all four meet only where each worker runs two of them.
    Path(folder, f"here-{name}").touch()
    wait_until(lambda: len(list(Path(folder).glob("here-*"))) == 4)
    return 1

@task
def count(number: int) -> list[int]:
    return list(range(number))

@task
def double(value: int) -> int:
    return value * 2

@task(retry=Retry(3, wait=fixed(0.05)))
def stumble(folder: str) -> int:
    if not Path(folder, "stumbled").exists():
        Path(folder, "stumbled").touch()
        raise RuntimeError("the first time")
    return 1

@task
def parent(value: int) -> int:
    return double.spawn(value)

@task
def total(values: list[int], more: list[int]) -> int:
    return sum(values) + sum(more)

@task
def hold(folder: str) -> str:
    wait_until(Path(folder, "go").exists)
    return "held"

@flow(on("tours"))
def tour(folder: str):
    met = [meet(folder, name) for name in "abcd"]
    return total([*met, stumble(folder), parent(5)], double.map(count(3)))

@flow(on("holds"))
def keep(folder: str):
    return hold(folder)

@flow(on("numbers-traced"))
def plain(value: int):
    return double(value)
"""

APP = "traced"
STATES = f"{APP}.states"


@pytest.fixture(scope="module")
def traced(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Skipped where no Jaeger can be had; where one could have been built and CI is set, that is a failure."""
    try:
        program = jaeger_under_test.find()
    except jaeger_under_test.NoJaeger as error:
        if os.environ.get("CI") and jaeger_under_test.go() is not None:
            pytest.fail(str(error))
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("traced")
    handlers = folder / "touring.py"
    handlers.write_text(HANDLERS)
    environment = {
        "ENGINE_JAEGER": str(program),
        "ENGINE_SESSION_TIMEOUT_SECONDS": "3",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    arguments = ["--kafka", kafka, "--workers", "2", "--jaeger", "--json"]
    running = Stack(folder, APP, arguments, handlers=handlers, environment=environment)
    try:
        running.wait_ready()
        yield running
    finally:
        code, rest = running.stop()
    assert (code, rest) == (0, b""), running.log


class Producer:
    """Somebody's program with spans of its own."""

    def __init__(self, otlp: str) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "shop"}), shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{otlp}/v1/traces")))

    async def send(self, stack: Stack, topic: str, event_id: str, data: object) -> str:
        """Publish an event inside a span; answers its traceparent."""
        with self._provider.get_tracer("shop").start_as_current_span("place order", kind=SpanKind.PRODUCER):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            await send(stack, topic, event_id, data, carrier["traceparent"])
        return carrier["traceparent"]

    def close(self) -> None:
        self._provider.shutdown()


@pytest.fixture
def producer(traced: Stack) -> Iterator[Producer]:
    made = Producer(traced.ready["otlp"])
    yield made
    made.close()


async def send(stack: Stack, topic: str, event_id: str, data: object, traceparent: str) -> None:
    broker = KafkaBroker(Settings(kafka=stack.ready["kafka"]))
    sink = broker.sink()
    await sink.start()
    headers = to_headers(Event(id=event_id, source=SOURCE, type="t", data=None, traceparent=traceparent))
    await sink.write([Outgoing(topic, None, encode(data), headers)])
    await sink.close()
    await broker.close()


async def changes_of(stack: Stack, run_id: str, until: Sequence[tuple[str | None, State]] = ()) -> list[StateChange]:
    """All changes of a run to its end, or until one of a task (None: of the run itself) with a state."""
    found: list[StateChange] = []
    where = {"app": stack.app, "kafka": stack.ready["kafka"]}
    async with subscribe(**where, from_beginning=True, run_id=run_id) as changes:
        async for change in changes:
            found.append(change)
            if (change.task, change.state) in until or (change.is_flow_run and change.state.is_end):
                return found
    raise AssertionError("a subscription has no end")


async def spans_of(stack: Stack, trace_id: str) -> list[Span]:
    """What Jaeger has of a trace; a span that its exporter has sent twice, as it may where an answer is lost, counts once."""
    async with httpx.AsyncClient(base_url=stack.ready["jaeger"]) as client:
        answer = await client.get(f"/api/v3/traces/{trace_id}")
    if answer.status_code == 404:
        return []
    assert answer.status_code == 200, answer.text
    spans = [
        _span(span, _attributes(resource["resource"])["service.name"])
        for resource in answer.json()["result"]["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    return [span for number, span in enumerate(spans) if span not in spans[:number]]


async def trace_with(stack: Stack, trace_id: str, wanted: Counter[str]) -> list[Span]:
    """A trace when it has these spans, by name, and no other ones."""
    spans: list[Span] = []

    async def look() -> bool:
        spans[:] = await spans_of(stack, trace_id)
        return len(spans) >= wanted.total()

    await eventually_said(look)
    assert Counter(span.name for span in spans) == wanted
    return spans


def _span(span: dict[str, Any], service: str) -> Span:
    return Span(
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId", ""),
        name=span["name"],
        kind=span.get("kind", 0),
        service=service,
        attributes=_attributes(span),
        links=tuple(link["spanId"] for link in span.get("links", ())),
        is_error=span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR"),
        start=int(span["startTimeUnixNano"]),
        end=int(span["endTimeUnixNano"]),
    )


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in holder.get("attributes", ()):
        [(kind, value)] = item["value"].items()
        found[item["key"]] = int(value) if kind == "intValue" else value
    return found


def expected(topic: str, flow: str, changes: Sequence[StateChange]) -> Counter[str]:
    """The spans that a run leaves, by name: the producer's, and those of a subscriber too where there is one."""
    names = Counter({f"process {topic}": 1, f"run {flow}": 1, f"send {STATES}": len(changes)})
    for change in changes:
        if change.state is State.RUNNING:
            names[f"task {change.task}" if change.task else f"start {flow}"] += 1
        if change.state is State.RUNNING and change.task and change.attempt == 1:
            names[f"queue {change.task}"] += 1
    return names


def span_id(traceparent: str | None) -> str:
    return (traceparent or "")[36:52]


def pid_of_the_engine(stack: Stack) -> int:
    [found] = [child.pid for child in psutil.Process(stack.process.pid).children() if child.cmdline()[3:4] == ["run"]]
    return found


async def test_the_whole_tree_from_the_producer_to_the_subscriber(
    traced: Stack, producer: Producer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", traced.ready["otlp"])
    traceparent = await producer.send(traced, "tours", "tour", {"folder": str(tmp_path)})
    changes = await changes_of(traced, traced.run_id("tour", "tour"))
    assert msgspec.json.decode(changes[-1].result) == 21
    wanted = expected("tours", "tour", changes) + Counter({"place order": 1, f"process {STATES}": len(changes)})
    assert wanted["task meet"] == 4
    assert wanted["task stumble"] == 2
    assert wanted["task double"] == 4
    spans = await trace_with(traced, traceparent[3:35], wanted)
    assert_no_orphan(spans, "")

    placed, process, root = one(spans, "place order"), one(spans, "process tours"), one(spans, "run tour")
    sends = {span.attributes["engine.seq"]: span for span in spans if span.name == f"send {STATES}"}
    assert (placed.parent_id, placed.service) == ("", "shop")
    assert (process.parent_id, process.links, process.service) == (placed.span_id, (placed.span_id,), f"engine-{APP}")
    assert sends[0].parent_id == process.span_id
    assert root.parent_id == one(spans, "start tour").parent_id == sends[0].span_id

    tasks = [span for span in spans if span.name.startswith("task ")]
    below = {span.span_id for span in tasks if span.name == "task parent"}
    assert Counter(span.parent_id for span in tasks if span.parent_id != root.span_id) == Counter(below)
    assert len({span.attributes["engine.worker"] for span in tasks if span.name == "task meet"}) == 2
    assert {span.service for span in tasks} == {"engine-worker"}
    first, second = sorted((s for s in tasks if s.name == "task stumble"), key=lambda s: s.attributes["engine.attempt"])
    assert (first.is_error, second.is_error) == (True, False)
    assert (first.links, second.links) == ((), (first.span_id,))

    # How long what had to wait has waited: each task, and the run itself.
    queues = {span.attributes["engine.task_run_id"]: span for span in spans if span.name.startswith("queue ")}
    at = {(change.task_run_id, change.state): change.at.timestamp() for change in changes}
    waited_seconds = at[None, State.RUNNING] - at[None, State.SCHEDULED]
    assert root.attributes["engine.queue_seconds"] == pytest.approx(waited_seconds, abs=0.001)
    start = one(spans, "start tour")
    assert (start.end - start.start) / 1e9 == pytest.approx(waited_seconds, abs=0.001)
    assert len(queues) == len({span.attributes["engine.task_run_id"] for span in tasks})
    for span in tasks:
        if span.name == "task meet":
            task_run_id = span.attributes["engine.task_run_id"]
            waited_seconds = at[task_run_id, State.RUNNING] - at[task_run_id, State.SCHEDULED]
            queue = queues[task_run_id]
            assert span.attributes["engine.queue_seconds"] >= waited_seconds - 0.001
            assert (queue.end - queue.start) / 1e9 >= waited_seconds - 0.001
            assert (queue.parent_id, queue.end, queue.service) == (span.parent_id, span.start, span.service)

    received = {span.parent_id: span for span in spans if span.name == f"process {STATES}"}
    attempts = {(span.attributes["engine.task_run_id"], span.attributes["engine.attempt"]): span.span_id for span in tasks}
    for change in changes:
        send = sends[change.seq]
        assert send.span_id == span_id(change.traceparent)
        assert received[send.span_id].service == f"{APP}-subscriber"
        if change.seq and change.task_run_id is None:
            assert send.parent_id == root.span_id
        elif change.task_run_id is not None and change.state is not State.SCHEDULED:
            assert send.parent_id == attempts[change.task_run_id, change.attempt]


async def test_a_run_once_more_has_a_trace_of_its_own_with_a_link_to_the_old_one(
    traced: Stack, producer: Producer, tmp_path: Path
) -> None:
    traceparent = await producer.send(traced, "numbers-traced", "seven", {"value": 7})
    run_id = traced.run_id("plain", "seven")
    before = await changes_of(traced, run_id)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": traced.ready["otlp"]}
    again = await engine("runs", "rerun", run_id, "--json", *traced.where, environment=environment)
    assert again.code == 0, again.err
    after = await changes_of(traced, again.lines[0]["run_id"])
    trace_id = (after[0].traceparent or "")[3:35]
    assert trace_id != traceparent[3:35]
    spans = await trace_with(traced, trace_id, expected("numbers-traced", "plain", after) - Counter(["process numbers-traced"]))
    assert_no_orphan(spans, "")
    [root] = [span for span in spans if not span.parent_id]
    assert (root.name, root.links) == (f"send {STATES}", (span_id(before[0].traceparent),))

    # A letter that is mended and replayed.
    traceparent = await producer.send(traced, "numbers-traced", "bad", {"value": "seven"})
    [letter] = await letters(traced)
    mended = tmp_path / "mended.json"
    mended.write_text('{"value": 7}')
    done = await engine(
        *("dead-letters", "replay", letter["id"], "--value", str(mended), "--replay-id", "mine", "--json", *traced.where)
    )
    assert done.code == 0, done.err
    replayed = await changes_of(traced, repeat_id_of(traced.run_id("plain", "bad"), "mine"))
    names = expected("numbers-traced", "plain", replayed) - Counter(["process numbers-traced"])
    spans = await trace_with(traced, (replayed[0].traceparent or "")[3:35], names + Counter([f"process {APP}.replays"]))
    assert_no_orphan(spans, "")
    assert one(spans, f"process {APP}.replays").links == (span_id(traceparent),)


async def letters(stack: Stack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    async def look() -> bool:
        found[:] = (await engine("dead-letters", "ls", "--json", *stack.where)).lines
        return bool(found)

    await eventually_said(look)
    return found


async def test_a_long_run_is_seen_while_it_goes_on_and_is_whole_after_its_engine_was_killed(
    traced: Stack, producer: Producer, tmp_path: Path
) -> None:
    traceparent = await producer.send(traced, "holds", "long", {"folder": str(tmp_path)})
    run_id = traced.run_id("keep", "long")
    told = await changes_of(traced, run_id, until=[("hold", State.RUNNING)])

    async def is_seen() -> bool:
        return "start keep" in {span.name for span in await spans_of(traced, traceparent[3:35])}

    await eventually_said(is_seen)
    seen = await spans_of(traced, traceparent[3:35])
    assert {"place order", "process holds", f"send {STATES}"} < {span.name for span in seen}
    assert one(seen, "start keep").attributes["engine.run_id"] == run_id
    assert one(seen, "start keep").parent_id in {span.span_id for span in seen}
    assert "run keep" not in {span.name for span in seen}

    killed = pid_of_the_engine(traced)
    os.kill(killed, signal.SIGKILL)
    (tmp_path / "go").touch()
    changes = await changes_of(traced, run_id)
    assert len({change.epoch for change in changes[1:]}) == 2, "two owners"
    # What the first engine had not sent yet has died with it; nothing else is missing. Nothing is there twice, but that the
    # event may have been taken in twice: killed before it had committed its offset, the engine leaves it to the next one,
    # whose spans of that have the same ids.
    died = {span_id(change.traceparent) for change in told}
    wanted = expected("holds", "keep", changes) + Counter(["place order"])
    spans: list[Span] = []

    async def is_whole() -> bool:
        spans[:] = await spans_of(traced, traceparent[3:35])
        missing = wanted - Counter(span.name for span in spans)
        ids = {span.span_id for span in spans}
        orphans = {span.parent_id for span in spans} - ids - died - {""}
        return not orphans and set(missing) <= {f"send {STATES}"} and missing.total() <= len(died - ids)

    await eventually_said(is_whole)
    assert Counter(span.name for span in spans) <= wanted + Counter(["process holds", f"send {STATES}"])
    taking_in = {span_id(told[0].traceparent), *(span.span_id for span in spans if span.name == "process holds")}
    others = [span.span_id for span in spans if span.span_id not in taking_in]
    assert len(set(others)) == len(others)
    root, attempt = one(spans, "run keep"), one(spans, "task hold")
    assert attempt.parent_id == root.span_id, "the one who ended it has made the span that the first one's are under"
    assert root.start <= attempt.start <= attempt.end <= root.end + 1e9


async def test_a_producer_that_is_not_sampled_leaves_nothing(traced: Stack, producer: Producer) -> None:
    unsampled = f"00-{'ab' * 16}-{'cd' * 8}-00"
    await send(traced, "numbers-traced", "quiet", {"value": 1}, unsampled)
    quiet = await changes_of(traced, traced.run_id("plain", "quiet"))
    assert {change.traceparent for change in quiet} == {unsampled}
    traceparent = await producer.send(traced, "numbers-traced", "loud", {"value": 1})
    loud = await changes_of(traced, traced.run_id("plain", "loud"))
    names = expected("numbers-traced", "plain", loud) + Counter(["place order"])
    await trace_with(traced, traceparent[3:35], names)
    assert await spans_of(traced, "ab" * 16) == []


async def test_jaeger_is_on_loopback_alone_and_comes_back_where_it_was(traced: Stack) -> None:
    [jaeger] = [child for child in psutil.Process(traced.process.pid).children() if "--config" in child.cmdline()]
    listening = {c.laddr.ip for c in jaeger.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    jaeger.kill()
    await eventually(lambda: "Jaeger: back" in traced.log)
    async with httpx.AsyncClient(base_url=traced.ready["jaeger"]) as client:
        assert (await client.get("/api/v3/services")).status_code == 200
