"""The tasks of our runs as Dask's scheduler has them: made, put back for another attempt, given a continuation, removed.

Runs inside the scheduler, in its event loop; with the other rooms of the cluster the only importer of distributed and dask.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from dask._task_spec import Task, TaskRef
from dask.utils import key_split
from distributed import Scheduler
from distributed.scheduler import TaskState

from engine.dask_spans import Spans
from engine.executor import Call, decode_call, encode_call, run_of
from engine.reporter import run_async_call, run_call
from engine.turns import GUESS_SECONDS, Turns, priority

#: The pseudo-client in whose name tasks are held, so that they outlive the engine that submitted them.
HOLDER = "engine-runs"
#: How the pseudo-clients are called that hold, for the Queues of runs, the futures of children.
QUEUE_HOLDER = "queue-run-"
#: A task that never ends. What is not to run yet depends on it.
_GATE = "engine-gate"
#: How the pseudo-clients are called that hold what runs have: ours, and those of their names.
_OURS = (HOLDER, "variable-run-", QUEUE_HOLDER)
#: Runs of so many calls at most are kept together, where each takes a worker no longer than this.
_SMALL_RUN = 16
_QUICK_SECONDS = 0.02


class Pending:
    """Tasks that are to be made in one go."""

    __slots__ = ("children", "depth", "flows", "graph", "runs")

    def __init__(self) -> None:
        self.graph: dict[str, Task] = {}
        self.depth: dict[str, int] = {}
        #: Keys by run.
        self.runs: dict[str, list[str]] = {}
        self.flows: dict[str, str] = {}
        #: Of the keys, those that tasks have started: run and keys.
        self.children: list[tuple[str, list[str]]] = []

    def add(self, call: Call, encoded: bytes) -> None:
        """A call of a run."""
        key = call.key
        self.graph[key] = _task_of(key, call, encoded)
        self.depth[key] = call.depth
        self.runs.setdefault(call.run_id, []).append(key)
        self.flows[call.run_id] = call.flow


class DaskGraph:
    """Makes and changes tasks."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._spans = Spans(scheduler)
        self._turns = Turns()

    def get(self, key: str) -> TaskState | None:
        """A task that the scheduler knows and can run."""
        task = self._scheduler.tasks.get(key)
        return None if task is None or task.run_spec is None else task

    def call_of(self, task: TaskState) -> Call | None:
        """The call that a task stands for; None for what is no attempt of a call."""
        spec = task.run_spec
        return decode_call(spec.args[0]) if isinstance(spec, Task) and spec.func in (run_call, run_async_call) else None

    def has(self, key: str) -> bool:
        """Whether the scheduler has the task, and has not let its result go."""
        task = self._scheduler.tasks.get(key)
        return task is not None and task.state != "released"

    def create(self, pending: Pending) -> tuple[list[str], list[Call]]:
        """Make these tasks; at the end of it those that can run are on their way to a worker.

        Answers the keys made, and calls that need what the scheduler does not have: Dask would wait for it without end.
        """
        scheduler, graph = self._scheduler, pending.graph
        lost = [key for key, task in graph.items() if not all(n in graph or n in scheduler.tasks for n in task.dependencies)]
        refused = [decode_call(graph.pop(key).args[0]) for key in lost]
        made = list(graph)
        if graph:
            self._create_tasks(graph, self._priorities(pending), self._places(pending))
        pending.graph, pending.depth, pending.runs, pending.flows, pending.children = {}, {}, {}, {}, []
        return made, refused

    def create_task(self, key: str, task: Task, flow: str) -> None:
        """Make one task that is a run by itself, or many runs; it takes its turn among the flows."""
        turn = self._turns.turn(run_of(key) or key, flow, self._seconds(key))
        self._create_tasks({key: task}, priority(turn, 0))

    def take_first(self, graph: dict[str, Task]) -> None:
        """Make tasks that go before all others, being no work."""
        self._create_tasks(graph, 1_000)

    def _priorities(self, pending: Pending) -> dict[str, int]:
        priorities: dict[str, int] = {}
        for run_id, keys in pending.runs.items():
            turn = self._turns.turn(run_id, pending.flows[run_id], sum(map(self._seconds, keys)))
            priorities.update({key: priority(turn, pending.depth[key]) for key in keys})
        return priorities

    def _seconds(self, key: str) -> float:
        prefix = self._scheduler.task_prefixes.get(key_split(key))
        return GUESS_SECONDS if prefix is None or prefix.duration_average < 0 else prefix.duration_average

    def _create_tasks(
        self, graph: dict[str, Task], priorities: int | dict[str, int], places: dict[str, list[str]] | None = None
    ) -> None:
        """Make tasks of Dask's, held in our name; those of higher priority run first, those with places there if they can."""
        self._spans.forget()
        now = time.time()
        annotations = {"workers": places, "allow_other_workers": dict.fromkeys(places, True)} if places else {}
        self._scheduler._create_taskstate_from_graph(
            start=now,
            dsk=graph,
            keys=set(graph),
            ordered={key: number for number, key in enumerate(graph)},
            client=HOLDER,
            annotations_by_type=annotations,
            global_annotations=None,
            stimulus_id=f"engine-submit-{now}",
            submitting_task=None,
            span_metadata={},
            user_priority=priorities,
            fifo_timeout=0.1,
        )

    def _places(self, pending: Pending) -> dict[str, list[str]]:
        """A worker for each small run of quick tasks: to send their results about would cost more than the tasks do.

        Runs of tasks that take longer, or that nobody has run yet, are left to Dask, which spreads them.
        """
        workers = self._scheduler.workers
        if len(workers) < 2:
            return {}
        loads = {address: len(worker.processing) / max(1, worker.nthreads) for address, worker in workers.items()}
        places: dict[str, list[str]] = {}
        for keys in pending.runs.values():
            if not 1 < len(keys) <= _SMALL_RUN or not all(self._is_quick(key) for key in keys):
                continue
            address = min(loads, key=loads.__getitem__)
            loads[address] += len(keys) / max(1, workers[address].nthreads)
            places.update({key: [address] for key in keys})
        return places

    def _is_quick(self, key: str) -> bool:
        prefix = self._scheduler.task_prefixes.get(key_split(key))
        return prefix is not None and 0 <= prefix.duration_average < _QUICK_SECONDS

    def run_again(self, task: TaskState, call: Call, encoded: bytes) -> None:
        """The next attempt of a call that was put back, or a result that was lost; anything else is left as it is."""
        if task.state == "released":
            self.revive(task)
            return
        gate = self._scheduler.tasks.get(_GATE)
        before = decode_call(task.run_spec.args[0])
        if gate is None or gate not in task.dependencies or before.attempt >= call.attempt:
            return
        if before.deaths:  # of which the engine, that sends the next attempt, need not know
            call = msgspec.structs.replace(call, deaths=before.deaths)
            encoded = encode_call(call)
        task.run_spec = _task_of(task.key, call, encoded)
        _unlink(task, gate)
        self._scheduler.transitions({task.key: "released"}, f"engine-again-{time.time()}")

    def revive(self, task: TaskState) -> None:
        """A result that was lost when nobody needed it is needed: make it again."""
        self._scheduler.transitions({task.key: "waiting"}, f"engine-revive-{time.time()}")

    def replace(self, task: TaskState, call: Call) -> None:
        """Let the task stand for this call when it is given to a worker next; it needs the same as before."""
        task.run_spec = _task_of(task.key, call, encode_call(call))

    def put_back(self, key: str) -> None:
        """An attempt has failed and another will follow: what is told now keeps Dask from running it at once.

        The worker says next that the task is to be scheduled again. It then waits for something that never comes, as does
        all that depends on it, until the engine submits the next attempt.
        """
        task = self._scheduler.tasks.get(key)
        if task is not None and task.state == "processing":
            task.add_dependency(self._gate())

    def _gate(self) -> TaskState:
        gate = self._scheduler.tasks.get(_GATE)
        if gate is None:
            gate = self._scheduler.new_task(_GATE, None, "waiting")
            gate.waiting_on = {gate}
            # Else Dask would let it go with the last that waits behind it, and take it for a task when the next one comes.
            self._scheduler.client_desires_keys([_GATE], HOLDER)
        return gate

    def go_on_with(self, continuation: Call) -> None:
        """A task has returned what its children are still at: from now on its key stands for what puts that together.

        The worker says next that the task is to be scheduled again; by then it depends on the children.
        """
        tasks = self._scheduler.tasks
        task = tasks.get(continuation.key)
        if task is None or task.state != "processing":
            return
        children = [tasks.get(key) for key in continuation.dependencies]
        if any(child is None or child.state == "erred" for child in children):
            # It can have no value; the report of the child that failed has said why. With nothing to wait for it fails.
            continuation = msgspec.structs.replace(continuation, function="engine.spawning:lose", dependencies=(), places=())
            children = []
        _turn_into(task, _task_of(task.key, continuation, encode_call(continuation)), children)

    def hold_back(self, key: str) -> None:
        """Make a task that waits until it is said what it stands for. Being no work, it then goes before all that is."""
        if (earlier := self._scheduler.tasks.get(key)) is not None:
            self._evict(earlier)  # of an earlier run of this id, see evict
        task = self._scheduler.new_task(key, _HELD_BACK, "released")
        self._spans.observe([task])
        task.priority = (-1_000, 0, 0)
        task.add_dependency(self._gate())
        self._scheduler.client_desires_keys([key], HOLDER)
        self._scheduler.transitions({key: "waiting"}, f"engine-hold-back-{time.time()}")

    def stand_for(self, key: str, given: Call | str) -> bool:
        """What was held back gives what this call gives, or this key; False where there is none of that."""
        task, needed = self._scheduler.tasks[key], []
        if isinstance(given, str):
            if (giver := self._scheduler.tasks.get(given)) is None:
                return False
            spec, needed = Task(key, pass_on, TaskRef(given)), [giver]
        else:
            spec = _task_of(key, given, encode_call(given))
        _turn_into(task, spec, needed)
        self._scheduler.transitions({key: "released"}, f"engine-stand-for-{time.time()}")
        return True

    def fail(self, key: str, error: Exception) -> None:
        """What was held back will have no value, because of this."""
        task = self._scheduler.tasks[key]
        task.exception, task.exception_text, task.exception_blame = pickle.dumps(error), repr(error), task
        self._scheduler.transitions({key: "erred"}, f"engine-fail-{time.time()}")

    def is_wanted(self, key: str) -> bool:
        """Whether anybody but us has the future of a task, or of what somebody else has put on top of it."""
        task = self._scheduler.tasks.get(key)
        if task is None:
            return False
        if any(not state.client_key.startswith(_OURS) for state in task.who_wants or ()):
            return True
        return any(run_of(str(dependent.key)) != run_of(key) for dependent in task.dependents)

    def cancel(self, keys: Iterable[str]) -> None:
        """Who waits for one of these elsewhere waits in vain: their futures, and all on top of them, are cancelled."""
        for key in keys:
            task = self._scheduler.tasks.get(key)
            if task is not None and task.state not in ("memory", "erred") and self.is_wanted(key):
                self._evict(task)

    def release(self, keys: Iterable[str]) -> None:
        """We want these no longer."""
        known = []
        for key in keys:
            self._turns.end(run_of(key) or key)
            if key in self._scheduler.tasks:
                known.append(key)
        if known:
            self._scheduler.client_releases_keys(known, HOLDER)

    def stop(self, keys: Iterable[str]) -> None:
        """Tell the workers that run these to stop them; which they do when they can."""
        by_worker: dict[str, list[str]] = {}
        for key in keys:
            task = self._scheduler.tasks.get(key)
            if task is not None and task.processing_on is not None:
                by_worker.setdefault(task.processing_on.address, []).append(key)
        for worker, stopped in by_worker.items():
            self._scheduler.worker_send(worker, {"op": "engine-stop", "keys": stopped})

    def evict(self, key: str) -> None:
        """Somebody outside has kept it from an earlier run of this id; where Dask has a result, it runs nothing."""
        task = self._scheduler.tasks.get(key)
        if task is not None and task.state in ("memory", "erred"):
            self._evict(task)

    def _evict(self, task: TaskState) -> None:
        for dependent in list(task.dependents):
            if dependent.state in ("memory", "erred"):
                _unlink(dependent, task)
            else:  # it waits for what will not be there: as long as it does, Dask keeps the old result
                self._evict(dependent)
        key = task.key
        for client in [state.client_key for state in task.who_wants or ()]:
            self._scheduler.client_releases_keys([key], client)
            comm = self._scheduler.client_comms.get(client)
            if comm is not None and not comm.closed():
                comm.send({"op": "cancelled-keys", "keys": [key]})
        if self._scheduler.tasks.get(key) is task and not task.waiters:
            self._scheduler.transitions({key: "forgotten"}, f"engine-evict-{time.time()}")


def pass_on(value: Any) -> Any:
    """What runs on a worker for a task that stands for another one."""
    return value


#: What is held back stands for until it is said: all for the same, because there may be many and it is never run.
_HELD_BACK = Task("engine-held-back", pass_on, TaskRef(_GATE))


def _task_of(key: str, call: Call, encoded: bytes) -> Task:
    run: Any = run_async_call if call.is_async else run_call
    return Task(key, run, encoded, *[TaskRef(needed) for needed in call.dependencies])


def _turn_into(task: TaskState, spec: Task, needed: Iterable[TaskState]) -> None:
    for before in list(task.dependencies):
        _unlink(task, before)
    task.run_spec = spec
    for dependency in needed:
        task.add_dependency(dependency)


def _unlink(task: TaskState, needed: TaskState) -> None:
    task.dependencies.discard(needed)
    needed.dependents.discard(task)
    if needed.waiters:
        needed.waiters.discard(task)
    if task.waiting_on:
        task.waiting_on.discard(needed)
