"""``flat``: whether a run costs the same, in CPU and memory, after hundreds of thousands of runs as in the beginning."""

from __future__ import annotations

from tests.benchmarks.meters import Meter, load
from tests.benchmarks.stack import engine_alone, stack

#: Events sent at once: the backlog is part of the engine's memory, and must be the same on every line.
_ROUND = 1_000
_PARTS = ("engine", "scheduler", "workers", "kafka", "client")


async def flat(runs: int, *, packed: bool, dedup_window_seconds: float) -> None:
    """A line for 1,000, 2,000, 5,000, 10,000 … runs, of what happened since the line before."""
    environment = {"ENGINE_DEDUP_WINDOW_SECONDS": str(dedup_window_seconds)}
    kind = "packed" if packed else "one"
    async with stack(packed=packed, environment=environment) as running, engine_alone(running) as engine:
        meter = Meter(running.pids)
        await engine.run(kind, 21, 100)  # makes the connections
        print(f"\n{'packed ' if packed else ''}one-task runs, {_ROUND:,} at a time, dedup window {dedup_window_seconds:g} s")
        print(f"{'':10} {'':9} {'CPU, ms a run':^50} {'RSS, MiB':^20}")
        print(
            f"{'runs':>10} {'runs/s':>9} "
            + "".join(f"{part:>10}" for part in _PARTS)
            + f"{'engine':>10}{'scheduler':>10}{'load':>7}"
        )
        done = 0
        for goal in steps(runs):
            count = goal - done
            cpu = dict.fromkeys(_PARTS, 0.0)
            seconds = 0.0
            while done < goal:
                result = await engine.run(kind, 21, min(_ROUND, goal - done))
                done += result.count
                seconds += result.seconds
                for part in _PARTS:
                    cpu[part] += result.cpu[part]
            costs = "".join(f"{cpu[part] / count * 1e3:>10.3f}" for part in _PARTS)
            sizes = "".join(f"{meter.rss_mib(part):>10.1f}" for part in ("engine", "scheduler"))
            print(f"{done:>10,} {count / seconds:>9.1f} {costs}{sizes}{load():>7}", flush=True)


def steps(runs: int) -> list[int]:
    """1, 2 and 5 thousand, the same times ten, and so on, up to ``runs``, which is the last."""
    found = [factor * 10**power for power in range(3, 9) for factor in (1, 2, 5)]
    return [*[step for step in found if step < runs], runs]
