"""``pressure``: far more events at once than two workers can do, and what a quick flow on the same topic has of it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from engine.runs import run_id_of
from engine.states import type_of
from tests.benchmarks.meters import Meter, load
from tests.benchmarks.stack import engine_alone, stack
from tests.benchmarks.subjects import EngineSubject

#: One in a hundred of the events makes a slow run that is not packed.
_UNPACKED_PART = 100
_QUICK_EVERY_SECONDS = 0.5
_LINE_SECONDS = 10.0
_PARTS = ("engine", "scheduler", "workers")


class _Follower:
    """Counts runs and their ends on the state topic, and when those of the quick ones came."""

    def __init__(self) -> None:
        self.taken_in = 0
        self.done = 0
        self.not_completed = 0
        self.takeovers = 0
        self.sent_at: dict[bytes, float] = {}
        #: Of the quick runs that have ended since the last line.
        self.waits: list[float] = []

    def hear(self, ce_type: bytes, key: bytes | None, at: float) -> None:
        if ce_type == b"engine.ownership":
            self.takeovers += 1
        elif ce_type == b"engine.flow_run.scheduled":
            self.taken_in += (key or b"") not in self.sent_at
        elif ce_type.startswith(b"engine.flow_run.") and ce_type.rpartition(b".")[2] in (b"completed", b"failed", b"crashed"):
            sent_at = self.sent_at.pop(key or b"", None)
            if sent_at is None:
                self.done += 1
            else:
                self.waits.append(at - sent_at)
            self.not_completed += not ce_type.endswith(b"completed")

    def quick(self) -> str:
        if len(self.waits) < 2:
            return "-"
        waits, self.waits = self.waits, []
        return f"{statistics.median(waits) * 1e3:.0f} / {max(waits) * 1e3:.0f} ms ({len(waits)})"


async def pressure(events: int) -> None:
    """A line every ten seconds: what is taken in and done, memory, and of quick runs since the last line what they took."""
    async with stack(packed=True) as running, engine_alone(running) as engine:
        await engine.run("one", 21, 50)  # makes the connections
        source = running.broker.source([running.settings.states_topic], group=None, from_latest=True)
        await source.start()
        follower = _Follower()

        async def follow() -> None:
            while True:
                for record in await source.poll(timeout_seconds=0.2, max_records=5_000):
                    follower.hear(type_of(record.headers) or b"", record.key, record.timestamp_ms / 1e3)

        following = asyncio.create_task(follow())
        kinds = ["slow" if n % _UNPACKED_PART == 0 else "sluggish" for n in range(events)]
        prepared = engine.sender.prepare([engine.event(kind, 21)[1] for kind in kinds])
        meter = Meter(running.pids)
        unpacked = kinds.count("slow")
        print(f"\n{events:,} events at once: {events - unpacked:,} packed runs of 1.5 ms, {unpacked:,} unpacked ones of 50 ms")
        print(
            f"{'seconds':>8} {'taken in':>9} {'done':>9}  RSS, MiB: "
            + "".join(f"{part:>10}" for part in _PARTS)
            + "   quick p50 / most (runs since the last line)"
        )
        rebalances = _rebalances(running.directory)
        began = time.time()
        await engine.sender.send(prepared)
        most = dict.fromkeys(_PARTS, 0.0)
        quick = asyncio.create_task(_send_quick(engine, follower, running.settings.app))
        said_at = 0.0
        while follower.done < events:
            await asyncio.sleep(_QUICK_EVERY_SECONDS)
            sizes = {part: meter.rss_mib(part) for part in _PARTS}
            most = {part: max(most[part], size) for part, size in sizes.items()}
            if time.time() - said_at >= _LINE_SECONDS:
                said_at = time.time()
                _say(said_at - began, follower, sizes)
        quick.cancel()
        _say(time.time() - began, follower, most)
        print(f"the last line has the most memory of each; {events / (time.time() - began):.0f} runs/s; load {load()}")
        print(
            f"runs that did not complete: {follower.not_completed}; partitions that changed hands: {follower.takeovers}; "
            f"rebalances, by group: {dict(_rebalances(running.directory) - rebalances)}",
            flush=True,
        )
        following.cancel()
        await asyncio.gather(following, quick, return_exceptions=True)
        await source.close()


async def _send_quick(engine: EngineSubject, follower: _Follower, app: str) -> None:
    while True:
        event_id, record = engine.event("one", 21)
        follower.sent_at[run_id_of(app, "one", "/bench", event_id).encode()] = time.time()
        await engine.sender.send_one(record)
        await asyncio.sleep(_QUICK_EVERY_SECONDS)


def _rebalances(directory: Path) -> Counter[str]:
    """How often the members of each group of this broker have been told to join again: its log says so every time."""
    lines = (directory / "stack" / "kafka" / "kafka.log").read_text(errors="replace").splitlines()
    return Counter(line.partition("rebalance group ")[2].split()[0] for line in lines if "Preparing to rebalance group" in line)


def _say(seconds: float, follower: _Follower, sizes: Mapping[str, float]) -> None:
    figures = "".join(f"{size:>10.1f}" for size in sizes.values())
    print(f"{seconds:>8.1f} {follower.taken_in:>9,} {follower.done:>9,}            {figures}   {follower.quick()}", flush=True)
