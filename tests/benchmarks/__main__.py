"""Benchmarks, as commands: ``python -m tests.benchmarks [throughput|latency|memory] [--rounds N] …``.

The engine and a hand-written loop run as processes of their own on the same Kafka and the same Dask workers, and take
turns, so that what else the machine does hits both. Nothing here is asserted: ratios of one run are what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from engine import logs
from engine.broker import Outgoing, Source, TopicSpec
from engine.devstack import DevStack
from engine.events import Event, to_headers
from engine.kafka import KafkaBroker
from engine.settings import Settings
from engine.stack_options import StackOptions
from engine.states import State, StateChange, read, type_of
from tests.benchmarks.loop import TOPIC_IN, TOPIC_OUT

APP = "bench"
ROOT = Path(__file__).resolve().parents[2]
ENGINE_TOPIC = "bench-engine"


class Subject:
    """One of the two that take turns: how to send it events and how to tell that it has done them."""

    def __init__(self, name: str, broker: KafkaBroker, out_topic: str) -> None:
        self.name = name
        self.sink = broker.sink()
        self.source: Source = broker.source([out_topic], group=None, from_latest=True)
        self._sent = 0

    async def open(self) -> None:
        await self.sink.start()
        await self.source.start()

    async def close(self) -> None:
        await self.source.close()
        await self.sink.close()

    def event(self, kind: str, number: int) -> tuple[str, Outgoing]:
        self._sent += 1
        event_id = f"{os.getpid()}-{self._sent}"
        if self.name == "loop":
            kind = "timed" if kind == "latency" else kind
            return event_id, Outgoing(TOPIC_IN, None, json.dumps({"id": event_id, "type": kind, "number": number}).encode())
        kind = "one" if kind == "latency" else kind
        headers = to_headers(Event(id=event_id, source="/bench", type=kind, data=None))
        return event_id, Outgoing(ENGINE_TOPIC, None, json.dumps({"number": number}).encode(), headers)

    async def run(self, kind: str, number: int, count: int) -> float:
        """Seconds from sending ``count`` events to the end of the last one."""
        began = time.perf_counter()
        for start in range(0, count, 500):
            await self.sink.write([self.event(kind, number)[1] for _ in range(min(500, count - start))])
        ended = 0
        while ended < count:
            records = await self.source.poll(timeout_seconds=1.0, max_records=10_000)
            if self.name == "loop":
                ended += len(records)
            else:
                for ce_type in (type_of(record.headers) for record in records):
                    if ce_type in (b"engine.flow_run.failed", b"engine.flow_run.crashed"):
                        raise SystemExit("a run has failed: this would measure errors, not work")
                    ended += ce_type == b"engine.flow_run.completed"
        return time.perf_counter() - began

    async def latencies(self, per_second: float, count: int) -> list[float]:
        """Seconds from sending an event to the start of its first task, events evenly spaced."""
        sent: dict[str, float] = {}
        runs: dict[str, str] = {}
        found: list[float] = []
        next_at = time.perf_counter()
        while len(found) < count:
            now = time.perf_counter()
            if len(sent) < count and now >= next_at:
                event_id, record = self.event("latency", 1)
                sent[event_id] = time.time()
                await self.sink.write([record])
                next_at += 1 / per_second
            for record in await self.source.poll(timeout_seconds=0.005, max_records=1_000):
                if self.name == "loop":
                    result = json.loads(record.value or b"")
                    found.append(result["result"] - sent[result["id"]])
                    continue
                change = read(record.value, record.headers)
                if not isinstance(change, StateChange):
                    continue
                if change.event is not None:
                    runs[change.run_id] = change.event.id
                elif change.task and change.state is State.RUNNING and runs[change.run_id] in sent:
                    found.append(change.at.timestamp() - sent[runs[change.run_id]])
        return found


@contextlib.asynccontextmanager
async def stack(engine_environment: dict[str, str]) -> AsyncIterator[tuple[DevStack, KafkaBroker]]:
    """Kafka, Dask workers and the engine as ``engine dev`` starts them."""
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as directory:
        command = (sys.executable, "-m", "engine", "run", str(ROOT / "tests/benchmarks/flows.py"), "--app", APP)
        options = StackOptions(
            app=APP,
            directory=Path(directory),
            engine=command,
            http="127.0.0.1:0",
            workers=2,
            import_paths=(ROOT / "tests", ROOT),
            environment=engine_environment,
            fresh=True,
        )
        async with DevStack(options, lambda line: print(f"  {line}", file=sys.stderr)) as running:
            yield running, KafkaBroker(Settings(app=APP, kafka=running.kafka))


@contextlib.asynccontextmanager
async def both(running: DevStack, broker: KafkaBroker) -> AsyncIterator[tuple[Subject, Subject]]:
    await broker.ensure_topics([TopicSpec(TOPIC_IN, 4), TopicSpec(TOPIC_OUT, 4)])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.benchmarks.loop", running.kafka, running.dask, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    engine, loop = Subject("engine", broker, f"{APP}.states"), Subject("loop", broker, TOPIC_OUT)
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        await engine.open()
        await loop.open()
        yield engine, loop
    finally:
        await engine.close()
        await loop.close()
        process.terminate()
        await process.wait()


async def throughput(kind: str, number: int, count: int, rounds: int) -> None:
    async with stack({}) as (running, broker), both(running, broker) as (engine, loop):
        rates: dict[str, list[float]] = {"engine": [], "loop": []}
        for round_number in range(rounds + 1):
            for subject in (engine, loop) if round_number % 2 else (loop, engine):
                seconds = await subject.run(kind, number, count)
                if round_number:  # the first one warms up
                    rates[subject.name].append(count / seconds)
        ratios = [a / b for a, b in zip(rates["engine"], rates["loop"], strict=True)]
        name = "one-task runs" if kind == "one" else f"{number}-wide maps"
        for subject_name, values in rates.items():
            print(f"{name}: {subject_name:6} {statistics.median(values):8.2f} runs/s (rounds: {_list(values)})")
        print(f"{name}: engine / loop = {statistics.median(ratios):.2f} (rounds: {_list(ratios)})")


async def latency(per_second: float, count: int, rounds: int) -> None:
    async with stack({}) as (running, broker), both(running, broker) as (engine, loop):
        found: dict[str, list[float]] = {"engine": [], "loop": []}
        for round_number in range(rounds + 1):
            for subject in (engine, loop):
                values = await subject.latencies(per_second, count)
                if round_number:
                    found[subject.name] += values
        for name, values in found.items():
            cuts = statistics.quantiles(values, n=100)
            print(
                f"event -> first task start at {per_second:g} runs/s: {name:6} "
                f"p50 {cuts[49] * 1e3:6.1f} ms   p99 {cuts[98] * 1e3:6.1f} ms   ({len(values)} events)"
            )


async def memory(count: int) -> None:
    async with stack({"ENGINE_DEDUP_WINDOW_SECONDS": "60"}) as (running, broker):
        engine = Subject("engine", broker, f"{APP}.states")
        await engine.open()
        step = max(1, count // 10)
        process = psutil.Process(running.pids["engine"])
        scheduler = psutil.Process(running.pids["scheduler"])
        print(f"runs        engine MiB   scheduler MiB   runs/s   ({step} runs a line, dedup window 60 s)")
        for done in range(step, count + 1, step):
            seconds = await engine.run("one", 21, step)
            sizes = [part.memory_info().rss / 2**20 for part in (process, scheduler)]
            print(f"{done:>7,} {sizes[0]:>12.1f} {sizes[1]:>14.1f} {step / seconds:>9.1f}", flush=True)
        await engine.close()


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["all", "throughput", "latency", "memory"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1_000, help="one-task runs a round")
    parser.add_argument("--maps", type=int, default=4, help="500-wide maps a round")
    parser.add_argument("--memory-runs", type=int, default=50_000)
    arguments = parser.parse_args()
    logs.configure(level="WARNING")
    if arguments.what in ("all", "throughput"):
        asyncio.run(throughput("one", 21, arguments.runs, arguments.rounds))
        asyncio.run(throughput("wide", 500, arguments.maps, arguments.rounds))
    if arguments.what in ("all", "latency"):
        asyncio.run(latency(20.0, 200, max(1, arguments.rounds // 2)))
    if arguments.what in ("all", "memory"):
        asyncio.run(memory(arguments.memory_runs))


if __name__ == "__main__":
    main()
