"""``restart``: how long an engine takes to be back, by how much has happened before; and what remembering ids costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil

from engine.broker import Partition, Source, TopicSpec
from engine.devstack import DevStack
from engine.kafka import KafkaBroker
from engine.seen import Seen
from engine.settings import Settings
from engine.stack_options import StackOptions
from engine.states import CHECKPOINT, type_of
from tests.benchmarks.histories import DAY_SECONDS, History
from tests.benchmarks.meters import load
from tests.benchmarks.stack import HERE, ROOT

_RECOVERED = b"going on with open runs"
_RUNNING = b"engine.flow_run.running"
#: The open runs sleep: none of them ends.
_WRONG = (b"engine.flow_run.failed", b"engine.flow_run.completed", b"engine.task_run.cancelled")
#: Without any answer for so long the engine has failed.
_PATIENCE_SECONDS = 600.0


class _Back(msgspec.Struct, frozen=True):
    """How an engine came back: seconds since its process was started."""

    ready: float
    #: The history of the last partition was read.
    recovered: float
    #: The first and the last of the runs that were scheduled while no engine was there, one a partition, had begun.
    first: float
    last: float
    cpu: float
    rss_mib: float


class _Case:
    """An app with its own topics, and how its engine starts and stops."""

    def __init__(self, name: str, kafka: str, dask: str, directory: Path) -> None:
        self.name = name
        self.settings = Settings(app=name, kafka=kafka, dask=dask)
        self.history = History(self.settings)
        self.broker = KafkaBroker(self.settings)
        self._directory = directory
        self._starts = 0

    async def fill(self, past: int, open_runs: int) -> None:
        limit = {"max.message.bytes": str(self.settings.max_record_bytes + 131_072)}
        await self.broker.ensure_topics([TopicSpec(self.settings.states_topic, self.settings.state_partitions, config=limit)])
        began = time.time()
        await self.history.write(self.broker, past, open_runs)
        _say(f"{self.name}: {self.history.records:,} records, {self.history.bytes / 1e6:,.0f} MB of values, {_since(began)}")

    async def start(self, *, until_checkpoints: bool = False) -> _Back:
        """Schedule a run in each partition, start an engine, wait until all have begun, stop the engine in order."""
        self._starts += 1
        source = self.broker.source([self.settings.states_topic], group=None, from_latest=True)
        await source.start()
        sink = self.broker.sink()
        await sink.start()
        try:
            waiting: set[str] = set()
            partitions: set[int] = set()
            number = 0
            while len(partitions) < self.settings.state_partitions:
                number += 1
                run_id, record = self.history.scheduled(f"late-{self._starts}-{number}", 3_600.0)
                if record.partition not in partitions:
                    partitions.add(record.partition or 0)
                    waiting.add(run_id)
                    await sink.write([record])
            async with self._engine() as (process, began, recovering):
                return await self._watch(source, process, began, recovering, waiting, until_checkpoints)
        finally:
            await sink.close()
            await source.close()

    async def _watch(
        self,
        source: Source,
        process: asyncio.subprocess.Process,
        began: float,
        recovering: asyncio.Task[tuple[float, float]],
        waiting: set[str],
        until_checkpoints: bool,
    ) -> _Back:
        begun: list[float] = []
        cpu = rss = 0.0
        measured = psutil.Process(process.pid)
        checkpointed: set[Partition] = set()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while waiting or (until_checkpoints and len(checkpointed) < self.settings.state_partitions):
                for record in await source.poll(timeout_seconds=0.2, max_records=1_000):
                    kind = type_of(record.headers)
                    if kind == _RUNNING and (run_id := (record.key or b"").decode()) in waiting:
                        waiting.remove(run_id)
                        begun.append(record.timestamp_ms / 1e3 - began)
                    elif kind in _WRONG:
                        raise SystemExit(f"a run has not gone on: {(record.value or b'').decode()}")
                    elif kind == CHECKPOINT.encode():
                        checkpointed.add((record.topic, record.partition))
                if not waiting and not cpu:
                    times = measured.cpu_times()
                    cpu, rss = times.user + times.system, measured.memory_info().rss / 2**20
            ready, recovered = await recovering
        return _Back(ready, recovered, min(begun), max(begun), cpu, rss)

    @contextlib.asynccontextmanager
    async def _engine(
        self,
    ) -> AsyncIterator[tuple[asyncio.subprocess.Process, float, asyncio.Task[tuple[float, float]]]]:
        settings = self.settings
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        where = ("--app", settings.app, "--kafka", settings.kafka, "--dask", settings.dask, "--http", "127.0.0.1:0")
        began = time.time()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "engine", "run", str(HERE / "flows_restart.py"), *where, "--log", "json"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._directory,
            env=environment,
        )
        recovering = asyncio.create_task(self._until_recovered(process, began))
        try:
            yield process, began, recovering
            process.send_signal(signal.SIGTERM)
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            recovering.cancel()
            await asyncio.gather(recovering, return_exceptions=True)

    async def _until_recovered(self, process: asyncio.subprocess.Process, began: float) -> tuple[float, float]:
        """When it said that it has started, and when it had read the history of its last partition."""
        assert process.stderr is not None
        ready = 0.0
        lines: list[bytes] = []
        times: list[float] = []
        async for line in process.stderr:
            lines.append(line)
            if b"engine started" in line:
                ready = time.time() - began
            if _RECOVERED in line:
                times.append(time.time() - began)
            if ready and len(times) >= self.settings.state_partitions:
                draining = asyncio.create_task(_drain(process.stderr))
                draining.add_done_callback(lambda task: task.cancelled() or task.exception())
                return ready, times[-1]
        raise SystemExit(f"the engine ended: {b''.join(lines[-5:]).decode()}")


async def restart(past: int, open_runs: int, rounds: int) -> None:
    """An engine with a long past and one with a short one, in turns."""
    _remembering(past)
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
        directory = Path(folder)
        options = StackOptions(app="bench", directory=directory / "stack", http="", workers=1, fresh=True, signals=False)
        async with DevStack(options, _say) as running:
            counts = {"long": past, "short": min(past, 10_000)}
            cases = {name: _Case(f"bench-{name}", running.kafka, running.dask, directory) for name in counts}
            for name, count in counts.items():
                await cases[name].fill(count, open_runs)
            print(f"\n{open_runs:,} open runs, all asleep, one for thirty days; seconds from the start of the process to …")
            print(
                f"{'past runs':>10} {'':22}{'ready':>8}{'recovered':>11}{'first':>8}{'last':>8}{'CPU':>8}{'RSS':>10}{'load':>7}"
            )
            for name, count in counts.items():
                _print(count, "no checkpoint", [await cases[name].start(until_checkpoints=True)])
            found: dict[str, list[_Back]] = {name: [] for name in counts}
            for number in range(rounds + 1):
                for name, count in counts.items() if number % 2 else reversed(counts.items()):
                    back = await cases[name].start()
                    if number:  # the first of each warms up
                        found[name].append(back)
                        _print(count, f"round {number}", [back])
            for name, count in counts.items():
                _print(count, "median", found[name])
            for case in cases.values():
                await case.broker.close()


def _remembering(count: int) -> None:
    """Bytes an id as they come over a day, in the end and where they are most, and seconds to add."""
    now = time.time()
    ids = [os.urandom(16) for _ in range(count)]
    seen = Seen(DAY_SECONDS)
    took = most = size = 0.0
    step = max(1, count // 100)
    for start in range(0, count, step):
        began = time.process_time()
        for number in range(start, min(start + step, count)):
            seen.add(ids[number], int(now + DAY_SECONDS * number / count))
        took += time.process_time() - began
        size = sum(sys.getsizeof(table) for one in seen._generations.values() for table in one.tables) / len(seen)
        most = max(most, size if start >= count // 10 else 0.0)
    each = took / count * 1e6
    print(f"{count:,} ids of a day: {size:.1f} bytes an id, {most:.1f} at most, added in {each:.2f} µs of CPU each")


def _print(past: int, name: str, backs: list[_Back]) -> None:
    middle = [statistics.median(column) for column in zip(*(msgspec.structs.astuple(back) for back in backs), strict=True)]
    ready, recovered, first, last, cpu, rss = middle
    print(
        f"{past:>10,} {name:22}{ready:8.2f}{recovered:11.2f}{first:8.2f}{last:8.2f}{cpu:8.2f}{rss:6.0f} MiB{load():>7}",
        flush=True,
    )


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        pass


def _since(began: float) -> str:
    return f"{time.time() - began:.0f} s"


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
