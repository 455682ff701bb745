"""A real Dask under test: a scheduler and workers as processes, and a look into the scheduler."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from distributed import Scheduler

from engine.dask_clients import close_client, open_client
from engine.dask_processes import WORKER_PREFIX, DaskProcesses
from engine.executor import run_of
from engine.processes import ChildProcess, Children
from engine.scheduler import NAME

ROOT = Path(__file__).parents[2]


def child_environment(**more: str) -> dict[str, str]:
    """What a process of ours needs to import the engine and the sample flows."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ENGINE_", "OTEL_"))}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), **more}


class Dask:
    """A scheduler and workers; a worker that dies is started again."""

    def __init__(self, directory: Path, environment: Mapping[str, str], workers: int = 2, threads: int = 2) -> None:
        self.children = Children(directory / "logs", self._ended)
        self.processes = DaskProcesses(
            self.children,
            directory,
            environment,
            workers=workers,
            threads_per_worker=threads,
            worker_memory_limit="1GiB",
            scheduler_arguments=(),
            worker_arguments=(),
            start_seconds=60.0,
            grace_seconds=5.0,
        )
        self._restarts: set[asyncio.Task[None]] = set()
        self._is_killed = False
        #: Told of each process that ended by itself.
        self.on_end: Callable[[ChildProcess], object] = lambda child: None

    @property
    def address(self) -> str:
        return self.processes.address

    async def start(self) -> None:
        self._is_killed = False
        await self.processes.start()

    async def kill(self) -> None:
        """All of it at once."""
        self._is_killed = True
        self.children.kill()
        await self.children.stop(self.children.names(), 0.0)

    def kill_worker(self) -> None:
        """One of them; it comes back."""
        child = self.children.get(self.processes.worker_names[0])
        assert child is not None
        child.kill()

    async def restarts(self) -> None:
        """Return when every worker that died is back."""
        while self._restarts:
            await asyncio.gather(*self._restarts)

    async def stop(self) -> None:
        await self.restarts()
        await self.processes.stop_workers()
        await self.processes.stop_scheduler()

    def _ended(self, child: ChildProcess) -> None:
        self.on_end(child)
        if child.name.startswith(WORKER_PREFIX) and not self._is_killed:
            restart = asyncio.get_running_loop().create_task(self.processes.start_workers([child.name]))
            self._restarts.add(restart)
            restart.add_done_callback(self._restarts.discard)


@asynccontextmanager
async def dask_of_ones_own(
    directory: Path, environment: Mapping[str, str], workers: int = 2, threads: int = 2
) -> AsyncIterator[Dask]:
    """Gives a Dask that this test may kill."""
    dask = Dask(directory, environment, workers, threads)
    try:
        await dask.start()
        yield dask
    finally:
        await dask.stop()


class SharedDask:
    """A Dask that outlives the loop of a single test: it is watched from a thread with a loop of its own."""

    def __init__(self, directory: Path, environment: Mapping[str, str], workers: int = 2, threads: int = 2) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dask-under-test")
        self._thread.start()
        self._dask = Dask(directory, environment, workers, threads)
        try:
            self._do(self._dask.start())
        except BaseException:
            self.stop()
            raise
        self.address = self._dask.address

    def kill(self) -> None:
        """All of it at once."""
        self._do(self._dask.kill())

    def start(self) -> None:
        """Start what was killed, where it was."""
        self._do(self._dask.start())

    def stop(self) -> None:
        try:
            self._do(self._dask.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(90)


async def scheduler_holds(address: str) -> dict[str, list[str]]:
    """What is on the scheduler, seen by a client that wants nothing itself."""
    client = await open_client(address)
    try:
        found: dict[str, list[str]] = await client.run_on_scheduler(_look)
    finally:
        await close_client(client)
    found["clients"].remove(client.id)
    return found


def _look(dask_scheduler: Scheduler) -> dict[str, list[str]]:
    wanted = {client: state.wants_what for client, state in dask_scheduler.clients.items()}
    attached = {run_of(str(task.key)) for client, tasks in wanted.items() if client.startswith("Client") for task in tasks}
    plugin = dask_scheduler.plugins[NAME]
    queues = dask_scheduler.extensions["queues"]
    return {
        "tasks": [str(key) for key in dask_scheduler.tasks],
        "clients": [client for client in wanted if client != "fire-and-forget"],
        "variables": list(dask_scheduler.extensions["variables"].variables),
        "queues": [*queues.queues, *queues.client_refcount, *(f"{name} {key}" for name, key in queues.future_refcount)],
        "runs": [*plugin._runs, *plugin._finals._kept],
        "packed": list(plugin._parcels._runs),
        "awaited": list(plugin._waits),
        # Runs whose futures somebody's client has.
        "attached": sorted(run_id for run_id in attached if run_id),
    }
