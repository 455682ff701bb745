"""engine.telemetry: spans as documented, deterministic contexts, and nothing at all where nobody samples."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from engine.events import Position, valid_traceparent
from engine.runs import FlowRun
from engine.states import Failure, State, StateChange, utc
from engine.telemetry import Tracer
from engine.trace_contexts import attempt_context, child_of, is_sampled, run_context, trace_id_of

TRACE_ID = "0123456789abcdef0123456789abcdef"
SAMPLED = f"00-{TRACE_ID}-0123456789abcdef-01"
UNSAMPLED = f"00-{TRACE_ID}-0123456789abcdef-00"
POSITION = Position("orders", 3, 99)
RUN_ID = "fedcba9876543210" * 2
CHANGE = StateChange(run_id=RUN_ID, flow="fulfil", state=State.FAILED, seq=4, epoch=7, attempt=1, at=utc(30.0))


class Kept(SpanProcessor):
    """Keeps the spans it is given."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def tracer(sampler: Sampler = ALWAYS_ON) -> tuple[Tracer, list[ReadableSpan]]:
    kept = Kept()
    return Tracer(kept, sampler, Resource({"service.name": "test"})), kept.spans


def ids(span: ReadableSpan) -> tuple[str, str, str | None]:
    """Trace, span and parent of a span."""
    assert span.context is not None
    parent = None if span.parent is None else format_span_id(span.parent.span_id)
    return format_trace_id(span.context.trace_id), format_span_id(span.context.span_id), parent


def span_id(traceparent: str) -> str:
    return traceparent[36:52]


class TestBegin:
    def test_a_record_of_a_producer_stays_in_its_trace(self) -> None:
        context = tracer()[0].begin(SAMPLED, POSITION)
        assert trace_id_of(context) == TRACE_ID
        assert context != SAMPLED
        assert context == tracer()[0].begin(SAMPLED, POSITION)

    def test_without_an_exporter_the_producers_context_goes_on_as_it_is(self) -> None:
        assert Tracer(None, None, None).begin(SAMPLED, POSITION) == SAMPLED

    @pytest.mark.parametrize(("producer", "sampled"), [(SAMPLED, True), (UNSAMPLED, False)])
    @pytest.mark.parametrize("root", [ALWAYS_ON, ALWAYS_OFF])
    def test_a_producers_word_counts(self, producer: str, sampled: bool, root: Sampler) -> None:
        assert is_sampled(tracer(ParentBased(root))[0].begin(producer, POSITION)) is sampled

    @pytest.mark.parametrize(("sampler", "sampled"), [(ALWAYS_ON, True), (ALWAYS_OFF, False)])
    @pytest.mark.parametrize("producer", [SAMPLED, UNSAMPLED])
    def test_unless_the_sampler_asked_for_decides_alone(self, producer: str, sampler: Sampler, sampled: bool) -> None:
        context = tracer(sampler)[0].begin(producer, POSITION)
        assert is_sampled(context) is sampled
        assert trace_id_of(context) == TRACE_ID

    @pytest.mark.parametrize(("sampler", "sampled"), [(ALWAYS_ON, True), (ALWAYS_OFF, False)])
    def test_a_record_without_a_trace_gets_a_new_one_as_the_sampler_says(self, sampler: Sampler, sampled: bool) -> None:
        context = tracer(sampler)[0].begin(None, POSITION)
        assert valid_traceparent(context) == context
        assert is_sampled(context) is sampled
        assert context != tracer(sampler)[0].begin(None, POSITION)

    def test_without_an_exporter_a_new_trace_is_not_sampled(self) -> None:
        context = Tracer(None, None, None).begin(None, POSITION)
        assert valid_traceparent(context) == context
        assert not is_sampled(context)


class TestSpans:
    def test_process_is_a_child_of_the_producer_and_linked_to_it(self) -> None:
        made, spans = tracer()
        context = made.begin(SAMPLED, POSITION)
        made.process(context, SAMPLED, POSITION, "shop.intake", "42", 10.0, 10.5)
        [span] = spans
        assert (span.name, span.kind) == ("process orders", SpanKind.CONSUMER)
        assert ids(span) == (TRACE_ID, span_id(context), span_id(SAMPLED))
        assert [format_span_id(link.context.span_id) for link in span.links] == [span_id(SAMPLED)]
        assert dict(span.attributes or {}) == {
            "messaging.system": "kafka",
            "messaging.destination.name": "orders",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.partition.id": "3",
            "messaging.kafka.offset": 99,
            "messaging.consumer.group.name": "shop.intake",
            "messaging.message.id": "42",
        }
        assert (span.start_time, span.end_time) == (10_000_000_000, 10_500_000_000)
        assert span.resource.attributes["service.name"] == "test"

    def test_process_without_a_producer_is_a_root(self) -> None:
        made, spans = tracer()
        made.process(made.begin(None, POSITION), None, POSITION, "g", "42", 1.0, 2.0)
        assert spans[0].parent is None
        assert spans[0].links == ()

    def test_a_replay_is_the_root_of_a_trace_of_its_own_with_a_link_to_the_old_one(self) -> None:
        made, spans = tracer()
        made.process(made.begin(None, POSITION), None, POSITION, "g", "42", 1.0, 2.0, SAMPLED)
        made.send(made.begin(None, POSITION), None, CHANGE, "t", 1.0, 2.0, SAMPLED)
        for span in spans:
            assert span.parent is None
            assert format_trace_id(span.context.trace_id) != TRACE_ID
            assert [format_span_id(link.context.span_id) for link in span.links] == [span_id(SAMPLED)]

    def test_a_run_that_failed_is_an_error_with_its_type(self) -> None:
        made, spans = tracer()
        run, context = flow_run(), run_context(SAMPLED, RUN_ID)
        run.advance(State.RUNNING, 10.0, 7)
        made.run(context, run.advance(State.FAILED, 30.0, 7, error=Failure("ValueError", "bad")), "shop", run)
        [span] = spans
        assert span.start_time == told(10)
        assert (span.name, span.kind, span.end_time) == ("run fulfil", SpanKind.INTERNAL, int(CHANGE.at.timestamp() * 1e9))
        assert ids(span) == (TRACE_ID, span_id(context), span_id(SAMPLED))
        assert dict(span.attributes or {}) == {
            "engine.app": "shop",
            "engine.flow": "fulfil",
            "engine.run_id": RUN_ID,
            "engine.state": "FAILED",
            "engine.attempt": 1,
            "engine.queue_seconds": pytest.approx(2.0),
            "error.type": "ValueError",
        }
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError: bad")

    def test_a_run_that_begins_leaves_a_span_of_its_queueing_at_once_whose_parent_is_there(self) -> None:
        made, spans = tracer()
        run, context = flow_run(), run_context(SAMPLED, RUN_ID)
        made.run(context, run.advance(State.RUNNING, 10.0, 7), "shop", run)
        [mark] = spans
        assert (mark.name, mark.kind, mark.start_time, mark.end_time) == ("start fulfil", SpanKind.INTERNAL, told(8), told(10))
        trace_id, own_id, parent_id = ids(mark)
        assert (trace_id, parent_id) == (TRACE_ID, span_id(SAMPLED))
        assert own_id != span_id(context)
        assert (mark.attributes or {})["engine.state"] == "RUNNING"

    def test_the_span_of_a_run_whose_flow_was_tried_again_has_all_attempts_in_it_and_a_mark_for_each(self) -> None:
        made, spans = tracer()
        run, context = flow_run(), run_context(SAMPLED, RUN_ID)
        for state, at in ((State.RUNNING, 10.0), (State.RETRYING, 11.0), (State.RUNNING, 15.0), (State.COMPLETED, 16.0)):
            made.run(context, run.advance(state, at, 7), "shop", run)
        assert [span.name for span in spans] == ["start fulfil", "start fulfil", "run fulfil"]
        assert len({ids(span)[1] for span in spans}) == 3
        assert (spans[1].start_time, spans[1].end_time) == (told(15), told(15))
        assert (spans[2].start_time, spans[2].end_time) == (told(10), told(16))

    def test_two_runs_of_one_event_have_marks_of_their_own(self) -> None:
        made, spans = tracer()
        for run_id in (RUN_ID, RUN_ID[::-1]):
            change = msgspec.structs.replace(CHANGE, run_id=run_id, state=State.RUNNING)
            made.run(run_context(SAMPLED, run_id), change, "shop", flow_run())
        assert len({ids(span)[1] for span in spans}) == 2

    def test_a_run_cancelled_before_it_began_has_no_length(self) -> None:
        made, spans = tracer()
        run, context = flow_run(), run_context(SAMPLED, RUN_ID)
        made.run(context, run.advance(State.CANCELLED, 30.0, 7), "shop", run)
        [span] = spans
        assert (span.start_time, span.end_time) == (told(30), told(30))

    def test_an_attempt_says_how_long_it_waited(self) -> None:
        made, spans = tracer()
        run = run_context(SAMPLED, RUN_ID)
        attempt(made, run)
        [queue, span] = spans
        assert (queue.name, queue.start_time, queue.end_time) == ("queue price", int(8.5e9), int(10e9))
        assert ids(queue)[::2] == (TRACE_ID, span_id(run))
        assert ids(queue)[1] not in {span_id(attempt_context(run, "r/price/0", number)) for number in range(3)}
        assert (queue.attributes or {})["engine.task_run_id"] == "r/price/0"
        assert "engine.queue_seconds" not in (queue.attributes or {})
        assert span.name == "task price"
        assert ids(span) == (TRACE_ID, span_id(attempt_context(run, "r/price/0", 1)), span_id(run))
        assert span.links == ()
        assert dict(span.attributes or {}) == {
            "engine.flow": "fulfil",
            "engine.run_id": RUN_ID,
            "engine.task": "price",
            "engine.task_run_id": "r/price/0",
            "engine.attempt": 1,
            "engine.queue_seconds": 1.5,
            "engine.worker": "tcp://w",
        }
        assert span.status.status_code is StatusCode.UNSET

    def test_the_next_attempt_has_a_link_to_the_one_before_and_does_not_count_it_as_waiting(self) -> None:
        made, spans = tracer()
        run = run_context(SAMPLED, RUN_ID)
        attempt(made, run, number=2)
        [span] = spans
        assert ids(span) == (TRACE_ID, span_id(attempt_context(run, "r/price/0", 2)), span_id(run))
        before = attempt_context(run, "r/price/0", 1)
        assert [format_span_id(link.context.span_id) for link in span.links] == [span_id(before)]
        assert "engine.queue_seconds" not in (span.attributes or {})

    def test_clocks_that_disagree_make_no_negative_times(self) -> None:
        made, spans = tracer()
        attempt(made, SAMPLED, scheduled_at=12.0, started_at=11.5, ended_at=11.0)
        queue, span = spans
        assert (span.attributes or {})["engine.queue_seconds"] == 0.0
        assert span.start_time == span.end_time == queue.start_time == queue.end_time

    def test_send_names_the_change_it_carries(self) -> None:
        made, spans = tracer()
        context = child_of(SAMPLED, "send")
        made.send(context, SAMPLED, CHANGE, "shop.states", 1.0, 2.0)
        [span] = spans
        assert (span.name, span.kind) == ("send shop.states", SpanKind.PRODUCER)
        assert ids(span) == (TRACE_ID, span_id(context), span_id(SAMPLED))
        assert dict(span.attributes or {}) == {
            "messaging.system": "kafka",
            "messaging.destination.name": "shop.states",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.message.id": f"{RUN_ID}/7/4",
            "engine.run_id": RUN_ID,
            "engine.state": "FAILED",
            "engine.seq": 4,
        }

    def test_what_a_subscriber_does_with_a_change_is_under_its_send_each_time_anew(self) -> None:
        made, spans = tracer()
        change = StateChange(
            run_id=RUN_ID, flow="fulfil", state=State.FAILED, seq=4, epoch=7, attempt=1, at=utc(30.0), traceparent=SAMPLED
        )
        for group in ("mail", None):
            made.receive(change, Position("shop.states", 1, 5), group, 1.0, 2.0)
        first, second = spans
        assert (first.name, first.kind) == ("process shop.states", SpanKind.CONSUMER)
        assert ids(first)[::2] == ids(second)[::2] == (TRACE_ID, span_id(SAMPLED))
        assert ids(first)[1] != ids(second)[1]
        assert [format_span_id(link.context.span_id) for link in first.links] == [span_id(SAMPLED)]
        assert dict(first.attributes or {}) == {
            "messaging.system": "kafka",
            "messaging.destination.name": "shop.states",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.partition.id": "1",
            "messaging.kafka.offset": 5,
            "messaging.consumer.group.name": "mail",
            "engine.run_id": RUN_ID,
            "engine.state": "FAILED",
            "engine.seq": 4,
        }
        assert "messaging.consumer.group.name" not in (second.attributes or {})


def told(at: float) -> int:
    """The time of a change, in nanoseconds."""
    return int(utc(at).timestamp() * 1e9)


def flow_run() -> FlowRun:
    """One that was scheduled at 8 s."""
    scheduled = StateChange(
        run_id=RUN_ID, flow="fulfil", state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(8.0), traceparent=SAMPLED
    )
    return FlowRun(scheduled, 0)


def attempt(
    made: Tracer,
    run: str,
    *,
    number: int = 1,
    scheduled_at: float = 8.5,
    started_at: float = 10.0,
    ended_at: float = 11.0,
) -> None:
    made.attempt(
        run,
        flow="fulfil",
        run_id=RUN_ID,
        task="price",
        task_run_id="r/price/0",
        attempt=number,
        scheduled_at=scheduled_at,
        started_at=started_at,
        ended_at=ended_at,
        worker="tcp://w",
        failure=None,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda made, context: made.process(context, context, POSITION, "g", "42", 1.0, 2.0),
        lambda made, context: made.run(context, CHANGE, "shop", flow_run()),
        lambda made, context: made.receive(msgspec.structs.replace(CHANGE, traceparent=context), POSITION, "g", 1.0, 2.0),
        lambda made, context: made.send(context, context, CHANGE, "t", 1.0, 2.0),
        attempt,
    ],
    ids=["process", "run", "receive", "send", "attempt"],
)
def test_nothing_is_made_of_a_trace_that_nobody_samples_or_without_an_exporter(make: Callable[[Tracer, str], None]) -> None:
    made, spans = tracer()
    make(made, UNSAMPLED)
    assert spans == []
    make(Tracer(None, None, None), SAMPLED)
    make(made, SAMPLED)
    assert spans


@pytest.mark.parametrize(
    ("variables", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_switch_tracing_on(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_on: bool
) -> None:
    for name in ("EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_TRACES_ENDPOINT", "SDK_DISABLED", "TRACES_EXPORTER"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = Tracer.from_environment("engine")
    made.close()
    assert made.is_on is is_on


@pytest.mark.parametrize(
    ("sampler", "ratio", "shares"),
    [
        (None, None, (100, 100, 0)),
        ("parentbased_traceidratio", "0.25", (25, 100, 0)),
        ("parentbased_always_off", None, (0, 100, 0)),
        ("traceidratio", "0.25", (25, 25, 25)),
        ("always_on", None, (100, 100, 100)),
        ("always_off", None, (0, 0, 0)),
    ],
)
def test_the_standard_variables_say_which_traces_are_kept(
    monkeypatch: pytest.MonkeyPatch, sampler: str | None, ratio: str | None, shares: tuple[int, int, int]
) -> None:
    """Of events without a producer's trace, with one that is sampled, with one that is not."""
    for name, value in (("TRACES_SAMPLER", sampler), ("TRACES_SAMPLER_ARG", ratio)):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
        if value is not None:
            monkeypatch.setenv(f"OTEL_{name}", value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    made = Tracer.from_environment("engine")
    made.close()
    producers = [f"00-{random.Random(n).randbytes(16).hex()}-0123456789abcdef-" for n in range(2_000)]
    for flags, share in zip((None, "01", "00"), shares, strict=True):
        kept = sum(is_sampled(made.begin(flags and f"{producer}{flags}", POSITION)) for producer in producers)
        assert share == pytest.approx(100 * kept / len(producers), abs=5 if 0 < share < 100 else 0)
