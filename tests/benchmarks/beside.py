"""``beside``: whether the engine is slower, or dearer, while a projector fills a history from its topics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil

from engine.errors import EngineError
from engine.history import History
from tests.benchmarks.meters import load
from tests.benchmarks.stack import ROOT, Stack, engine_alone, stack
from tests.benchmarks.subjects import Round

_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 120.0


async def beside(runs: int, rounds: int, *, packed: bool, free_core: bool = False) -> None:
    """Rounds in turns: while the projector sleeps, and while it works; before each round it has caught up.

    With ``free_core`` the projector has the machine's last core to itself, and everything else the others.
    """
    kind = "packed" if packed else "one"
    async with stack(packed=packed) as running, engine_alone(running) as engine, _projector(running) as (projector, path):
        if free_core:
            *cores, last = sorted(os.sched_getaffinity(0))
            _pin([os.getpid(), *running.pids.values()], cores)
            _pin([projector.pid], [last])
        found: dict[bool, list[Round]] = {False: [], True: []}
        seconds = 0.0
        for number in range(rounds + 1):
            for works in (False, True) if number % 2 else (True, False):
                if not works:
                    projector.send_signal(signal.SIGSTOP)
                before = projector.cpu_times()
                result = await engine.run(kind, 21, runs)
                projector.send_signal(signal.SIGCONT)
                await _caught_up(running, path)
                if number:  # the first one warms up
                    found[works].append(result)
                    after = projector.cpu_times()
                    seconds += after.user + after.system - before.user - before.system
        print(f"\n{kind} runs, {runs} a round, {rounds} rounds in turns; load of the machine {load()}:")
        print(f"  engine alone: {_median([one.rate for one in found[False]])} runs/s")
        print(f"  with a projector beside it: {_median([one.rate for one in found[True]])} runs/s")
        pairs = list(zip(found[True], found[False], strict=True))
        print(f"  ratio: {_median([beside.rate / alone.rate for beside, alone in pairs])}")
        costs = [(beside.cpu["engine"] / beside.count) / (alone.cpu["engine"] / alone.count) for beside, alone in pairs]
        print(f"  the same for CPU of the engine a run: {_median(costs)}")
        print(f"  CPU of the projector: {seconds / (2 * rounds * runs) * 1e6:.0f} µs a run", flush=True)


def _pin(pids: Sequence[int], cores: Sequence[int]) -> None:
    """Let these processes run on these cores only: each of their threads, and what those start."""
    for pid in pids:
        for thread in psutil.Process(pid).threads():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(thread.id, cores)


@contextlib.asynccontextmanager
async def _projector(running: Stack) -> AsyncIterator[tuple[psutil.Process, Path]]:
    path = running.directory / "history.db"
    flags = ("--history", str(path), "--app", running.settings.app, "--kafka", running.kafka, "--json")
    command = (sys.executable, "-m", "engine", "history", "run", *flags)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield psutil.Process(process.pid), path
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        await process.wait()


async def _caught_up(running: Stack, path: Path) -> None:
    """Wait until the history is as far as its topics are."""
    reader = running.broker.offset_reader()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    offsets: dict[tuple[str, int], int] = {}
    try:
        while True:
            ends = (await reader.read([], [running.settings.states_topic])).ends
            with contextlib.suppress(EngineError), History.open(str(path)) as history:
                offsets = history.offsets()
                if all(offsets.get(place, 0) >= end for place, end in ends.items()):
                    return
            if time.monotonic() > deadline:
                raise SystemExit(f"the projector does not catch up: {offsets} of {dict(ends)}")
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        await reader.close()


def _median(values: Sequence[float]) -> str:
    digits = 0 if statistics.median(values) > 20 else 2
    return f"{statistics.median(values):.{digits}f} (rounds: {' '.join(f'{value:.{digits}f}' for value in values)})"
