"""Asks a Dask scheduler how its workers and its queue are, over a connection of its own; changes nothing there.

With the other rooms of the cluster the only importer of distributed. It is no client, of which the scheduler would keep lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.core import rpc
from distributed.security import Security

from engine.errors import DaskUnavailable
from engine.executor import HAS_COUNTS
from engine.vital_signs import DaskVital, Worker


class DaskProbe:
    """A connection to one scheduler, made when it is first used and again after trouble."""

    def __init__(self, address: str, connect_seconds: float) -> None:
        self._address, self._connect_seconds = address, connect_seconds
        self._rpc: Any = None

    async def ask(self) -> DaskVital:
        """How it is. Raises DaskUnavailable; cancelled half-way it is as good as new."""
        if self._rpc is None:
            arguments = Security().get_connection_args("client")
            self._rpc = rpc(self._address, deserialize=False, timeout=self._connect_seconds, connection_args=arguments)
        try:
            identity = await self._rpc.identity()
            # Asked of a scheduler that no engine has connected to yet, it would write a traceback into its log.
            has_counts = await self._rpc.get_metadata(keys=[HAS_COUNTS], default=False)
            return _vital(self._address, identity, await self._rpc.engine_tasks() if has_counts else {})
        except BaseException as error:  # no event hangs on it: a page or a scrape says that Dask did not answer
            # An answer that still comes belongs to nobody: the next question has a connection of its own.
            await self.close()
            if isinstance(error, Exception):
                raise DaskUnavailable(self._address, str(error) or type(error).__name__) from error
            raise

    async def close(self) -> None:
        """Free everything."""
        found, self._rpc = self._rpc, None
        if found is not None:
            await found.close_rpc()


def _vital(address: str, identity: Mapping[str, Any], counts: Mapping[str, Any]) -> DaskVital:
    processing: Mapping[str, int] = counts.get("processing", {})
    workers = tuple(_worker(place, known, processing.get(place)) for place, known in identity["workers"].items())
    return DaskVital(
        address=address,
        started_at=identity["started"],
        threads=sum(worker.threads for worker in workers),
        workers=workers,
        tasks_queued=counts.get("queued"),
        tasks_waiting=counts.get("waiting"),
        tasks_processing=sum(processing.values()) if counts else None,
    )


def _worker(address: str, known: Mapping[str, Any], processing: int | None) -> Worker:
    # Before its first heartbeat there are no metrics.
    metrics: Mapping[str, Any] = known.get("metrics") or {}
    tasks: Mapping[str, int] = metrics.get("task_counts") or {}
    executing = tasks.get("executing", 0) + tasks.get("long-running", 0)
    spilled = metrics.get("spilled_bytes") or {}
    return Worker(
        address=address,
        name=str(known.get("name", "")),
        status=str(known.get("status", "")),
        threads=known.get("nthreads", 0),
        memory_bytes=metrics.get("memory", 0),
        memory_limit_bytes=known.get("memory_limit") or 0,
        managed_bytes=metrics.get("managed_bytes", 0),
        spilled_bytes=spilled.get("disk", 0) if isinstance(spilled, dict) else 0,
        executing=executing,
        # The scheduler's own count is newer than the heartbeat.
        queued=tasks.get("ready", 0) if processing is None else max(0, processing - executing),
        cpu=metrics.get("cpu", 0.0),
        last_seen_at=known.get("last_seen", 0.0),
    )
