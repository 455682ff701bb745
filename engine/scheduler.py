"""What runs inside Dask's scheduler: the plugin that holds runs, refuses stale owners and passes reports on.

With the other rooms of the cluster the only importer of distributed. Everything happens in the scheduler's event loop,
in the order in which messages of one stream arrive: own, submit, release.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from engine.dask_answers import Answers
from engine.dask_clocks import outcomes_of, reports_of
from engine.dask_deaths import Deaths, crashed, read_death
from engine.dask_finals import Finals
from engine.dask_graph import DaskGraph, Pending
from engine.dask_logs import LOGS, LogWays
from engine.dask_names import Names
from engine.dask_parcels import HeldParcels
from engine.dask_runs import HeldRun
from engine.dask_waits import Waits
from engine.executor import Call, Report, RunEnd, decode_call, decode_end, encode_call, encode_reports, index_of, run_of
from engine.parcels import decode_parcel
from engine.spawning import refused
from engine.states import Failure, State

NAME = "engine"
#: What the scheduler says to an engine that is not the latest owner: [partition, its epoch, the latest epoch].
REFUSED = "engine-refused"
#: What engines hear of packed runs: outcomes, deaths, and parcels that are refused.
PARCELS = "engine-parcels"
#: Reports to an engine share a message for so long; the first after a pause goes at once.
_CLIENT_INTERVAL_SECONDS = 0.005


class RunsPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Holds the keys of open runs, refuses submissions of owners that lost their partition, passes reports on."""

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.scheduler: Scheduler
        #: How many tasks a run of each app may have.
        self._limits: dict[str, int] = {}
        self._owners: dict[tuple[str, int], tuple[int, str]] = {}
        self._runs: dict[str, HeldRun] = {}
        self._graph: DaskGraph
        self._deaths: Deaths
        self._names: Names
        self._finals: Finals
        self._waits: Waits
        self._parcels: HeldParcels
        self._logs: LogWays

    async def start(self, scheduler: Scheduler) -> None:
        """Called by the scheduler, once."""
        self.scheduler = scheduler
        for worker in scheduler.workers:
            self.add_worker(scheduler, worker)
        self._graph, self._names = DaskGraph(scheduler), Names(scheduler)
        self._finals = Finals(scheduler, self._graph, self._names)
        self._waits = Waits(scheduler, self._graph, self._report_of)
        self._parcels = HeldParcels(scheduler, self._graph, self._names, self._tell_owner)
        self._deaths = Deaths(scheduler, self._graph, self._parcels)
        self._logs = LogWays(scheduler.client_comms, self._client_of)
        Answers(scheduler, self._graph, self._runs)
        scheduler.handlers["engine_held"] = self.held
        scheduler.stream_handlers.update(
            {
                "engine-own": self.own,
                "engine-submit": self.submit,
                "engine-report": self.report,
                LOGS: self._logs.pass_on,
                "engine-await": self._waits.add,
                "engine-release": self.release,
                "engine-cancel": self.cancel,
                "engine-parcel": self.send_parcel,
                "engine-outcomes": self.hear_outcomes,
                "engine-stuck-packed": self._parcels.hear_stuck,
                "engine-release-parcels": self.release_parcels,
                "engine-cancel-packed": self.cancel_packed,
            }
        )

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Called by the scheduler for each worker."""
        # distributed keeps the last thousand messages for those who debug it: of ours that would be as many parcels.
        scheduler.stream_comms[worker].recent_message_log = deque(maxlen=1)

    def own(self, client: str, app: str, partition: int, epoch: int, max_run_tasks: int = 100_000) -> None:
        """``client`` drives the partition from ``epoch`` on; a run of the app may have so many tasks."""
        slot = (app, partition)
        self._limits[app] = max_run_tasks
        latest, _ = self._owners.get(slot, (-1, ""))
        if epoch < latest:
            self._tell(client, REFUSED, [partition, epoch, latest])
            return
        self._owners[slot] = (epoch, client)
        if (comm := self.scheduler.client_comms.get(client)) is not None:
            comm.interval = _CLIENT_INTERVAL_SECONDS
            comm.recent_message_log = deque(maxlen=1)
        for held in self._runs.values():
            if held.slot == slot:
                held.client = client

    async def held(self, app: str, partition: int, epoch: int) -> list[str]:
        """The runs of a partition, packed or not, for the owner whose epoch it is."""
        slot = (app, partition)
        if self._owners.get(slot, (-1, ""))[0] != epoch:
            return []
        return [*(run_id for run_id, held in self._runs.items() if held.slot == slot), *self._parcels.runs_of(slot)]

    def submit(self, client: str, app: str, runs: list[tuple[str, int, int, bool, bool, list[bytes]]]) -> None:
        """Calls of runs of ``client``, each as a Submission has it but for the app."""
        pending = Pending()
        for run_id, partition, epoch, is_anew, is_tried_again, calls in runs:
            slot = (app, partition)
            if self._owners.get(slot) != (epoch, client):
                continue  # a stale owner: nothing of it ever reaches a worker
            held = self._runs.get(run_id)
            if held is None:
                # Left by another run of this id (its log was cleared, or it belonged to another app): where Dask has a
                # result it runs nothing, and nobody would ever report one.
                self._finals.let_go(run_id)
                held = self._runs[run_id] = HeldRun(slot, client)
                if is_tried_again:
                    self._finals.promise(run_id, held)
            elif is_anew and (held.spawned or held.reports):
                # The owner is new, or was away: what it missed is told again, children first.
                self._send(client, [*held.spawned, *held.reports.values()])
            for encoded in calls:
                self._add(held, decode_call(encoded), encoded, pending)
            if held.shared is None:
                self._finals.promise(run_id, held)
        self._create(pending)

    def report(self, worker: str, reports: bytes) -> None:
        """Reports from a worker: kept while the run is held, acted on, passed on to its owner."""
        pending = Pending()
        told: list[Report] = []
        for report in reports_of(self.scheduler, worker, reports):
            held = self._runs.get(report.run_id)
            if held is None:
                continue
            if report.spawned:
                report = self._spawn(held, report, pending)  # noqa: PLW2901 - what was let in
            if report.continuation is not None:
                self._create(pending)  # the children may have been started in this very message
                self._graph.go_on_with(report.continuation)
                report = msgspec.structs.replace(report, continuation=None)  # noqa: PLW2901 - the engine needs it not
            elif report.retry_in_seconds is not None:
                self._graph.put_back(held.keys.get(report.index, ""))
            told.append(report)
        # Before the engine hears of them, so that the children run as soon as can be.
        self._create(pending)
        self._take(told)

    def transition(self, key: Any, start: str, finish: str, *_: Any, **details: Any) -> None:
        """Tell the owner of a task that erred without a report of its own: its worker died, or could not load it."""
        self._deaths.note(key, start, finish)
        if finish in ("memory", "erred") and key in self._parcels:
            reason = details.get("exception_text") or "its worker died"
            self.scheduler.loop.add_callback(self._parcels.ended, key, reason, finish == "memory")  # when Dask is done with it
            return
        if finish == "memory":
            if key in self._waits:
                self.scheduler.loop.add_callback(self._waits.end, key, self.scheduler.tasks.get(key))
            return
        if finish != "erred" or not isinstance(key, str) or (run_id := run_of(key)) is None:
            return
        held = self._runs.get(run_id)
        task = self.scheduler.tasks.get(key)
        if held is None or task is None:
            return
        if key in self._waits:
            self.scheduler.loop.add_callback(self._waits.end, key, task)
        if task.exception_blame is not task:
            return
        call = decode_call(task.run_spec.args[0])
        known = held.reports.get(call.index)
        if known is not None and known.state is State.FAILED and known.attempt == call.attempt:
            return
        self._take([crashed(call, task, details)])

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by the scheduler for what it logs: a worker's end comes by before its tasks are given to others."""
        if (death := read_death(topic, msg)) is not None:
            self._take(self._deaths.hear(death, self._report_of))

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Called by the scheduler when a worker's tasks have been given to others."""
        self._deaths.settle()

    def release(self, client: str, run_id: str, keep_seconds: float, end: bytes | None = None) -> None:
        """The run has ended and its end, of which ``end`` says what its calls do not, is on the state topic."""
        held = self._runs.get(run_id)
        if held is None or held.client != client:
            return
        del self._runs[run_id]
        self._logs.let_go(run_id, client)
        if held.spawned:
            # A parent may be at it once more, because its worker was taken for dead: nobody would tell it of children that go.
            for key in held.keys.values():
                if key in self._waits:
                    self._waits.end(key, self.scheduler.tasks.get(key))
        self._names.drop_queue(run_id, [call.key for report in held.spawned for call in report.spawned])
        self._finals.end(run_id, held, RunEnd() if end is None else decode_end(end), keep_seconds)

    def cancel(self, client: str, run_id: str) -> None:
        """The run is over, whatever its tasks are at."""
        held = self._runs.get(run_id)
        if held is None or held.client != client:
            return
        self._graph.stop(held.keys.values())
        # Parents that wait for children are stopped themselves: told of a lost child as well, they would be hit cleaning up.
        self._waits.forget(held.keys.values())
        self._graph.cancel(held.all_keys())
        self.release(client, run_id, 0.0)

    def send_parcel(self, client: str, app: str, parcel: bytes, owners: list[tuple[int, int]]) -> None:
        """A parcel of ``client``, with partition and epoch of each run; refused where another engine owns one of them."""
        slots = [(app, partition) for partition, _ in owners]
        stale = {number for number, epoch in owners if self._owners.get((app, number)) != (epoch, client)}
        if stale:
            self._tell(client, PARCELS, {"stale": sorted(stale), "parcel": decode_parcel(parcel).parcel_id})
            return
        self._parcels.send(parcel, slots)

    def hear_outcomes(self, worker: str, outcomes: bytes) -> None:
        """Outcomes of packed runs, from a worker."""
        self._parcels.hear(outcomes_of(self.scheduler, worker, outcomes))

    def release_parcels(self, client: str, run_ids: list[str], keep_seconds: float) -> None:
        """Packed runs have ended, and their ends are on the state topic: void where the engine has lost the partition."""
        self._parcels.release(run_ids, keep_seconds, self._slots_of(client))

    def cancel_packed(self, client: str, run_ids: list[str]) -> None:
        """Packed runs are over."""
        self._parcels.cancel(run_ids, self._slots_of(client))

    # --- Tasks and names ------------------------------------------------------------------------------------------------

    def _add(self, held: HeldRun, call: Call, encoded: bytes, pending: Pending) -> None:
        """Enter a call into the graph that is to be made, unless the scheduler has it."""
        key = call.key
        if call.is_final:
            held.final = key
            held.shared = held.promise or key
        if call.index in held.keys and (task := self._graph.get(key)) is not None:
            self._graph.run_again(task, call, encoded)
            return
        if call.index not in held.keys:
            self._graph.evict(key)
        pending.add(call, encoded)
        held.keys[call.index] = key

    def _create(self, pending: Pending) -> None:
        children = pending.children
        made, refused = self._graph.create(pending)
        for key in made:
            run_id = run_of(key) or ""
            held = self._runs.get(run_id)
            if held is not None and held.shared == key:
                self._names.share(run_id, key)
        for run_id, keys in children:
            self._names.enqueue(run_id, keys)  # for the futures of tasks that there are: the names keep them
        failure = Failure("LostDependency", "a result that the task needs is not on the cluster any more")
        self._take([Report(c.run_id, c.index, State.CRASHED, c.attempt, 0.0, time.time(), "", failure) for c in refused])

    def _spawn(self, held: HeldRun, report: Report, pending: Pending) -> Report:
        """Children that a task has started. Those that are here run on; the engine is told of all, and skips what it knows."""
        told: list[Call] = []
        new: list[str] = []
        limit = self._limits.get(held.slot[0], 0)
        for call in report.spawned:
            if call.index not in held.keys:
                if len(held.keys) >= limit:  # it is let in, to fail with a clear error
                    call = refused(call, limit)  # noqa: PLW2901
                new.append(call.key)
                self._add(held, call, encode_call(call), pending)
            told.append(call)
        report = msgspec.structs.replace(report, spawned=tuple(told))
        if new:
            held.spawned.append(report)
            pending.children.append((report.run_id, new))
        return report

    # --- Telling --------------------------------------------------------------------------------------------------------

    def _report_of(self, key: str) -> Report | None:
        held = self._runs.get(run_of(key) or "")
        return None if held is None else held.reports.get(index_of(key))

    def _slots_of(self, client: str) -> set[tuple[str, int]]:
        return {slot for slot, (_, owner) in self._owners.items() if owner == client}

    def _client_of(self, run_id: str) -> str | None:
        held = self._runs.get(run_id)
        return held.client if held is not None else self._owners.get(self._parcels.slot_of(run_id), (-1, ""))[1]

    def _take(self, reports: Sequence[Report]) -> None:
        by_client: dict[str, list[Report]] = {}
        for report in reports:
            held = self._runs.get(report.run_id)
            if held is not None:
                held.hear(report)
                by_client.setdefault(held.client, []).append(report)
        for client, own in by_client.items():
            self._send(client, own)

    def _send(self, client: str, reports: Sequence[Report]) -> None:
        self._tell(client, NAME, encode_reports(reports))

    def _tell_owner(self, slot: tuple[str, int], event: dict[str, Any]) -> None:
        _, client = self._owners.get(slot, (-1, ""))
        self._tell(client, PARCELS, event)

    def _tell(self, client: str, topic: str, event: object) -> None:
        comm = self.scheduler.client_comms.get(client)
        if comm is not None and not comm.closed():
            comm.send({"op": "event", "topic": topic, "event": event})
