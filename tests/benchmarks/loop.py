"""The loop one would write by hand: aiokafka in, ``client.submit``, aiokafka out. No states, no safety, no trace.

Run as a process of its own, like the engine: ``python -m tests.benchmarks.loop KAFKA DASK``. It writes one record an
event, also where it carries many events in one Dask task.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from distributed import Client

from tests.benchmarks.flows import add, timed, work

TOPIC_IN, TOPIC_OUT = "bench-loop", "bench-loop-out"
#: Events that the loop which packs carries in one Dask task.
PARCEL = 100


def work_all(numbers: list[int]) -> list[int]:
    return [work(number) for number in numbers]


async def main(kafka: str, dask: str) -> None:
    consumer = AIOKafkaConsumer(
        TOPIC_IN, bootstrap_servers=kafka, group_id="bench-loop", enable_auto_commit=False, auto_offset_reset="earliest"
    )
    producer = AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=True)
    await consumer.start()
    await producer.start()
    client = await Client(dask, asynchronous=True)
    running: set[asyncio.Task[None]] = set()

    def start(handling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(handling)
        running.add(task)
        task.add_done_callback(running.discard)

    async def handle(event: dict[str, Any]) -> None:
        number = event["number"]
        if event["type"] == "wide":
            result = await client.submit(sum, client.map(work, range(number), pure=False), pure=False)
        elif event["type"] == "three":
            parts = [client.submit(work, number, pure=False), client.submit(work, number, pure=False)]
            result = await client.submit(add, *parts, pure=False)
        elif event["type"] == "timed":
            result = await client.submit(timed, number, pure=False)
        else:
            result = await client.submit(work, number, pure=False)
        await producer.send_and_wait(TOPIC_OUT, json.dumps({"id": event["id"], "result": result}).encode())

    async def handle_parcel(events: list[dict[str, Any]]) -> None:
        results = await client.submit(work_all, [event["number"] for event in events], pure=False)
        sent = [
            await producer.send(TOPIC_OUT, json.dumps({"id": event["id"], "result": result}).encode())
            for event, result in zip(events, results, strict=True)
        ]
        await asyncio.gather(*sent)

    print("ready", flush=True)
    while True:
        parcel: list[dict[str, Any]] = []
        for records in (await consumer.getmany(timeout_ms=200, max_records=1_000)).values():
            for record in records:
                event = json.loads(record.value)
                if event["type"] == "parcel":
                    parcel.append(event)
                else:
                    start(handle(event))
        for begin in range(0, len(parcel), PARCEL):
            start(handle_parcel(parcel[begin : begin + PARCEL]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
