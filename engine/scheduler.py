"""What runs inside Dask's scheduler: the plugin that holds runs, refuses stale owners and passes reports on.

With the other rooms of the cluster the only importer of distributed. Everything happens in the scheduler's event loop,
in the order in which messages of one stream arrive: own, hold, update-graph, forget, release.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from engine.attachments import DETACH, KEYS, Attachments
from engine.executor import Report, decode_reports, encode_reports, run_of
from engine.states import Failure, State

NAME = "engine"
#: What the scheduler says to an engine that is not the latest owner: [partition, its epoch, the latest epoch].
REFUSED = "engine-refused"
#: Engine, scheduler and workers exchange pickled values of ours: they must be of one release.
VERSION = version("kafka-dask-engine")
#: The pseudo-client in whose name the plugin holds keys, so that they outlive the engine that submitted them.
_HOLDER = "engine-runs"
#: Reports to an engine share a message for so long; the first after a pause goes at once.
_CLIENT_INTERVAL_SECONDS = 0.005


def variable_of(run_id: str) -> str:
    """Name of the distributed Variable that has a run's final future."""
    return f"run-{run_id}"


class SubmittedGraph:
    """A graph as the scheduler takes it off the wire; unlike dask's own expressions it is not hashed on the way."""

    def __init__(self, tasks: dict[str, Any]) -> None:
        self._tasks = tasks

    def __dask_graph__(self) -> dict[str, Any]:
        return self._tasks

    def __dask_annotations__(self) -> dict[str, Any]:
        return {}


class _Held:
    """A run whose keys the scheduler keeps, and what its calls have come to."""

    __slots__ = ("client", "keys", "reports", "shared", "slot")

    def __init__(self, slot: tuple[str, int], client: str) -> None:
        self.slot = slot
        self.client = client
        self.keys: set[str] = set()
        self.reports: dict[int, Report] = {}
        self.shared: str | None = None


class RunsPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Holds the keys of open runs, refuses submissions of owners that lost their partition, passes reports on."""

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.scheduler: Scheduler
        self._attachments: Attachments
        #: Tells an engine whether it talks to the scheduler it knows.
        self.token = ""
        self._owners: dict[tuple[str, int], tuple[int, str]] = {}
        self._runs: dict[str, _Held] = {}
        #: Results of ended runs that stay for a while: their keys, and the timers that end it.
        self._kept: dict[str, tuple[str, object]] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Called by the scheduler, once."""
        self.scheduler = scheduler
        self.token = os.urandom(8).hex()
        scheduler.handlers["engine_token"] = self.tell_token
        self._attachments = Attachments(scheduler, self._runs)
        scheduler.handlers[KEYS] = self._attachments.tell_keys
        scheduler.stream_handlers[DETACH] = self._attachments.detach
        scheduler.stream_handlers.update(
            {
                "engine-own": self.own,
                "engine-hold": self.hold,
                "engine-report": self.report,
                "engine-forget": self.forget,
                "engine-release": self.release,
            }
        )

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Called by the scheduler: a client is gone."""
        self._attachments.remove_client(client)

    async def tell_token(self) -> tuple[str, str]:
        """Answers which life of the plugin this is, and which release of the engine it belongs to."""
        return self.token, VERSION

    def own(self, client: str, app: str, partition: int, epoch: int) -> None:
        """``client`` drives the partition from ``epoch`` on."""
        slot = (app, partition)
        latest, _ = self._owners.get(slot, (-1, ""))
        if epoch < latest:
            self._tell(client, REFUSED, [partition, epoch, latest])
            return
        self._owners[slot] = (epoch, client)
        if (comm := self.scheduler.client_comms.get(client)) is not None:
            comm.interval = _CLIENT_INTERVAL_SECONDS
        for held in self._runs.values():
            if held.slot == slot:
                held.client = client

    def hold(self, client: str, app: str, runs: list[tuple[str, int, int, str | None]]) -> None:
        """The next graph of ``client`` has these runs: (run_id, partition, epoch, key of the final result)."""
        for run_id, partition, epoch, shared in runs:
            slot = (app, partition)
            if self._owners.get(slot) != (epoch, client):
                continue  # a stale owner: update_graph drops what it submits
            held = self._runs.get(run_id)
            if held is None:
                # Left by another run of this id (its log was cleared, or it belonged to another app): where Dask has a
                # result it runs nothing, and nobody would ever report one.
                self._let_go(run_id)
                self._attachments.begin(run_id)
                held = self._runs[run_id] = _Held(slot, client)
            held.shared = shared or held.shared
            if held.reports:
                # The owner is new, or was away: what it missed is told again.
                self._send(client, list(held.reports.values()))

    def update_graph(self, scheduler: Scheduler, *, client: str, keys: set[Any], **_: Any) -> None:
        """Take over the keys of runs that ``client`` owns, drop the others; before any of them reaches a worker."""
        ours: list[str] = []
        wanted: list[tuple[str, str, _Held]] = []
        for key in keys:
            run_id = run_of(key) if isinstance(key, str) else None
            if run_id is None:
                continue
            ours.append(key)
            held = self._runs.get(run_id)
            if held is not None and held.client == client:
                held.keys.add(key)
                wanted.append((key, run_id, held))
        scheduler.client_desires_keys([key for key, _, _ in wanted], _HOLDER)
        self._attachments.restore(key for key, _, _ in wanted)
        for key, run_id, held in wanted:
            if held.shared == key:
                self._share(run_id, key)
        # The submitter's own wish goes: what is held lives on without it, what is stale loses its only reason to run.
        scheduler.client_releases_keys(ours, client)

    def report(self, worker: str, reports: bytes) -> None:
        """Reports from a worker: kept while the run is held, passed on to its owner."""
        self._take(decode_reports(reports))

    def transition(self, key: Any, start: str, finish: str, *_: Any, **details: Any) -> None:
        """Tell the owner of a task that erred without a report of its own: its worker died, or could not load it."""
        if finish != "erred" or not isinstance(key, str) or (run_id := run_of(key)) is None:
            return
        held = self._runs.get(run_id)
        task = self.scheduler.tasks.get(key)
        if held is None or task is None or task.exception_blame is not task:
            return
        call = task.run_spec.args[0]
        known = held.reports.get(call.index)
        if known is not None and known.state is State.FAILED and known.attempt == call.attempt:
            return
        text = details.get("exception_text") or task.exception_text
        if text:
            failure = Failure(text.partition("(")[0], text, details.get("traceback_text") or "")
        else:  # what distributed gives up on after allowed-failures deaths has no text
            failure = Failure("KilledWorker", f"{task.suspicious} workers died while they ran it")
        at = time.time()
        worker = str(details.get("worker") or "")
        self._take([Report(run_id, call.index, State.CRASHED, call.attempt, 0.0, at, worker, failure)])

    def forget(self, client: str, run_id: str, keys: list[str]) -> None:
        """Drop results and errors of these calls: another attempt will be submitted under the same keys."""
        held = self._runs.get(run_id)
        if held is None or held.client != client:
            return
        for key in keys:
            held.reports.pop(int(key.rpartition("-")[2]), None)
        self._drop(held.keys.intersection(keys), run_id if held.shared in keys else None)
        self._attachments.lift(held.keys.intersection(keys))
        held.keys.difference_update(keys)

    def release(self, client: str, run_id: str, keep_seconds: float) -> None:
        """The run has ended and its end is on the state topic."""
        held = self._runs.get(run_id)
        if held is None or held.client != client:
            return
        del self._runs[run_id]
        self._attachments.end(run_id)
        if held.shared is None or keep_seconds <= 0:
            self._drop(held.keys, run_id if held.shared else None)
            return
        self._drop(held.keys - {held.shared}, None)  # what only led to the result goes at once
        self._kept[run_id] = held.shared, self.scheduler.loop.call_later(keep_seconds, self._let_go, run_id)

    def _let_go(self, run_id: str) -> None:
        key, timer = self._kept.pop(run_id, (None, None))
        if key is not None:
            self.scheduler.loop.remove_timeout(timer)
            self._drop({key}, run_id)

    def _drop(self, keys: set[str], shared: str | None) -> None:
        known = [key for key in keys if key in self.scheduler.tasks]
        if shared is not None:
            variables = self.scheduler.extensions["variables"].variables
            record = variables.pop(variable_of(shared), None)
            holder = f"variable-{variable_of(shared)}"
            if record is not None and holder in self.scheduler.clients:
                self.scheduler.client_releases_keys([record["value"]], holder)
                del self.scheduler.clients[holder]  # distributed itself never removes these
        if known:
            self.scheduler.client_releases_keys(known, _HOLDER)

    def _share(self, run_id: str, key: str) -> None:
        """Put the final future into the run's Variable, as ``Variable.set`` would, but atomic with the submit."""
        name = variable_of(run_id)
        self.scheduler.client_desires_keys([key], f"variable-{name}")
        self.scheduler.extensions["variables"].variables[name] = {"type": "Future", "value": key}

    def _take(self, reports: Sequence[Report]) -> None:
        by_client: dict[str, list[Report]] = {}
        for report in reports:
            held = self._runs.get(report.run_id)
            if held is not None:
                held.reports[report.index] = report
                by_client.setdefault(held.client, []).append(report)
        for client, own in by_client.items():
            self._send(client, own)

    def _send(self, client: str, reports: Sequence[Report]) -> None:
        self._tell(client, NAME, encode_reports(reports))

    def _tell(self, client: str, topic: str, event: object) -> None:
        comm = self.scheduler.client_comms.get(client)
        if comm is not None and not comm.closed():
            comm.send({"op": "event", "topic": topic, "event": event})
