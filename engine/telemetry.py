"""Telemetry: every span and attribute name, and the one place that makes spans.

A span is made when it ends, as a value: nothing is held open, a span's id follows from what it describes, so another
owner of the run ends the same span, and nothing is done for a trace that nobody samples.
Names: OpenTelemetry semantic conventions 1.40, messaging (still "Development") and code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from engine.events import Position
from engine.runs import FlowRun
from engine.states import Failure, State, StateChange
from engine.trace_contexts import attempt_context, child_of, is_sampled, start_context, trace_id_of

# Messaging conventions.
_SYSTEM = "messaging.system"
_OPERATION_NAME = "messaging.operation.name"
_OPERATION_TYPE = "messaging.operation.type"
_DESTINATION = "messaging.destination.name"
_PARTITION = "messaging.destination.partition.id"
_GROUP = "messaging.consumer.group.name"
_OFFSET = "messaging.kafka.offset"
_MESSAGE_ID = "messaging.message.id"
_ERROR_TYPE = "error.type"
# The engine's own.
_APP = "engine.app"
_FLOW = "engine.flow"
_RUN_ID = "engine.run_id"
_TASK = "engine.task"
_TASK_RUN_ID = "engine.task_run_id"
_ATTEMPT = "engine.attempt"
_QUEUE_SECONDS = "engine.queue_seconds"
_WORKER = "engine.worker"
_STATE = "engine.state"
_SEQ = "engine.seq"

_SCOPE = InstrumentationScope("engine")
#: Spans that may wait for their export, about a kilobyte each.
_QUEUE_SPANS = 16_384


class Tracer:
    """Makes the spans of one process. Without a processor it makes none."""

    __slots__ = ("_follows", "_processor", "_resource", "_sampler")

    def __init__(self, processor: SpanProcessor | None, sampler: Sampler | None, resource: Resource | None) -> None:
        self._processor = processor
        self._sampler = sampler
        #: Whether a producer's word counts, as it does unless another sampler was asked for.
        self._follows = sampler is None or isinstance(sampler, ParentBased)
        self._resource = resource

    @classmethod
    def from_environment(cls, service: str) -> Tracer:
        """A tracer as the ``OTEL_*`` variables say: OTLP over HTTP where an endpoint is set, else one that makes nothing."""
        environment = os.environ
        endpoint = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
        if not endpoint or off or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
            return cls(None, None, None)
        # Imported here: it brings requests and protobuf, which nobody without an endpoint should pay for.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        resource = Resource.create() if "OTEL_SERVICE_NAME" in environment else Resource.create({"service.name": service})
        sampler = TracerProvider(resource=resource, shutdown_on_exit=False).sampler
        # Room for what is made in a moment: beyond it spans are dropped, and a busy engine makes thousands a second.
        room = None if "OTEL_BSP_MAX_QUEUE_SIZE" in environment else _QUEUE_SPANS
        return cls(BatchSpanProcessor(OTLPSpanExporter(), max_queue_size=room), sampler, resource)

    @property
    def is_on(self) -> bool:
        """Whether spans are made at all."""
        return self._processor is not None

    def begin(self, producer: str | None, position: Position) -> str:
        """The context of the ``process`` span of a record: in the producer's trace, or at the root of a new one.

        Here it is decided whether anything is recorded of what the event starts; all else goes by the context alone.
        """
        if producer is None:
            trace_id = os.urandom(16).hex()
            return f"00-{trace_id}-{os.urandom(8).hex()}-{self._decide(trace_id)}"
        if not self.is_on:
            return producer
        if not self._follows:
            producer = f"{producer[:53]}{self._decide(trace_id_of(producer))}"
        return child_of(producer, position, "process")

    def _decide(self, trace_id: str) -> str:
        """The flags of a trace, as the sampler says."""
        if self._sampler is None:
            return "00"
        decision = self._sampler.should_sample(None, int(trace_id, 16), "process").decision
        return "01" if decision is Decision.RECORD_AND_SAMPLE else "00"

    def process(
        self,
        context: str,
        producer: str | None,
        position: Position,
        group: str,
        event_id: str,
        start: float,
        end: float,
        replay_of: str | None = None,
    ) -> None:
        """The record was looked at by the intake: parent is the producer's span, and a link to it is kept.

        A replay is no part of the old trace, ``replay_of``; it has a link to it.
        """
        if self._processor is None or not is_sampled(context):
            return
        linked = producer if replay_of is None else replay_of
        links = () if linked is None else (Link(_context(linked)),)
        attributes = {
            **_messaging(position.topic, "process", "process"),
            _PARTITION: str(position.partition),
            _OFFSET: position.offset,
            _GROUP: group,
            _MESSAGE_ID: event_id,
        }
        self._end(f"process {position.topic}", SpanKind.CONSUMER, context, producer, start, end, attributes, None, links)

    def run(self, context: str, change: StateChange, app: str, run: FlowRun) -> None:
        """``change`` has begun or ended an attempt of a flow, or the whole of the run, whose span is ``context``.

        That one is made in the end. A begin leaves a span beside it, at once: a run of an hour is to be found, and seen to
        be under way, from its first second on. The first is as long as the run was queued, the others have no length.
        """
        if self._processor is None or not is_sampled(context):
            return
        name, parent, at = change.flow, run.traceparent, change.at.timestamp()
        attributes: dict[str, Any] = {
            _APP: app,
            _FLOW: name,
            _RUN_ID: change.run_id,
            _STATE: change.state.value,
            _ATTEMPT: change.attempt,
        }
        if change.state is State.RUNNING:
            mark = start_context(context, change.run_id, change.attempt)
            queued_at = min(run.scheduled_at, at) if change.attempt == 1 else at
            self._end(f"start {name}", SpanKind.INTERNAL, mark, parent, queued_at, at, attributes, None)
        elif change.state.is_end:
            began_at = run.began_at or run.running_at or at  # it may have been cancelled before
            attributes[_QUEUE_SECONDS] = max(0.0, began_at - run.scheduled_at)
            self._end(f"run {name}", SpanKind.INTERNAL, context, parent, began_at, at, attributes, change.error)

    def attempt(
        self,
        run_context: str,
        *,
        flow: str,
        run_id: str,
        task: str,
        task_run_id: str,
        attempt: int,
        scheduled_at: float,
        started_at: float,
        ended_at: float,
        worker: str,
        failure: Failure | None,
    ) -> None:
        """An attempt of a task has ended on this worker. Before the first lies a span of its queueing; others have a link to
        the last."""
        if self._processor is None or not is_sampled(run_context):
            return
        attributes: dict[str, Any] = {
            _FLOW: flow,
            _RUN_ID: run_id,
            _TASK: task,
            _TASK_RUN_ID: task_run_id,
            _ATTEMPT: attempt,
            _WORKER: worker,
        }
        links: tuple[Link, ...] = ()
        if attempt == 1:
            queued_at, queue = min(scheduled_at, started_at), child_of(run_context, task_run_id, "queue")
            self._end(f"queue {task}", SpanKind.INTERNAL, queue, run_context, queued_at, started_at, attributes, None)
            attributes = {**attributes, _QUEUE_SECONDS: started_at - queued_at}
        else:
            links = (Link(_context(attempt_context(run_context, task_run_id, attempt - 1))),)
        context = attempt_context(run_context, task_run_id, attempt)
        self._end(f"task {task}", SpanKind.INTERNAL, context, run_context, started_at, ended_at, attributes, failure, links)

    def send(
        self,
        context: str,
        parent: str | None,
        change: StateChange,
        topic: str,
        start: float,
        end: float,
        repeat_of: str | None = None,
    ) -> None:
        """A state change was sent and acknowledged. ``repeat_of`` is the trace of the run that it repeats."""
        if self._processor is None or not is_sampled(context):
            return
        attributes: dict[str, Any] = {
            **_messaging(topic, "send", "send"),
            _MESSAGE_ID: f"{change.run_id}/{change.epoch}/{change.seq}",
            _RUN_ID: change.run_id,
            _STATE: change.state.value,
            _SEQ: change.seq,
        }
        if change.task_run_id is not None:
            attributes[_TASK_RUN_ID] = change.task_run_id
        links = () if repeat_of is None else (Link(_context(repeat_of)),)
        self._end(f"send {topic}", SpanKind.PRODUCER, context, parent, start, end, attributes, None, links)

    def receive(self, change: StateChange, position: Position, group: str | None, start: float, end: float) -> None:
        """A subscriber has dealt with a change: parent is the span of its ``send``. Its id is new: there may be many."""
        sent = change.traceparent
        if self._processor is None or sent is None or not is_sampled(sent):
            return
        attributes: dict[str, Any] = {
            **_messaging(position.topic, "process", "process"),
            _PARTITION: str(position.partition),
            _OFFSET: position.offset,
            _RUN_ID: change.run_id,
            _STATE: change.state.value,
            _SEQ: change.seq,
        }
        if group is not None:
            attributes[_GROUP] = group
        context = f"{sent[:36]}{os.urandom(8).hex()}{sent[52:]}"
        links = (Link(_context(sent)),)
        self._end(f"process {position.topic}", SpanKind.CONSUMER, context, sent, start, end, attributes, None, links)

    def flush(self) -> None:
        """Export what is waiting; blocks for at most a few seconds."""
        if self._processor is not None:
            self._processor.force_flush(5_000)

    def close(self) -> None:
        """Export what is waiting and stop; blocks for at most a few seconds."""
        if self._processor is not None:
            self._processor.shutdown()

    def _end(
        self,
        name: str,
        kind: SpanKind,
        context: str,
        parent: str | None,
        start: float,
        end: float,
        attributes: Mapping[str, Any],
        failure: Failure | None,
        links: tuple[Link, ...] = (),
    ) -> None:
        if failure is not None:
            attributes = {**attributes, _ERROR_TYPE: failure.type}
        span = ReadableSpan(
            name=name,
            context=_context(context),
            parent=None if parent is None else _context(parent, is_remote=True),
            resource=self._resource,
            attributes=attributes,
            links=links,
            kind=kind,
            status=Status() if failure is None else Status(StatusCode.ERROR, f"{failure.type}: {failure.message}"[:500]),
            start_time=int(start * 1e9),
            end_time=int(max(start, end) * 1e9),
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)  # type: ignore[union-attr]


def _messaging(topic: str, name: str, kind: str) -> dict[str, Any]:
    return {_SYSTEM: "kafka", _DESTINATION: topic, _OPERATION_NAME: name, _OPERATION_TYPE: kind}


def _context(traceparent: str, is_remote: bool = False) -> SpanContext:
    return SpanContext(
        int(traceparent[3:35], 16),
        int(traceparent[36:52], 16),
        is_remote,
        TraceFlags(int(traceparent[53:55], 16)),
    )
