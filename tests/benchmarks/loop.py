"""The loop one would write by hand: aiokafka in, ``client.submit``, aiokafka out. No states, no safety, no trace.

Run as a process of its own, like the engine: ``python -m tests.benchmarks.loop KAFKA DASK``.
"""

from __future__ import annotations

import asyncio
import json
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from distributed import Client

from tests.benchmarks.flows import timed, work

TOPIC_IN, TOPIC_OUT = "bench-loop", "bench-loop-out"


async def main(kafka: str, dask: str) -> None:
    consumer = AIOKafkaConsumer(
        TOPIC_IN, bootstrap_servers=kafka, group_id="bench-loop", enable_auto_commit=False, auto_offset_reset="earliest"
    )
    producer = AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=True)
    await consumer.start()
    await producer.start()
    client = await Client(dask, asynchronous=True)
    running: set[asyncio.Task[None]] = set()

    async def handle(value: bytes) -> None:
        event = json.loads(value)
        number = event["number"]
        if event["type"] == "wide":
            result = await client.submit(sum, client.map(work, range(number), pure=False), pure=False)
        elif event["type"] == "timed":
            result = await client.submit(timed, number, pure=False)
        else:
            result = await client.submit(work, number, pure=False)
        await producer.send_and_wait(TOPIC_OUT, json.dumps({"id": event["id"], "result": result}).encode())

    print("ready", flush=True)
    while True:
        for records in (await consumer.getmany(timeout_ms=200, max_records=1_000)).values():
            for record in records:
                task = asyncio.create_task(handle(record.value))
                running.add(task)
                task.add_done_callback(running.discard)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
