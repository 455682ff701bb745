"""A receiver of spans that costs next to nothing: as a program it prints its port, and keeps what comes.

``GET /`` answers how many spans came: that they are counted after the clock has stopped leaves the cores to what is measured.
"""

from __future__ import annotations

import asyncio

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: %d\r\n\r\n%s"


class Sink:
    """Keeps bodies of requests as they are."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request by request."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    answer = b"%d" % self._count()
                    writer.write(_ANSWER % (len(answer), answer))
                    return
                self._bodies.append(await reader.readexactly(_length(head)))
                writer.write(_ANSWER % (0, b""))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The other side has what it wants.
        finally:
            writer.close()

    def _count(self) -> int:
        requests = map(ExportTraceServiceRequest.FromString, self._bodies)
        return sum(len(scope.spans) for request in requests for spans in request.resource_spans for scope in spans.scope_spans)


def _length(head: bytes) -> int:
    [line] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return int(line.partition(b":")[2])


async def main() -> None:
    server = await asyncio.start_server(Sink().serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
