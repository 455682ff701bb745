"""``profile``: where the engine's own CPU goes, by function and by module."""

from __future__ import annotations

import asyncio
import os
import pstats
import signal
from collections import defaultdict
from pathlib import Path

from tests.benchmarks.meters import per_run
from tests.benchmarks.stack import engine_alone, stack

_TOP = 25
_ROUND = 1_000

#: A function by module and name, and its own seconds.
Costs = dict[tuple[str, str], float]


async def profile(runs: int, *, packed: bool) -> None:
    """Warm up; measure without the profiler, what it costs really; then profile ``runs`` runs."""
    kind = "packed" if packed else "one"
    async with stack(packed=packed, profiled=True) as running, engine_alone(running) as engine:
        for _ in range(2):
            await engine.run(kind, 21, _ROUND)
        plain = await engine.run(kind, 21, runs)
        os.kill(running.pids["engine"], signal.SIGUSR1)
        slowed = await engine.run(kind, 21, runs)
        os.kill(running.pids["engine"], signal.SIGUSR2)
        file = running.directory / "profile"
        async with asyncio.timeout(30):
            while not os.path.exists(file):  # noqa: ASYNC110, ASYNC240, PTH110  # another process writes it
                await asyncio.sleep(0.05)
        costs = _costs(file)
    total = sum(costs.values())
    parts = ("engine", "scheduler", "workers", "kafka", "client")
    print(f"\nprofile of the engine's main thread, {runs:,} {'packed ' if packed else ''}one-task runs")
    print(f"  not profiled: {plain.rate:.1f} runs/s; CPU, ms a run: {per_run(plain.cpu, runs, parts)}")
    print(f"  profiled:     {slowed.rate:.1f} runs/s; CPU, ms a run: {per_run(slowed.cpu, runs, parts)}")
    print(f"  own time seen by the profiler: {total / runs * 1e3:.3f} ms a run; shares are of that, not of real CPU")
    _show(costs, total, runs)


def _costs(file: Path) -> Costs:
    stats = pstats.Stats(str(file))
    costs: Costs = defaultdict(float)
    for (path, line, name), (_, _, own_seconds, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        where, what = _place(path, line, name)
        costs[where, what] += own_seconds
    return costs


def _place(path: str, line: int, name: str) -> tuple[str, str]:
    """Module and function; built-in functions count as one module by the words that Python has for them."""
    if path == "~":
        return "(built in)", name.strip("<>")
    parts = Path(path).with_suffix("").parts
    for root in ("site-packages", "python3.11", "benchmarks"):
        if root in parts:
            return ".".join(parts[len(parts) - parts[::-1].index(root) :]), f"{name}:{line}"
    return ".".join(parts[-2:]), f"{name}:{line}"


def _show(costs: Costs, total: float, runs: int) -> None:
    modules: dict[str, float] = defaultdict(float)
    for (module, _), seconds in costs.items():
        modules[module] += seconds
    top = sorted(costs.items(), key=lambda item: -item[1])[:_TOP]
    named = {module for (module, _), _ in top}
    print(f"  {'share':>6} {'µs a run':>9}   the {_TOP} dearest functions by own time, under their modules")
    for module in sorted(named, key=lambda name: -modules[name]):
        print(f"  {_share(modules[module], total, runs)}   {module}")
        for (where, what), seconds in top:
            if where == module:
                print(f"  {_share(seconds, total, runs)}       {what}")
    others = sorted(((module, seconds) for module, seconds in modules.items() if module not in named), key=lambda m: -m[1])
    print("  the next modules: " + ", ".join(f"{module} {seconds / total:.1%}" for module, seconds in others[:12]), flush=True)


def _share(seconds: float, total: float, runs: int) -> str:
    return f"{seconds / total:>6.1%} {seconds / runs * 1e6:>9.1f}"
