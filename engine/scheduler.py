"""What runs inside Dask's scheduler: the plugin that holds runs, refuses stale owners and passes reports on.

With the other rooms of the cluster the only importer of distributed. Everything happens in the scheduler's event loop,
in the order in which messages of one stream arrive: own, hold, update-graph, forget, release.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from dask._task_spec import Task, TaskRef
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import TaskState

from engine.arguments import dump
from engine.executor import Call, Report, decode_call, decode_reports, encode_call, encode_reports, index_of, run_of
from engine.reporter import run_async_call, run_call
from engine.states import Failure, State

NAME = "engine"
#: What the scheduler says to an engine that is not the latest owner: [partition, its epoch, the latest epoch].
REFUSED = "engine-refused"
#: Engine, scheduler and workers exchange pickled values of ours: they must be of one release.
VERSION = version("kafka-dask-engine")
#: The pseudo-client in whose name the plugin holds keys, so that they outlive the engine that submitted them.
#: What engine.sharing asks.
KEYS = "engine_keys"
_HOLDER = "engine-runs"
#: A task that never ends. What is not to run yet depends on it.
_GATE = "engine-gate"
#: Reports to an engine share a message for so long; the first after a pause goes at once.
_CLIENT_INTERVAL_SECONDS = 0.005


def variable_of(run_id: str) -> str:
    """Name of the distributed Variable that has a run's final future."""
    return f"run-{run_id}"


def queue_of(run_id: str) -> str:
    """Name of the distributed Queue that has the futures of the tasks that a run's tasks have started."""
    return f"run-{run_id}"


class _Held:
    """A run whose keys the scheduler keeps, and what its calls have come to."""

    __slots__ = ("client", "keys", "reports", "shared", "slot", "spawned")

    def __init__(self, slot: tuple[str, int], client: str) -> None:
        self.slot = slot
        self.client = client
        #: By index.
        self.keys: dict[str, str] = {}
        #: The latest report of each call, in the order of their ends: a flow that is gone through again hears them so.
        self.reports: dict[str, Report] = {}
        self.spawned: list[Report] = []
        self.shared: str | None = None


class RunsPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Holds the keys of open runs, refuses submissions of owners that lost their partition, passes reports on."""

    name = NAME
    idempotent = True

    def __init__(self, max_children: int = 100_000) -> None:
        self.scheduler: Scheduler
        #: Tells an engine whether it talks to the scheduler it knows.
        self.token = ""
        self._max_children = max_children
        self._owners: dict[tuple[str, int], tuple[int, str]] = {}
        self._runs: dict[str, _Held] = {}
        #: Results of ended runs that stay for a while: their keys, and the timers that end it.
        self._kept: dict[str, tuple[str, object]] = {}
        #: Workers on which a task waits for the end of a key.
        self._awaited: dict[str, set[str]] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Called by the scheduler, once."""
        self.scheduler = scheduler
        self.token = os.urandom(8).hex()
        scheduler.handlers["engine_token"] = self.tell_token
        scheduler.handlers[KEYS] = self.tell_keys
        scheduler.stream_handlers.update(
            {
                "engine-own": self.own,
                "engine-submit": self.submit,
                "engine-report": self.report,
                "engine-await": self.await_end,
                "engine-release": self.release,
            }
        )

    async def tell_token(self) -> tuple[str, str, int]:
        """Answers which life of the plugin this is, of which release of the engine, and how many threads the workers have."""
        return self.token, VERSION, self.scheduler.total_nthreads

    async def tell_keys(self, run_id: str, client: str, app: str | None = None) -> dict[str, Any]:
        """Answers keys and final key of an open run, and notes that ``client`` wants them; nothing for other runs.

        In one step, because the run may end and its keys be gone by the time that the answer is read.
        """
        held = self._runs.get(run_id)
        if held is None or client not in self.scheduler.clients or app not in (None, held.slot[0]):
            return {}
        keys = [key for key in held.keys.values() if key in self.scheduler.tasks]
        self.scheduler.client_desires_keys(keys, client)
        return {"keys": sorted(keys), "shared": held.shared if held.shared in keys else None}

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

    def submit(self, client: str, app: str, runs: list[tuple[str, int, int, bool, list[bytes]]]) -> None:
        """Calls of runs of ``client``: (run_id, partition, epoch, whether to tell again what was heard, calls)."""
        graph: dict[str, Task] = {}
        depth: dict[str, int] = {}
        for run_id, partition, epoch, is_anew, calls in runs:
            slot = (app, partition)
            if self._owners.get(slot) != (epoch, client):
                continue  # a stale owner: nothing of it ever reaches a worker
            held = self._runs.get(run_id)
            if held is None:
                # Left by another run of this id (its log was cleared, or it belonged to another app): where Dask has a
                # result it runs nothing, and nobody would ever report one.
                self._let_go(run_id)
                held = self._runs[run_id] = _Held(slot, client)
            elif is_anew and (held.spawned or held.reports):
                # The owner is new, or was away: what it missed is told again, children first.
                self._send(client, [*held.spawned, *held.reports.values()])
            for encoded in calls:
                self._add(held, decode_call(encoded), encoded, graph, depth)
        self._create(graph, depth)

    def report(self, worker: str, reports: bytes) -> None:
        """Reports from a worker: kept while the run is held, acted on, passed on to its owner."""
        graph: dict[str, Task] = {}
        depth: dict[str, int] = {}
        told: list[Report] = []
        for report in decode_reports(reports):
            held = self._runs.get(report.run_id)
            if held is None:
                continue
            if report.spawned:
                report = self._spawn(held, report, graph, depth)  # noqa: PLW2901 - what was let in
            if report.continuation is not None:
                self._create(graph, depth)  # the children may have been started in this very message
                self._continue(report.continuation)
                report = msgspec.structs.replace(report, continuation=None)  # noqa: PLW2901 - the engine needs it not
            elif report.retry_in_seconds is not None:
                self._put_back(report)
            told.append(report)
        # Before the engine hears of them, so that the children run as soon as can be.
        self._create(graph, depth)
        self._take(told)

    def await_end(self, worker: str, key: str) -> None:
        """A task on ``worker`` waits for the end of ``key``."""
        task = self.scheduler.tasks.get(key)
        self._awaited.setdefault(key, set()).add(worker)
        if task is None or task.state in ("memory", "erred"):
            self._tell_end(key, task)

    def transition(self, key: Any, start: str, finish: str, *_: Any, **details: Any) -> None:
        """Tell the owner of a task that erred without a report of its own: its worker died, or could not load it."""
        if finish == "memory":
            if key in self._awaited:
                self.scheduler.loop.add_callback(self._tell_end, key, self.scheduler.tasks.get(key))
            return
        if finish != "erred" or not isinstance(key, str) or (run_id := run_of(key)) is None:
            return
        held = self._runs.get(run_id)
        task = self.scheduler.tasks.get(key)
        if held is None or task is None:
            return
        if key in self._awaited:
            self.scheduler.loop.add_callback(self._tell_end, key, task)
        if task.exception_blame is not task:
            return
        call = decode_call(task.run_spec.args[0])
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

    def release(self, client: str, run_id: str, keep_seconds: float) -> None:
        """The run has ended and its end is on the state topic."""
        held = self._runs.get(run_id)
        if held is None or held.client != client:
            return
        del self._runs[run_id]
        self._drop_queue(held, run_id)
        if held.shared is None or keep_seconds <= 0:
            self._drop(held.keys.values(), run_id if held.shared else None)
            return
        self._drop([key for key in held.keys.values() if key != held.shared], None)  # what only led to the result goes at once
        self._kept[run_id] = held.shared, self.scheduler.loop.call_later(keep_seconds, self._let_go, run_id)

    # --- Tasks of Dask's ------------------------------------------------------------------------------------------------

    def _add(self, held: _Held, call: Call, encoded: bytes, graph: dict[str, Task], depth: dict[str, int]) -> None:
        """Enter a call into the graph that is to be made, unless the scheduler has it."""
        key = call.key
        task = self.scheduler.tasks.get(key)
        if task is not None and call.index in held.keys and task.run_spec is not None:
            self._run_again(task, call, encoded)
            return
        if task is not None and call.index not in held.keys and task.state in ("memory", "erred"):
            self._evict(task)
        graph[key] = _task_of(key, call, encoded)
        depth[key] = call.depth
        held.keys[call.index] = key
        if call.is_final:
            held.shared = key

    def _evict(self, task: TaskState) -> None:
        """Somebody outside has kept it from an earlier run of this id; where Dask has a result, it runs nothing."""
        for dependent in list(task.dependents):
            if dependent.state in ("memory", "erred"):
                self._unlink(dependent, task)
            else:
                self._evict(dependent)  # it waits for what will not be there: as long as it does, Dask keeps the old result
        for client in [state.client_key for state in task.who_wants or ()]:
            self.scheduler.client_releases_keys([task.key], client)
            comm = self.scheduler.client_comms.get(client)
            if comm is not None and not comm.closed():
                comm.send({"op": "cancelled-keys", "keys": [task.key]})
        if self.scheduler.tasks.get(task.key) is task and not task.waiters:
            self.scheduler.transitions({task.key: "forgotten"}, f"engine-evict-{time.time()}")

    def _create(self, graph: dict[str, Task], depth: dict[str, int]) -> None:
        """Make these tasks in one go; at the end of it those that can run are on their way to a worker."""
        scheduler = self.scheduler
        lost = [key for key, task in graph.items() if not all(n in graph or n in scheduler.tasks for n in task.dependencies)]
        for key in lost:  # Dask would wait for what it needs without end
            self._refuse(decode_call(graph.pop(key).args[0]))
        if not graph:
            return
        now = time.time()
        scheduler._create_taskstate_from_graph(
            start=now,
            dsk=graph,
            keys=set(graph),
            ordered={key: number for number, key in enumerate(graph)},
            client=_HOLDER,
            annotations_by_type={},
            global_annotations=None,
            stimulus_id=f"engine-submit-{now}",
            submitting_task=None,
            span_metadata={},
            user_priority=depth,
            fifo_timeout=0.1,
        )
        for key in graph:
            run_id = run_of(key) or ""
            held = self._runs.get(run_id)
            if held is not None and held.shared == key:
                self._share(run_id, key)
        graph.clear()
        depth.clear()

    def _refuse(self, call: Call) -> None:
        """A call needs what is not here: the submission that brought it was lost."""
        failure = Failure("LostDependency", "a result that the task needs is not on the cluster any more")
        self._take([Report(call.run_id, call.index, State.CRASHED, call.attempt, 0.0, time.time(), "", failure)])

    def _run_again(self, task: TaskState, call: Call, encoded: bytes) -> None:
        """The next attempt of a call that was put back; anything else is attached to as it is."""
        gate = self.scheduler.tasks.get(_GATE)
        if gate is None or gate not in task.dependencies or decode_call(task.run_spec.args[0]).attempt >= call.attempt:
            return
        task.run_spec = _task_of(task.key, call, encoded)
        self._unlink(task, gate)
        self.scheduler.transitions({task.key: "released"}, f"engine-again-{time.time()}")

    def _put_back(self, report: Report) -> None:
        """An attempt has failed and another will follow: what is told now keeps Dask from running it at once.

        The worker says next that the task is to be scheduled again. It then waits for something that never comes, as does
        all that depends on it, until the engine submits the next attempt.
        """
        task = self.scheduler.tasks.get(self._runs[report.run_id].keys.get(report.index, ""))
        if task is None or task.state != "processing":
            return
        gate = self.scheduler.tasks.get(_GATE)
        if gate is None:
            gate = self.scheduler.new_task(_GATE, None, "waiting")
            gate.waiting_on = {gate}
        task.add_dependency(gate)

    def _continue(self, continuation: Call) -> None:
        """A task has returned what its children are still at: from now on its key stands for what puts that together.

        The worker says next that the task is to be scheduled again; by then it depends on the children.
        """
        scheduler = self.scheduler
        task = scheduler.tasks.get(continuation.key)
        if task is None or task.state != "processing":
            return
        for needed in list(task.dependencies):
            self._unlink(task, needed)
        children = [scheduler.tasks.get(key) for key in continuation.dependencies]
        if any(child is None or child.state == "erred" for child in children):
            # It can have no value; the report of the child that failed has said why. With nothing to wait for it fails.
            lost = msgspec.structs.replace(continuation, function="engine.spawning:lose", dependencies=(), places=())
            task.run_spec = _task_of(task.key, lost, encode_call(lost))
            return
        task.run_spec = _task_of(task.key, continuation, encode_call(continuation))
        for child in children:
            if child is not None:
                task.add_dependency(child)

    def _unlink(self, task: TaskState, needed: TaskState) -> None:
        task.dependencies.discard(needed)
        needed.dependents.discard(task)
        if needed.waiters:
            needed.waiters.discard(task)
        if task.waiting_on:
            task.waiting_on.discard(needed)

    def _spawn(self, held: _Held, report: Report, graph: dict[str, Task], depth: dict[str, int]) -> Report:
        """Children that a task has started: those it has started before, in another life of its worker, are left out."""
        new: list[Call] = []
        for call in report.spawned:
            if call.index in held.keys:
                continue
            if len(held.keys) >= self._max_children:
                call = msgspec.structs.replace(  # noqa: PLW2901 - it is let in, to fail with a clear error
                    call, function="engine.spawning:refuse", arguments=dump(((self._max_children,), {}), "", "").data
                )
                call = msgspec.structs.replace(call, dependencies=(), places=())  # noqa: PLW2901
            new.append(call)
            self._add(held, call, encode_call(call), graph, depth)
        told = msgspec.structs.replace(report, spawned=tuple(new))
        if new:
            held.spawned.append(told)
            self._enqueue(report.run_id, [call.key for call in new])
        return told

    # --- What others can have -------------------------------------------------------------------------------------------

    def _let_go(self, run_id: str) -> None:
        key, timer = self._kept.pop(run_id, (None, None))
        if key is not None:
            self.scheduler.loop.remove_timeout(timer)
            self._drop([key], run_id)

    def _drop(self, keys: Iterable[str], shared: str | None) -> None:
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

    def _enqueue(self, run_id: str, keys: list[str]) -> None:
        """Put the futures of children into the run's Queue, as ``Queue.put`` would, for whoever wants to follow them."""
        name = queue_of(run_id)
        queues = self.scheduler.extensions["queues"]
        if name not in queues.queues:
            queues.create(name=name)
        self.scheduler.client_desires_keys(keys, f"queue-{name}")
        for key in keys:
            queues.future_refcount[name, key] += 1
            queues.queues[name].put_nowait({"type": "Future", "value": key})

    def _drop_queue(self, held: _Held, run_id: str) -> None:
        if not held.spawned:
            return
        name = queue_of(run_id)
        queues = self.scheduler.extensions["queues"]
        queues.queues.pop(name, None)
        queues.client_refcount.pop(name, None)
        keys = [call.key for report in held.spawned for call in report.spawned]
        for key in keys:
            queues.future_refcount.pop((name, key), None)
        if f"queue-{name}" in self.scheduler.clients:
            self.scheduler.client_releases_keys(keys, f"queue-{name}")
            self.scheduler.clients.pop(f"queue-{name}", None)

    # --- Telling --------------------------------------------------------------------------------------------------------

    def _tell_end(self, key: str, task: TaskState | None) -> None:
        workers = self._awaited.pop(key, set())
        report: bytes | None = None
        if task is None or task.state != "memory":
            report = encode_reports([self._why(key, task)])
        who_has = [] if task is None or report is not None else [ws.address for ws in task.who_has or ()]
        for worker in workers:
            if worker in self.scheduler.workers:
                self.scheduler.worker_send(worker, {"op": "engine-ended", "key": key, "who_has": who_has, "report": report})

    def _why(self, key: str, task: TaskState | None) -> Report:
        """The report of the failure that left ``key`` without a value."""
        blamed = task.exception_blame.key if task is not None and task.exception_blame is not None else key
        run_id = run_of(blamed) or ""
        held = self._runs.get(run_id)
        known = held.reports.get(index_of(blamed)) if held is not None else None
        if known is not None and known.error is not None:
            return known
        failure = Failure("LostResult", "the result is not on the cluster any more")
        return Report(run_id, index_of(blamed), State.CRASHED, 1, 0.0, time.time(), "", failure)

    def _take(self, reports: Sequence[Report]) -> None:
        by_client: dict[str, list[Report]] = {}
        for report in reports:
            held = self._runs.get(report.run_id)
            if held is not None:
                if not report.spawned:
                    held.reports.pop(report.index, None)  # so that the order is that of the ends
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


def _task_of(key: str, call: Call, encoded: bytes) -> Task:
    run = run_async_call if call.is_async else run_call
    return Task(key, run, encoded, *[TaskRef(needed) for needed in call.dependencies])
