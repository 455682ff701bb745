"""What the scheduler answers to questions about our runs: is it the one that the asker knows, how busy it is, a run's keys.

Runs inside the scheduler, in its event loop; with the other rooms of the cluster the only importer of distributed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from distributed import Scheduler

from engine.dask_graph import DaskGraph
from engine.dask_runs import HeldRun
from engine.executor import HAS_COUNTS

#: Engine, scheduler and workers exchange pickled values of ours: they must be of one release.
VERSION = f"{version('kafka-dask-engine')} with Dask {version('distributed')}"
#: What engine.sharing asks.
KEYS = "engine_keys"
#: And what it says once it has futures for the answer.
WANT = "engine-want"


class Answers:
    """Takes the questions of engines, of who watches the cluster, and of who attaches to a run."""

    def __init__(self, scheduler: Scheduler, graph: DaskGraph, runs: Mapping[str, HeldRun]) -> None:
        self._scheduler, self._graph, self._runs = scheduler, graph, runs
        #: Tells an engine whether it talks to the scheduler it knows.
        self._token = os.urandom(8).hex()
        scheduler.handlers["engine_token"] = self.tell_token
        scheduler.handlers["engine_tasks"] = self.tell_tasks
        scheduler.handlers[KEYS] = self.tell_keys
        scheduler.stream_handlers[WANT] = self.want
        scheduler.set_metadata([HAS_COUNTS], value=True)

    async def tell_token(self) -> tuple[str, str, int]:
        """Answers which life of the plugin this is, of which release, and how many threads the workers have."""
        return self._token, VERSION, self._scheduler.total_nthreads

    async def tell_tasks(self) -> dict[str, Any]:
        """Answers how many tasks wait for a worker, how many for others, and how many are with each worker."""
        known = self._scheduler
        waiting = sum(prefix.states["waiting"] for prefix in known.task_prefixes.values())
        waiting -= sum(held.promise is not None for held in self._runs.values())  # no task waits there, but a run
        processing = {address: len(worker.processing) for address, worker in known.workers.items()}
        return {"queued": len(known.queued) + len(known.unrunnable), "waiting": max(0, waiting), "processing": processing}

    async def tell_keys(self, run_id: str, client: str, app: str | None = None) -> dict[str, Any]:
        """Answers keys and final key of an open run, and notes that ``client`` wants them; nothing for other runs.

        In one step, because the run may end and its keys be gone by the time that the answer is read.
        """
        held = self._runs.get(run_id)
        if held is None or client not in self._scheduler.clients or app not in (None, held.slot[0]):
            return {}
        # A result that was lost, and that no task needs, would have to be made again for whoever looks.
        keys = [key for key in held.all_keys() if self._graph.has(key)]
        self._scheduler.client_desires_keys(keys, client)
        return {"keys": sorted(keys), "shared": held.shared if held.shared in keys else None}

    def want(self, client: str, keys: list[str]) -> None:
        """``client`` has futures of these keys by now: it is told what has become of them, also of those that are gone."""
        gone = [key for key in keys if key not in self._scheduler.tasks]
        self._scheduler.client_desires_keys([key for key in keys if key in self._scheduler.tasks], client)
        comm = self._scheduler.client_comms.get(client)
        if gone and comm is not None and not comm.closed():
            comm.send({"op": "cancelled-keys", "keys": gone})
