"""An OTLP receiver of the tests' own: takes traces over HTTP on loopback and keeps their spans."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


class Span(msgspec.Struct, frozen=True):
    """A span as it came over the wire; ids in hex, no parent is the empty text."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    service: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    is_error: bool
    start: int
    end: int


def one(spans: list[Span], name: str) -> Span:
    """The only one of that name."""
    [found] = [span for span in spans if span.name == name]
    return found


def assert_no_orphan(spans: list[Span], producer: str) -> None:
    """Every parent is in the set, or is the producer's span, and no span came twice."""
    ids = {span.span_id for span in spans}
    assert len(ids) == len(spans)
    assert [span.name for span in spans if span.parent_id not in ids | {producer}] == []


class Receiver:
    """Listens until ``close``."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                receiver._spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self, trace_id: str) -> list[Span]:
        """Those of one trace, so far.

        An exporter that has waited too long for an answer sends the same spans once more: each counts once.
        """
        found: list[Span] = []
        for span in list(self._spans):
            if span.trace_id == trace_id and span not in found:
                found.append(span)
        return found

    def all(self) -> list[Span]:
        return list(self._spans)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _spans(request: Any) -> list[Span]:
    return [
        Span(
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            name=span.name,
            kind=span.kind,
            service=_attributes(resource.resource)["service.name"],
            attributes=_attributes(span),
            links=tuple(link.span_id.hex() for link in span.links),
            is_error=span.status.code == 2,
            start=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _attributes(holder: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in holder.attributes}
