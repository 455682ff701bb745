"""Observers of a trial: a producer that knows what was acknowledged, a reader of topics, and one who looks at offsets.

They use Kafka's client alone, nothing of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Collection, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tests.chaos.histories import Committed, Logged, Sent

#: What a broker that is killed, paused or away makes of a request.
TROUBLE = (KafkaError, OSError, TimeoutError, asyncio.TimeoutError)
_REQUEST_SECONDS = 6.0
_STOP_SECONDS = 2.0


class Producer:
    """Sends events, again and again until Kafka has them."""

    def __init__(self, kafka: str, app: str) -> None:
        self._kafka = kafka
        self._app = app
        self._producer: Any = None
        self.sent: list[Sent] = []

    async def send(self, name: str, id: str, data: dict[str, Any], flows: Sequence[str], *, is_poison: bool = False) -> Sent:
        """Send an event to the topic of that name; every try is noted, and the last is the acknowledged one.

        What is sent again is the same, byte for byte.
        """
        trace_id = hashlib.blake2b(id.encode(), digest_size=16).hexdigest()
        value = b"{no JSON" if is_poison else json.dumps(data).encode()
        topic, source = f"{self._app}.{name}", f"/chaos/{self._app}"
        headers = [("ce_specversion", b"1.0"), ("ce_id", id.encode()), ("ce_source", source.encode()), ("ce_type", b"test")]
        headers += [("content-type", b"application/json"), ("traceparent", f"00-{trace_id}-{'1' * 16}-00".encode())]
        identity = {"flows": tuple(flows), "is_poison": is_poison, "trace_id": trace_id}
        while True:
            try:
                if self._producer is None:
                    self._producer = await self._connect()
                async with asyncio.timeout(_REQUEST_SECONDS):
                    place = await self._producer.send_and_wait(topic, value, headers=headers)
            except TROUBLE:
                # It may be there or not; both are right, and it is sent once more.
                self.sent.append(Sent(source, id, topic, at=time.time(), **identity))
                await self.close()
                await asyncio.sleep(0.2)
                continue
            sent = Sent(source, id, topic, place.partition, place.offset, at=time.time(), **identity)
            self.sent.append(sent)
            return sent

    async def close(self) -> None:
        """Disconnect; the next send connects anew."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)

    async def _connect(self) -> Any:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._kafka, acks="all", enable_idempotence=True, request_timeout_ms=3_000
        )
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                await producer.start()
        except BaseException:
            await _stop(producer)
            raise
        return producer


class Reader:
    """Reads topics from the beginning, again and again."""

    def __init__(self, kafka: str, topics: Collection[str]) -> None:
        self._kafka = kafka
        self._topics = sorted(topics)
        self._consumer: Any = None
        #: Everything, in the order in which it came.
        self.records: list[Logged] = []
        self._next: dict[TopicPartition, int] = {}

    async def read_on(self) -> None:
        """Read what has come since into ``records``. Raises one of TROUBLE; nothing is left out then."""
        try:
            if self._consumer is None:
                self._consumer = await self._connect()
            async with asyncio.timeout(_REQUEST_SECONDS * 3):
                ends = await self._consumer.end_offsets(list(self._next))
                while any(self._next[place] < end for place, end in ends.items()):
                    for place, records in (await self._consumer.getmany(timeout_ms=200)).items():
                        self.records += [_logged(record) for record in records]
                        self._next[place] = records[-1].offset + 1
        except TROUBLE:
            await self.close()
            raise

    async def read_all(self) -> list[Logged]:
        """Everything that lies there now, however often it takes."""
        while True:
            try:
                await self.read_on()
            except TROUBLE:
                continue  # where it was, goes on
            return self.records

    async def close(self) -> None:
        """Disconnect."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _stop(consumer)

    async def _connect(self) -> Any:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._kafka, enable_auto_commit=False, auto_offset_reset="earliest")
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                await consumer.start()
                # Asking for metadata of a topic by name is the only way to hear of it without subscribing.
                for topic in self._topics:
                    found = (await consumer._client._wait_on_metadata(topic)) or ()
                    for partition in found:
                        self._next.setdefault(TopicPartition(topic, partition), 0)
                consumer.assign(list(self._next))
                for place, offset in self._next.items():
                    consumer.seek(place, offset)
        except BaseException:
            await _stop(consumer)
            raise
        return consumer


class OffsetWatcher:
    """Looks at the groups' offsets, and after that where the topics end."""

    def __init__(self, kafka: str, app: str) -> None:
        self._kafka, self._app = kafka, app
        self.seen: list[Committed] = []

    async def run(self) -> None:
        """Until cancelled. What cannot be seen now is seen later: offsets never go back over it."""
        while True:
            try:
                await self._watch()
            except TROUBLE:
                await asyncio.sleep(0.5)

    async def _watch(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._kafka, request_timeout_ms=3_000)
        consumer = AIOKafkaConsumer(bootstrap_servers=self._kafka, enable_auto_commit=False)
        try:
            await admin.start()
            await consumer.start()
            while True:
                await self._look(admin, consumer)
                await asyncio.sleep(0.1)
        finally:
            with contextlib.suppress(*TROUBLE):
                await admin.close()
            await _stop(consumer)

    async def _look(self, admin: Any, consumer: Any) -> None:
        at, offsets = time.time(), {}
        for group in ("intake", "dispatch"):
            for place, told in (await admin.list_consumer_group_offsets(f"{self._app}.{group}")).items():
                offsets[f"{place.topic}/{place.partition}"] = told.offset
        # After that, so that what was committed then is judged by what lay there then, or a little later.
        ends: dict[str, dict[int, int]] = {}
        for name in ("states", "dead-letters"):
            topic = f"{self._app}.{name}"
            places = [TopicPartition(topic, partition) for partition in await consumer._client._wait_on_metadata(topic)]
            ends[name] = {place.partition: end for place, end in (await consumer.end_offsets(places)).items()}
        if not self.seen or self.seen[-1].offsets != offsets:
            self.seen.append(Committed(at, offsets, ends["states"], ends["dead-letters"]))


async def make_topics(kafka: str, names: Collection[str], partitions: int) -> None:
    """Make these topics."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
    finally:
        await admin.close()


async def _stop(client: Any) -> None:
    """Stop a producer or consumer, whose broker may be away, in a task of its own: it raises what it cancels in itself."""
    stopping = asyncio.ensure_future(client.stop())
    await asyncio.wait([stopping], timeout=_STOP_SECONDS)
    # Where that is cut short the producer's own task is left behind.
    sending = getattr(getattr(client, "_sender", None), "_sender_task", None)
    left = [task for task in (stopping, sending) if task is not None and not task.done()]
    for task in left:
        task.cancel()
    await asyncio.gather(stopping, *left, return_exceptions=True)


def _logged(record: Any) -> Logged:
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    value = None if record.value is None else record.value.decode("utf-8", "replace")
    return Logged(record.topic, record.partition, record.offset, record.timestamp / 1000, headers, value)
