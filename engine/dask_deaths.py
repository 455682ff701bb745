"""What the end of a worker means for the tasks of our runs: which run again and say so, which lost results are left alone.

Runs inside the scheduler, in its event loop; with the other rooms of the cluster the only importer of distributed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from distributed import Scheduler
from distributed.scheduler import ClientState, TaskState

from engine.dask_graph import HOLDER, QUEUE_HOLDER, DaskGraph
from engine.dask_parcels import HeldParcels
from engine.executor import Call, Report, decode_call
from engine.hangs import Suspect, hung
from engine.states import Failure, State

#: The type of the error of a RETRYING that says so, and its reason.
WORKER_DIED = "WorkerDied"
REASON = "worker died"


class Death(msgspec.Struct, frozen=True):
    """A worker that the scheduler has just lost; nothing was done about its tasks yet."""

    worker: str
    #: Whether it said that it would go.
    is_expected: bool
    #: Keys that it ran or was to run, and keys whose only result was there.
    processing: frozenset[str]
    lost: frozenset[str]


def read_death(topic: str, message: Any) -> Death | None:
    """What an event in the scheduler's log says of a worker's end; None for every other event.

    It is logged after the worker has gone from the scheduler's books and before its tasks are given to others.
    """
    if topic != "all" or not isinstance(message, dict) or message.get("action") != "remove-worker":
        return None
    processing, lost = (_texts(message[name]) for name in ("processing-tasks", "lost-computed-tasks"))
    return Death(message["worker"], bool(message["expected"]), processing, lost)


def _texts(keys: Iterable[Any]) -> frozenset[str]:
    return frozenset(key for key in keys if isinstance(key, str))


def crashed(call: Call, task: TaskState, details: Mapping[str, Any]) -> Report:
    """The report for a task that Dask has given up, with what it says of it."""
    text = details.get("exception_text") or task.exception_text
    if text:
        failure = Failure(text.partition("(")[0], text, details.get("traceback_text") or "")
    else:  # what distributed gives up on after allowed-failures deaths has no text
        failure = Failure("KilledWorker", f"{task.suspicious} workers died while they ran it; see their logs")
    worker = str(details.get("worker") or "")
    return Report(call.run_id, call.index, State.CRASHED, call.attempt, 0.0, time.time(), worker, failure)


class Deaths:
    """Acts on the tasks of a worker that is gone."""

    def __init__(self, scheduler: Scheduler, graph: DaskGraph, parcels: HeldParcels) -> None:
        self._scheduler = scheduler
        self._graph = graph
        self._parcels = parcels
        #: Lost results that nobody needs, and who holds them for us: unwanted while Dask looks what it must make again.
        self._spared: list[tuple[TaskState, list[ClientState]]] = []
        #: Since when, by the clock that only goes on, each task is with a worker.
        self._given_at: dict[Any, float] = {}

    def note(self, key: Any, start: str, finish: str) -> None:
        """A task was given to a worker, or is no longer with one; called for every step that any task takes."""
        if finish == "processing":
            self._given_at[key] = time.monotonic()
        elif start == "processing":
            self._given_at.pop(key, None)

    def hear(self, death: Death, known_of: Callable[[str], Report | None]) -> list[Report]:
        """A worker is gone; answers what is to be told of that.

        ``known_of`` answers the latest report of a key, None for keys that are not ours.
        """
        if death.worker in self._scheduler.workers:
            return []  # whoever wrote that into the log of events
        self._spare(death, known_of)
        if death.is_expected:
            self._parcels.move(death.processing)
        hung = [] if death.is_expected else self._end_hung(death, known_of)
        return self._run_again(death, hung, known_of)

    def _end_hung(self, death: Death, known_of: Callable[[str], Report | None]) -> list[str]:
        """Of the attempts that the process was ended for another worker only says so, packed or not: their time was over.

        It is left to a worker because it depends on the task's policy, which it has and the scheduler has not, what comes next.
        """
        suspects: dict[str, tuple[Suspect, Call]] = {}
        now, clock = time.time(), time.monotonic()
        packed = self._parcels.suspects(death.processing, death.worker)
        places = taken = 0
        for key in death.processing:
            task = self._scheduler.tasks.get(key)
            if task is None or task.state != "processing":
                continue
            places = places or task.processing_on.nthreads
            call, known = self._graph.call_of(task), known_of(key)
            has_begun = known is not None and known.state is State.RUNNING and known.worker == death.worker
            if has_begun and task not in task.processing_on.long_running:
                taken += 1
            if call is not None and call.timeout_seconds is not None and call.hung is None:
                begun = now - known.started_at if known is not None and has_begun else None
                given = clock - self._given_at.get(key, clock)
                suspects[key] = Suspect(key, call.timeout_seconds, given, begun), call
        found = hung([*(suspect for suspect, _ in suspects.values()), *packed.values()], is_full=0 < places <= taken)
        if found:
            self._parcels.go_on(death.processing, found)
        ours = [key for key in found if key in suspects]
        for key in ours:
            suspect, call = suspects[key]
            seconds = suspect.given_seconds if suspect.begun_seconds is None else suspect.begun_seconds
            self._graph.replace(self._scheduler.tasks[key], msgspec.structs.replace(call, hung=(now - seconds, death.worker)))
        # It is known what the worker died of, so Dask need not count that against whoever was there.
        for key in death.processing if found else ():
            if (task := self._scheduler.tasks.get(key)) is not None and task.suspicious:
                task.suspicious -= 1
        return ours

    def _run_again(self, death: Death, hung: Sequence[str], known_of: Callable[[str], Report | None]) -> list[Report]:
        """Reports of the tasks that had begun there: they run again by themselves, and that is their next attempt."""
        told: list[Report] = []
        for key in death.processing.difference(hung):
            known, task = known_of(key), self._scheduler.tasks.get(key)
            if known is None or known.state is not State.RUNNING or known.worker != death.worker:
                continue  # it had not begun, or has said how it ended
            if task is None or task.state != "processing":
                continue  # given up: as many workers have died over it as may
            call = decode_call(task.run_spec.args[0])
            if not call.task or call.attempt != known.attempt:
                continue  # what puts a flow's result together is no task run of which anything is told
            again = msgspec.structs.replace(call, attempt=call.attempt + 1, deaths=call.deaths + 1)
            self._graph.replace(task, again)
            how = "left" if death.is_expected else "died or was lost"
            failure = Failure(WORKER_DIED, f"the worker {death.worker} {how} while it ran this attempt; another one follows")
            details = {"state": State.RETRYING, "at": time.time(), "error": failure, "remark": REASON}
            told.append(msgspec.structs.replace(known, **details))
        return told

    def _spare(self, death: Death, known_of: Callable[[str], Report | None]) -> None:
        """Results that were there alone and that nobody needs now are not made again: who comes to need one makes it."""
        for key in death.lost:
            known, task = known_of(key), self._scheduler.tasks.get(key)
            if known is None or known.state is not State.COMPLETED:
                continue  # its report was lost with it: only when it is made again the engine hears of its end
            if task is None or task.waiters or not task.who_wants or not all(map(_is_keeper, task.who_wants)):
                continue  # a task waits for it, or somebody has its future
            keepers = list(task.who_wants)
            for keeper in keepers:
                task.who_wants.discard(keeper)
                keeper.wants_what.discard(task)
            self._spared.append((task, keepers))

    def settle(self) -> None:
        """Dask has given everything else away: what was spared is held again, so that it goes when its run is released."""
        spared, self._spared = self._spared, []
        for task, keepers in spared:
            if self._scheduler.tasks.get(task.key) is not task:
                continue
            task.who_wants = {*keepers, *(task.who_wants or ())}
            for keeper in keepers:
                keeper.wants_what.add(task)


def _is_keeper(client: ClientState) -> bool:
    """Whether it only keeps what runs have: all of it, or for a Queue nobody may ever ask."""
    key: str = client.client_key
    return key == HOLDER or key.startswith(QUEUE_HOLDER)
