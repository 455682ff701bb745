"""Kafka, Dask workers, the engine and the loop, as processes that end with the benchmark."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.broker import TopicSpec
from engine.devstack import DevStack
from engine.kafka import KafkaBroker
from engine.settings import Settings
from engine.stack_options import StackOptions
from tests.benchmarks.ends import APPEND_TIME
from tests.benchmarks.flows import TOPIC
from tests.benchmarks.loop import TOPIC_IN, TOPIC_OUT
from tests.benchmarks.meters import Meter
from tests.benchmarks.sending import PARTITIONS
from tests.benchmarks.subjects import EngineSubject, LoopSubject

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WORKERS = 2


class Stack(msgspec.Struct, frozen=True):
    """What runs."""

    kafka: str
    dask: str
    broker: KafkaBroker
    settings: Settings
    pids: dict[str, int]
    directory: Path


@contextlib.asynccontextmanager
async def stack(
    *, packed: bool = False, profiled: str = "", environment: Mapping[str, str] | None = None
) -> AsyncIterator[Stack]:
    """The stack as ``engine dev`` starts it: two workers of two threads, one engine.

    ``packed`` gives the engine the packed flow, too; ``profiled`` starts it under tests.benchmarks.profiled, which says
    what it may be.
    """
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
        directory = Path(folder)
        # Without signals: Ctrl-C ends the benchmark, which ends the stack.
        ours: dict[str, Any] = {
            "import_paths": (ROOT / "tests", ROOT),
            "environment": dict(environment or {}),
            "signals": False,
        }
        outer = StackOptions(app="bench", directory=directory / "stack", http="", workers=WORKERS, fresh=True, **ours)
        async with DevStack(outer, _say) as running:
            settings = Settings(app="bench", kafka=running.kafka, dask=running.dask)
            broker = KafkaBroker(settings)
            # Before the engine, which leaves topics alone that are there: we want the broker's stamps.
            await broker.ensure_topics(_topics(settings))
            handlers = [HERE / "flows.py", *([HERE / "flows_packed.py"] if packed else [])]
            program = ["tests.benchmarks.profiled", profiled, str(directory / "profile")] if profiled else ["engine"]
            command = [sys.executable, "-m", *program, "run", *map(str, handlers), "--app", "bench", "--log", "json"]
            inner = StackOptions(
                app="bench",
                directory=directory / "engine",
                kafka=running.kafka,
                dask=running.dask,
                engine=tuple(command),
                http="127.0.0.1:0",
                **ours,
            )
            async with DevStack(inner, _say) as engine:
                pids = running.pids | engine.pids
                yield Stack(running.kafka, running.dask, broker, settings, pids, directory)


@contextlib.asynccontextmanager
async def engine_alone(running: Stack) -> AsyncIterator[EngineSubject]:
    """The engine as the only subject."""
    subject = EngineSubject(running.broker, running.kafka, running.settings.states_topic, Meter(running.pids))
    await subject.open()
    try:
        yield subject
    finally:
        await subject.close()


@contextlib.asynccontextmanager
async def both(running: Stack) -> AsyncIterator[tuple[EngineSubject, LoopSubject]]:
    """The engine and the loop, on the same Kafka and the same workers; who does not have the turn sleeps."""
    command = (sys.executable, "-m", "tests.benchmarks.loop", running.kafka, running.dask)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        meter = Meter(running.pids | {"loop": process.pid})
        loop = LoopSubject(running.broker, running.kafka, meter)
        engine = EngineSubject(running.broker, running.kafka, running.settings.states_topic, meter)
        for subject in (loop, engine):
            await subject.open()
        try:
            yield engine, loop
        finally:
            for subject in (loop, engine):
                await subject.close()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _topics(settings: Settings) -> list[TopicSpec]:
    limit = {"max.message.bytes": str(settings.max_record_bytes + 131_072)}
    return [
        TopicSpec(settings.states_topic, settings.state_partitions, config=APPEND_TIME | limit),
        TopicSpec(TOPIC, PARTITIONS),
        TopicSpec(TOPIC_IN, PARTITIONS),
        TopicSpec(TOPIC_OUT, PARTITIONS, config=APPEND_TIME),
    ]


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
