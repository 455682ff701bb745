"""What processes cost: seconds of CPU and memory, of each part of the stack and of the client that measures."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

#: Not part of what is measured: the benchmark itself.
CLIENT = "client"


class Meter:
    """Reads the processes of one stack by name; the workers count as one."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes: dict[str, list[psutil.Process]] = {CLIENT: [psutil.Process(os.getpid())]}
        for name, pid in pids.items():
            part = "workers" if name.startswith("worker-") else name
            self._processes.setdefault(part, []).append(psutil.Process(pid))

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time since each process began."""
        found: dict[str, float] = {}
        for name, processes in self._processes.items():
            times = [process.cpu_times() for process in processes]
            found[name] = sum(time.user + time.system for time in times)
        return found

    def rss_mib(self, name: str) -> float:
        return sum(process.memory_info().rss for process in self._processes[name]) / 2**20


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was spent between two readings, by part."""
    return {name: after[name] - before[name] for name in before}


def per_run(cpu: Mapping[str, float], runs: int, parts: tuple[str, ...]) -> str:
    """Milliseconds of CPU a run, in words."""
    return ", ".join(f"{part} {cpu[part] / runs * 1e3:.2f}" for part in parts)


def load() -> str:
    """How much the machine has to do, all in all: what other processes want is noise in every figure."""
    return f"{os.getloadavg()[0]:.1f}"
