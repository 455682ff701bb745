"""A Dask of one's own: a scheduler and its workers as child processes, on loopback.

It learns of their state by a file and by HTTP, because ``engine.cluster`` alone imports distributed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from engine.processes import ChildProcess, Children
from engine.settings import NOT_FOR_WORKERS

SCHEDULER = "scheduler"
WORKER_PREFIX = "worker-"

#: What Dask's nanny would set for its worker: one thread of BLAS per thread of Dask, and memory given back early.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}

_ANSWER_SECONDS = 2.0
_LOOPBACK = "127.0.0.1"


class _SchedulerInfo(msgspec.Struct):
    """What a scheduler writes into its file."""

    address: str
    #: Its HTTP server is called dashboard with and without a dashboard.
    services: dict[str, int]


class _Counts(msgspec.Struct):
    workers: int


def default_workers() -> int:
    """One per core that this process may use, up to eight: more make a laptop no faster."""
    if sys.platform == "linux":
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


class DaskProcesses:
    """A scheduler and its workers, all children of one parent."""

    def __init__(
        self,
        children: Children,
        directory: Path,
        environment: Mapping[str, str],
        *,
        workers: int,
        threads_per_worker: int,
        worker_memory_limit: str,
        scheduler_arguments: tuple[str, ...],
        worker_arguments: tuple[str, ...],
        start_seconds: float,
        grace_seconds: float,
    ) -> None:
        self.worker_names = [f"{WORKER_PREFIX}{number}" for number in range(workers)]
        self._children = children
        self._directory = directory
        self._environment = {name: text for name, text in environment.items() if name not in NOT_FOR_WORKERS}
        self._threads = threads_per_worker
        self._memory_limit = worker_memory_limit
        self._scheduler_arguments = scheduler_arguments
        self._worker_arguments = worker_arguments
        self._start_seconds = start_seconds
        self._grace_seconds = grace_seconds
        self._info: _SchedulerInfo | None = None

    @property
    def address(self) -> str:
        """Of the scheduler; the same for as long as this object lives, once it has started."""
        return "" if self._info is None else self._info.address

    async def start(self) -> None:
        """Start the scheduler, then all workers; returns when they have found each other. Raises StackError."""
        file = self._directory / "scheduler.json"
        file.unlink(missing_ok=True)
        command = [
            *(sys.executable, "-m", "distributed.cli.dask_scheduler"),
            # Started again it takes the port of the first time, where its clients look for it.
            *("--host", _LOOPBACK, "--port", str(urlsplit(self.address).port or 0)),
            *("--no-dashboard", "--dashboard-address", f"{_LOOPBACK}:0"),
            *("--scheduler-file", str(file)),
            *self._scheduler_arguments,
        ]
        scheduler = await self._children.launch(SCHEDULER, command, self._environment)

        async def is_up() -> bool:
            info = _read(file)
            self._info = info or self._info
            return info is not None

        await scheduler.until(is_up, self._start_seconds)
        await self.start_workers(self.worker_names)

    async def start_workers(self, names: list[str]) -> None:
        """Start these, and return when the scheduler knows them. Raises StackError."""
        children = [await self._start_worker(name) for name in names]

        async def are_known() -> bool:
            if (ended := next((child for child in children if child.exit_code is not None), None)) is not None:
                # The last one watches over all; this one tells its own story.
                await ended.until(_never, self._start_seconds)
            return self._info is not None and await _count_workers(self._info) >= self._running_workers

        for child in children[-1:]:
            await child.until(are_known, self._start_seconds)

    @property
    def _running_workers(self) -> int:
        """Not those that have died meanwhile: they may be started again only when this start is over."""
        workers = map(self._children.get, self._children.names(WORKER_PREFIX))
        return sum(worker is not None and worker.exit_code is None for worker in workers)

    async def restart_workers(self) -> None:
        """Stop all workers, then start them: they import the handlers anew. Raises StackError."""
        await self.stop_workers()
        await self.start_workers(self.worker_names)

    async def stop_workers(self) -> None:
        """Stop all workers."""
        await self._children.stop(self._children.names(WORKER_PREFIX), self._grace_seconds)

    async def stop_scheduler(self) -> None:
        """Stop the scheduler; after the workers, which would complain about it otherwise."""
        await self._children.stop([SCHEDULER], self._grace_seconds)

    async def _start_worker(self, name: str) -> ChildProcess:
        command = [
            *(sys.executable, "-m", "distributed.cli.dask_worker", self.address),
            *("--host", _LOOPBACK, "--name", name, "--nthreads", str(self._threads)),
            # Without nanny: the parent starts a worker again, and half the processes do.
            *("--no-nanny", "--no-dashboard", "--dashboard-address", f"{_LOOPBACK}:0"),
            *("--memory-limit", self._memory_limit),
            *("--local-directory", str(self._directory / "dask")),
            *self._worker_arguments,
        ]
        return await self._children.launch(name, command, {**WORKER_ENVIRONMENT, **self._environment})


async def get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a small answer over plain HTTP; status 0 where nobody answers in time."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            finally:
                writer.close()
                await writer.wait_closed()
            return int(head.split(maxsplit=2)[1]), body
    except (OSError, TimeoutError, IndexError, ValueError):
        return 0, b""  # Not up, or not what was expected there: the caller asks again or gives up.


async def answers(address: str, path: str) -> bool:
    """Whether a GET to ``host:port`` is answered with 200; where no address is given, nothing has to."""
    host, _, port = address.rpartition(":")
    return not port or (await get(host.strip("[]"), int(port), path))[0] == 200


def _read(file: Path) -> _SchedulerInfo | None:
    """None until the scheduler has written its file, whole."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_SchedulerInfo)
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # Not yet: asked again.


async def _count_workers(info: _SchedulerInfo) -> int:
    # Not identity.json, which has the names: where workers are busy it fails, as their metrics have keys that are no text.
    status, body = await get(_LOOPBACK, info.services["dashboard"], "/json/counts.json")
    return msgspec.json.decode(body, type=_Counts).workers if status == 200 else 0


async def _never() -> bool:
    return False
