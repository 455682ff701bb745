"""``profile``: where the engine's own CPU goes, by function and by module."""

from __future__ import annotations

import asyncio
import json
import os
import pstats
import signal
from collections import defaultdict
from pathlib import Path

from tests.benchmarks.meters import per_run
from tests.benchmarks.stack import engine_alone, stack

_TOP = 25
_PARTS = ("engine", "scheduler", "workers", "kafka", "client")

#: A function by module and name, and its own time: seconds, or samples.
Costs = dict[tuple[str, str], float]


async def profile(runs: int, *, packed: bool, sampled: bool) -> None:
    """Warm up; measure without the profiler, what it costs really; then profile as many runs again."""
    kind, how = "packed" if packed else "one", "samples" if sampled else "calls"
    async with stack(packed=packed, profiled=how) as running, engine_alone(running) as engine:
        for _ in range(2):
            await engine.run(kind, 21, min(runs, 2_000))
        plain = await engine.run(kind, 21, runs)
        os.kill(running.pids["engine"], signal.SIGUSR1)
        slowed = await engine.run(kind, 21, runs)
        os.kill(running.pids["engine"], signal.SIGUSR2)
        file = running.directory / "profile"
        async with asyncio.timeout(30):
            while not os.path.exists(file):  # noqa: ASYNC110, ASYNC240, PTH110  # another process writes it
                await asyncio.sleep(0.05)
        costs = _samples(file) if sampled else _calls(file)
    total, cpu_ms = sum(costs.values()), plain.cpu["engine"] / runs * 1e3
    print(f"\nprofile ({how}) of the engine's main thread, {runs:,} {'packed ' if packed else ''}one-task runs")
    print(f"  not profiled: {plain.rate:.1f} runs/s; CPU, ms a run: {per_run(plain.cpu, runs, _PARTS)}")
    print(f"  profiled:     {slowed.rate:.1f} runs/s; CPU, ms a run: {per_run(slowed.cpu, runs, _PARTS)}")
    seen = f"{total:.0f} samples" if sampled else f"{total / runs * 1e3:.3f} ms a run"
    print(f"  seen by the profiler: {seen}; µs a run are the share of {cpu_ms:.3f} ms, the cost without profiler")
    _show(costs, total, cpu_ms * 1e3)


def _calls(file: Path) -> Costs:
    costs: Costs = defaultdict(float)
    stats = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    for (path, line, name), (_, _, own_seconds, _, _) in stats.items():
        costs[_place(path, line, name)] += own_seconds
    return costs


def _samples(file: Path) -> Costs:
    costs: Costs = defaultdict(float)
    for path, line, name, count in json.loads(file.read_bytes()):
        costs[_place(path, line, name)] += count
    return costs


def _place(path: str, line: int, name: str) -> tuple[str, str]:
    """Module and function; what is built in counts as one module, by the words that Python has for it."""
    if path == "~":
        return "(built in)", name.strip("<>")
    parts = Path(path).with_suffix("").parts
    for root in ("site-packages", "python3.11", "benchmarks"):
        if root in parts:
            return ".".join(parts[len(parts) - parts[::-1].index(root) :]), f"{name}:{line}"
    return ".".join(parts[-2:]), f"{name}:{line}"


def _show(costs: Costs, total: float, run_us: float) -> None:
    modules: dict[str, float] = defaultdict(float)
    for (module, _), cost in costs.items():
        modules[module] += cost
    top = sorted(costs.items(), key=lambda item: -item[1])[:_TOP]
    named = {module for (module, _), _ in top}
    print(f"  {'share':>6} {'µs a run':>9}   the {_TOP} dearest functions by own time, under their modules")
    for module in sorted(named, key=lambda name: -modules[name]):
        print(f"  {_share(modules[module] / total, run_us)}   {module}")
        for (where, what), cost in top:
            if where == module:
                print(f"  {_share(cost / total, run_us)}       {what}")
    others = sorted(((module, cost) for module, cost in modules.items() if module not in named), key=lambda item: -item[1])
    print("  the next modules: " + ", ".join(f"{module} {cost / total:.1%}" for module, cost in others[:12]), flush=True)


def _share(share: float, run_us: float) -> str:
    return f"{share:>6.1%} {share * run_us:>9.1f}"
