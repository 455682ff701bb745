"""``tracing``: what traces cost, by runs a second without any, with one event of a hundred traced, and with all of them.

Three engines on the same Kafka and the same workers take turns, each with topics of its own. Their spans go to a receiver
that only keeps them: what Jaeger would do with them is Jaeger's cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from engine.broker import TopicSpec
from engine.dask_processes import get
from engine.devstack import DevStack
from engine.kafka import KafkaBroker
from engine.settings import Settings
from engine.stack_options import StackOptions
from tests.benchmarks.ends import APPEND_TIME
from tests.benchmarks.meters import Meter
from tests.benchmarks.sending import PARTITIONS
from tests.benchmarks.stack import HERE, ROOT, WORKERS
from tests.benchmarks.subjects import EngineSubject
from tests.benchmarks.throughput import Side, contest

#: Spans of a run of one task: of the intake, six changes, the begin, the queueing, the attempt, the run.
_SPANS_A_RUN = 11
_RATIO = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}


async def tracing(runs: int, rounds: int) -> None:
    """Unpacked runs of one task."""
    async with _sink() as (port, pid):
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        engines = {"off": {}, "one of a hundred": endpoint | _RATIO, "all": endpoint}
        async with _subjects(engines, endpoint, pid) as subjects:
            sides = [Side(f"traced: {subject.name}", subject, "one", 21, runs) for subject in subjects]
            await contest("one-task runs", sides, rounds)
        # Engines and workers have stopped, and sent what they had.
        _, answer = await get("127.0.0.1", port, "/")
    print(
        f"  spans received: {int(answer):,}; of all events without the rest {_SPANS_A_RUN * runs * (rounds + 1):,}", flush=True
    )


@contextlib.asynccontextmanager
async def _subjects(
    engines: dict[str, dict[str, str]], endpoint: dict[str, str], receiver: int
) -> AsyncIterator[list[EngineSubject]]:
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
        directory = Path(folder)
        ours: dict[str, Any] = {"import_paths": (ROOT / "tests", ROOT), "signals": False}
        outer = StackOptions(
            app="bench", directory=directory / "stack", http="", workers=WORKERS, fresh=True, environment=endpoint, **ours
        )
        async with contextlib.AsyncExitStack() as stack:
            running = await stack.enter_async_context(DevStack(outer, _say))
            pids = {**running.pids, "receiver": receiver}
            made: list[tuple[str, Settings, KafkaBroker]] = []
            for number, (name, environment) in enumerate(engines.items()):
                settings = Settings(app=f"bench{number}", kafka=running.kafka, dask=running.dask)
                broker = KafkaBroker(settings)
                await broker.ensure_topics(_topics(settings))
                command = ("-m", "engine", "run", str(HERE / "flows_traced.py"), "--app", settings.app, "--log", "json")
                inner = StackOptions(
                    app=settings.app,
                    directory=directory / settings.app,
                    kafka=running.kafka,
                    dask=running.dask,
                    engine=(sys.executable, *command),
                    http="127.0.0.1:0",
                    environment={**environment, "BENCH_TOPIC": f"{settings.app}.events"},
                    **ours,
                )
                pids[name] = (await stack.enter_async_context(DevStack(inner, _say))).pids["engine"]
                made.append((name, settings, broker))
            meter = Meter(pids)
            subjects: list[EngineSubject] = []
            for name, settings, broker in made:
                subject = EngineSubject(
                    broker, running.kafka, settings.states_topic, meter, name=name, topic=f"{settings.app}.events"
                )
                await subject.open()
                stack.push_async_callback(subject.close)
                subjects.append(subject)
            yield subjects


@contextlib.asynccontextmanager
async def _sink() -> AsyncIterator[tuple[int, int]]:
    """Port and process of a receiver."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.otlp_sink"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield int(await process.stdout.readline()), process.pid
    finally:
        process.terminate()
        await process.wait()


def _topics(settings: Settings) -> list[TopicSpec]:
    limit = {"max.message.bytes": str(settings.max_record_bytes + 131_072)}
    return [
        TopicSpec(settings.states_topic, settings.state_partitions, config=APPEND_TIME | limit),
        TopicSpec(f"{settings.app}.events", PARTITIONS),
    ]


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
