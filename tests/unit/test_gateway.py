"""The HTTP endpoint, on a real socket, in front of the log in memory."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Sequence

import httpx
import msgspec
import pytest

import engine.event_taker as taker_module
from engine.app import App
from engine.broker import Outgoing, Record, TopicSpec
from engine.errors import SettingsError
from engine.events import Position, read
from engine.gateway import Gateway
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker, MemorySink
from engine.settings import Settings

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BINARY = {"ce-specversion": "1.0", "ce-id": "7", "ce-source": "/shop", "ce-type": "order.created"}
STRUCTURED = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.created", "data": {"total": 3}}


@pytest.fixture
async def log() -> MemoryBroker:
    """A log with one topic of one partition, ``orders``, that takes records of up to 1,000 bytes."""
    log = MemoryBroker()
    await log.ensure_topics([TopicSpec("orders", 1, config={"max.message.bytes": "1000"})])
    return log


def records(log: MemoryBroker) -> list[Record]:
    return log.log(("orders", 0))


@pytest.fixture
def parts() -> dict[str, str]:
    return {"kafka": "ok", "dask": "ok"}


@pytest.fixture
async def http(log: MemoryBroker, parts: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    gateway = Gateway(Settings(app="shop", http="127.0.0.1:0", max_record_bytes=4_096), log.sink(), lambda: parts)
    await gateway.start()
    async with httpx.AsyncClient(base_url=f"http://{gateway.address}", trust_env=False) as client:
        yield client
    await gateway.close()


async def test_a_binary_event_is_written_with_its_attributes(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    headers = {
        **BINARY,
        "content-type": "application/json",
        "ce-partitionkey": "ada",
        "ce-time": "2026-01-02T03:04:05Z",
    }
    answer = await http.post("/events/orders", headers=headers, content=b'{"total": 3}')
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "positions": ["orders/0/0"]})
    [record] = records(log)
    assert (record.key, record.value) == (b"ada", b'{"total": 3}')
    event = read(record.value, record.headers, Position("orders", 0, 0))
    assert (event.id, event.source, event.type, event.datacontenttype) == (
        "7",
        "/shop",
        "order.created",
        "application/json",
    )
    assert event.time is not None
    assert event.time.isoformat() == "2026-01-02T03:04:05+00:00"


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ('"a \\"quoted\\" one"', 'a "quoted" one'),
        ("%2541", "%41"),
        ("100%", "100%"),
    ],
)
async def test_header_values_are_decoded_once(http: httpx.AsyncClient, log: MemoryBroker, sent: str, meant: str) -> None:
    """HTTP binding 1.0.2, 3.1.3.2: quoted strings are unescaped, then percent-encoding is undone a single time."""
    assert (await http.post("/events/orders", headers={**BINARY, "ce-subject": sent})).status_code == 202
    assert dict(records(log)[0].headers)["ce_subject"].decode() == meant


async def test_a_header_that_is_not_utf8_is_refused(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    answer = await http.post("/events/orders", headers={**BINARY, "ce-subject": "%FF"})
    assert (answer.status_code, answer.json()["error"], records(log)) == (400, "malformed-event", [])


async def test_an_event_without_data_has_a_null_value(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    assert (await http.post("/events/orders", headers=BINARY)).status_code == 202
    assert records(log)[0].value is None


async def test_a_structured_event_is_written_in_binary_mode(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    answer = await http.post(
        "/events/orders",
        headers={"content-type": "application/cloudevents+json; charset=utf-8"},
        content=msgspec.json.encode(STRUCTURED),
    )
    assert answer.status_code == 202
    assert records(log)[0].value == b'{"total":3}'
    assert dict(records(log)[0].headers)["ce_id"] == b"7"


async def test_binary_data_of_a_structured_event_is_written_as_bytes(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    document = {key: value for key, value in STRUCTURED.items() if key != "data"}
    document |= {"data_base64": base64.b64encode(b"\x00\xff").decode(), "datacontenttype": "image/png"}
    headers = {"content-type": "application/cloudevents+json"}
    assert (await http.post("/events/orders", headers=headers, content=msgspec.json.encode(document))).status_code == 202
    assert records(log)[0].value == b"\x00\xff"


async def test_a_batch_is_a_record_for_each_event(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    body = msgspec.json.encode([{**STRUCTURED, "id": str(number)} for number in range(3)])
    answer = await http.post("/events/orders", headers={"content-type": "application/cloudevents-batch+json"}, content=body)
    assert answer.json() == {"accepted": 3, "positions": ["orders/0/0", "orders/0/1", "orders/0/2"]}
    assert [dict(record.headers)["ce_id"] for record in records(log)] == [b"0", b"1", b"2"]


async def test_a_batch_with_one_bad_event_writes_nothing_and_names_it(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    body = msgspec.json.encode([STRUCTURED, {**STRUCTURED, "specversion": "9"}])
    answer = await http.post("/events/orders", headers={"content-type": "application/cloudevents-batch+json"}, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"] == "malformed-event"
    assert "event 1 of the batch" in answer.json()["reason"]
    assert records(log) == []


async def test_an_empty_batch_is_accepted(http: httpx.AsyncClient) -> None:
    answer = await http.post("/events/orders", headers={"content-type": "application/cloudevents-batch+json"}, content=b"[]")
    assert (answer.status_code, answer.json()["accepted"]) == (202, 0)


async def test_plain_json_is_a_bare_record(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    assert (await http.post("/events/orders", json={"total": 3})).status_code == 202
    [record] = records(log)
    assert (record.key, record.value, record.headers) == (None, b'{"total":3}', (("content-type", b"application/json"),))


@pytest.mark.parametrize("headers", [BINARY, {"content-type": "application/json"}], ids=["binary", "bare"])
async def test_the_span_of_the_sender_goes_on_to_the_record(
    http: httpx.AsyncClient, log: MemoryBroker, headers: dict[str, str]
) -> None:
    trace = {"traceparent": TRACEPARENT, "tracestate": "a=b"}
    assert (await http.post("/events/orders", headers={**headers, **trace}, content=b"{}")).status_code == 202
    written = dict(records(log)[0].headers)
    assert (written["traceparent"], written["tracestate"]) == (TRACEPARENT.encode(), b"a=b")


async def test_a_malformed_traceparent_is_left_out(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    headers = {**BINARY, "traceparent": "00-zero-1-01"}
    assert (await http.post("/events/orders", headers=headers, content=b"{}")).status_code == 202
    assert "traceparent" not in dict(records(log)[0].headers)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b""),
        ("application/json", b'{"total":'),
        ("application/json", b"NaN"),
        ("application/json", b"[" * 4_000),
        ("application/cloudevents+json", b"[]"),
        ("application/cloudevents+json", b'{"specversion":"1.0","source":"/a","type":"b"}'),
        ("application/cloudevents-batch+json", b"{}"),
        ("application/cloudevents-batch+json", b"[{}]"),
        ("application/cloudevents-batch+json", b"[" * 4_000),
        ("application/cloudevents-batch+json", b"\xff\xfe"),
    ],
)
async def test_what_cannot_be_read_is_refused(
    http: httpx.AsyncClient, log: MemoryBroker, content_type: str, body: bytes
) -> None:
    answer = await http.post("/events/orders", headers={"content-type": content_type}, content=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "reason"}
    assert records(log) == []


@pytest.mark.parametrize("missing", ["ce-specversion", "ce-id", "ce-source", "ce-type"])
async def test_a_required_attribute_that_is_missing_is_named(http: httpx.AsyncClient, missing: str) -> None:
    headers = {name: value for name, value in BINARY.items() if name != missing}
    answer = await http.post("/events/orders", headers=headers)
    assert answer.status_code == 400
    assert missing[3:] in answer.json()["reason"]


async def test_an_attribute_given_twice_is_refused(http: httpx.AsyncClient) -> None:
    assert (await http.post("/events/orders", headers=[*BINARY.items(), ("ce-id", "8")])).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/cloudevents+xml"},
        {**BINARY, "content-encoding": "gzip"},
        {},
    ],
)
async def test_other_kinds_of_body_are_not_taken(http: httpx.AsyncClient, log: MemoryBroker, headers: dict[str, str]) -> None:
    """Of these a web page may send the plain ones without asking, so a bare record has to say that it is JSON."""
    answer = await http.post("/events/orders", headers=headers, content=b"{}")
    assert (answer.status_code, records(log)) == (415, [])


@pytest.mark.parametrize("topic", ["shop.states", "shop.dead-letters", "__consumer_offsets"])
async def test_the_topics_of_the_engine_and_of_kafka_are_not_written(
    http: httpx.AsyncClient, log: MemoryBroker, topic: str
) -> None:
    assert (await http.post(f"/events/{topic}", json={})).status_code == 403
    assert records(log) == []


@pytest.mark.parametrize("topic", ["nothing", "a%20b", "a" * 250, "%2E%2E%2F", "%C3%A9"])
async def test_a_topic_that_does_not_exist_is_not_found(http: httpx.AsyncClient, topic: str) -> None:
    assert (await http.post(f"/events/{topic}", json={})).status_code == 404


async def test_a_name_that_points_to_this_machine_is_not_served(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    """A page on the web can have its name resolve to 127.0.0.1; its browser still says whom it means."""
    answer = await http.post("/events/orders", headers={"host": "evil.example"}, json={})
    assert (answer.status_code, records(log)) == (421, [])


async def test_a_record_larger_than_the_topic_takes(http: httpx.AsyncClient) -> None:
    answer = await http.post("/events/orders", json="a" * 2_000)
    assert (answer.status_code, answer.json()["error"]) == (413, "too-large")


async def test_a_body_that_says_it_is_too_large_is_not_read(http: httpx.AsyncClient) -> None:
    answer = await http.post("/events/orders", headers=BINARY, content=b"a" * 5_000)
    assert (answer.status_code, answer.json()["error"]) == (413, "too-large")


async def test_a_body_without_an_end_is_cut_off(http: httpx.AsyncClient) -> None:
    """A chunked body names no length: it is read up to the limit and not further."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 200 * 1024 * 1024:
            sent += 64 * 1024
            yield b"a" * 64 * 1024

    try:
        answer = await http.post("/events/orders", headers=BINARY, content=endless())
        assert answer.status_code == 413
    except (httpx.WriteError, httpx.ReadError):
        # The connection was closed while the client still wrote: the answer is lost, which is all the same to us.
        pass
    assert sent < 200 * 1024 * 1024
    assert (await http.get("/healthz")).status_code == 200


async def test_many_bodies_at_once_cannot_fill_the_memory(http: httpx.AsyncClient) -> None:
    """Eight of the largest are held at once; who comes then is told to come back, and is served when they are gone."""
    writers = []
    for _ in range(8):
        _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        writer.write(b"POST /events/orders HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4096\r\n\r\n" + b"a" * 4_095)
        await writer.drain()
        writers.append(writer)
    async with asyncio.timeout(10):
        while (answer := await http.post("/events/orders", json="a" * 100)).status_code != 503:
            pass
    assert (answer.json()["error"], "retry-after" in answer.headers) == ("busy", True)
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(10):
        while (await http.post("/events/orders", json="a" * 100)).status_code != 202:
            pass


async def test_a_body_that_never_comes_whole_is_given_up(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taker_module, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    writer.write(b"POST /events/orders HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    assert b" 408 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_kafka_that_does_not_answer_is_a_503_with_a_time_to_come_back(log: MemoryBroker) -> None:
    sink = log.sink()
    await sink.close()  # From now on it answers as one does that cannot reach Kafka.
    gateway = Gateway(Settings(http="127.0.0.1:0"), sink, dict)
    await gateway.start()
    async with httpx.AsyncClient(base_url=f"http://{gateway.address}", trust_env=False) as client:
        answer = await client.post("/events/orders", json={})
    await gateway.close()
    assert (answer.status_code, answer.json()["error"]) == (503, "kafka-unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_healthz_answers_while_parts_are_not_ready(http: httpx.AsyncClient, parts: dict[str, str]) -> None:
    parts["dask"] = "no worker"
    assert (await http.get("/healthz")).status_code == 200
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        503,
        {"ready": False, "parts": {"kafka": "ok", "dask": "no worker"}},
    )


async def test_readyz_is_ok_when_every_part_is(http: httpx.AsyncClient) -> None:
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)


async def test_other_paths_and_methods_are_answered_in_json(http: httpx.AsyncClient) -> None:
    assert (await http.get("/nothing")).json()["error"] == "not-found"
    answer = await http.get("/events/orders")
    assert (answer.status_code, answer.json()["error"], answer.headers["allow"]) == (405, "method-not-allowed", "POST")


async def test_a_client_that_goes_away_harms_nobody(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    writer.write(b"POST /events/orders HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await http.post("/events/orders", json={})).status_code == 202
    assert len(records(log)) == 1


async def test_a_request_under_way_is_answered_before_it_closes(log: MemoryBroker) -> None:
    released, writing = asyncio.Event(), asyncio.Event()

    class SlowSink(MemorySink):
        async def write(self, records: Sequence[Outgoing]) -> list[Position]:
            writing.set()
            await released.wait()
            return await super().write(records)

    gateway = Gateway(Settings(http="127.0.0.1:0"), SlowSink(log), dict)
    await gateway.start()
    async with httpx.AsyncClient(base_url=f"http://{gateway.address}", trust_env=False) as client:
        request = asyncio.create_task(client.post("/events/orders", json={}))
        await writing.wait()
        closing = asyncio.create_task(gateway.close())
        released.set()
        assert (await request).status_code == 202
        await closing


async def test_a_port_that_is_taken_is_an_error_that_says_so() -> None:
    first = Gateway(Settings(http="127.0.0.1:0"), MemoryBroker().sink(), dict)
    await first.start()
    second = Gateway(Settings(http=first.address), MemoryBroker().sink(), dict)
    with pytest.raises(SettingsError, match="cannot listen there"):
        await second.start()
    await second.close()
    await first.close()


async def test_an_engine_that_cannot_listen_says_so_and_disturbs_no_other_one() -> None:
    broker = MemoryBroker()
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Settings(http=f"127.0.0.1:{other.getsockname()[1]}")
        app = App(settings, {}, broker, InlineExecutor())
        with pytest.raises(SettingsError, match=r"cannot listen there: Address already in use\. Free the port"):
            await app.run()
    # It has made no topic, so it has joined no group either and taken no partition from those that run.
    assert await broker.partitions(settings.states_topic) is None


async def test_an_event_inside_an_event_is_not_taken_for_the_one_it_is(http: httpx.AsyncClient, log: MemoryBroker) -> None:
    inner = {**STRUCTURED, "id": "smuggled"}
    outer = {**STRUCTURED, "datacontenttype": "application/cloudevents+json", "data": inner}
    answer = await http.post("/events/orders", headers={"content-type": "application/cloudevents+json"}, json=outer)
    assert (answer.status_code, answer.json()["error"]) == (400, "malformed-event")
    assert records(log) == []
