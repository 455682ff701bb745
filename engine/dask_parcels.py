"""Parcels as Dask's scheduler has them: which packed runs are under way, and what they came to, until their engine lets go.

Runs inside the scheduler, in its event loop. A run that is under way or has ended is not run again for another owner.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
from dask._task_spec import Task, TaskRef
from distributed import Scheduler

from engine.dask_graph import DaskGraph
from engine.dask_names import Names
from engine.executor import key_of
from engine.parcels import Outcome, Parcel, decode_parcel, encode_outcomes, encode_parcel
from engine.reporter import run_packed, take_kept


class _Packed:
    """A packed run that the scheduler knows of."""

    __slots__ = ("attempt", "home", "is_kept", "keep_seconds", "key", "outcome", "slot")

    def __init__(self, slot: tuple[str, int]) -> None:
        self.slot = slot
        self.attempt = 0
        #: The parcel it is in; empty while it is in none.
        self.key = ""
        #: The parcel it is or was in: where its result is, if that stays on the cluster.
        self.home = ""
        self.outcome: Outcome | None = None
        #: Whether its result stays on the cluster.
        self.is_kept = False
        #: Set where it was let go before its parcel was over: how long its result stays.
        self.keep_seconds: float | None = None

    @property
    def stays(self) -> bool:
        """Whether it has a result that neither travelled nor was stored."""
        return self.outcome is not None and self.outcome.kept is not None and self.outcome.stored is None


class HeldParcels:
    """The packed runs of all apps."""

    def __init__(
        self,
        scheduler: Scheduler,
        graph: DaskGraph,
        names: Names,
        tell: Callable[[tuple[str, int], dict[str, Any]], None],
    ) -> None:
        """``tell`` sends a message to the engine that owns a partition."""
        self._scheduler = scheduler
        self._graph = graph
        self._names = names
        self._tell = tell
        self._runs: dict[str, _Packed] = {}
        #: Runs of each parcel under way.
        self._parcels: dict[str, tuple[str, ...]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._parcels

    def __len__(self) -> int:
        return len(self._runs)

    def slot_of(self, run_id: str) -> tuple[str, int]:
        """The partition of a run; none that is where the run is not known."""
        known = self._runs.get(run_id)
        return ("", -1) if known is None else known.slot

    def send(self, parcel: bytes, slots: Sequence[tuple[str, int]]) -> None:
        """Run these runs, whose partitions are ``slots``, but for those that are under way or have an outcome."""
        decoded = decode_parcel(parcel)
        fresh = []
        for run, slot in zip(decoded.runs, slots, strict=True):
            known = self._runs.get(run.run_id)
            if known is None:
                known = self._runs[run.run_id] = _Packed(slot)
            known.slot = slot
            if known.outcome is not None and known.outcome.attempt >= run.attempt:
                self._tell(slot, {"outcomes": encode_outcomes([known.outcome])})
            elif not known.key:
                known.attempt, known.outcome = run.attempt, None
                fresh.append(run)
        if not fresh:
            return
        if len(fresh) < len(decoded.runs):
            decoded = msgspec.structs.replace(decoded, runs=tuple(fresh))
            parcel = encode_parcel(decoded)
        key = key_of_parcel(decoded)
        for run in fresh:
            self._runs[run.run_id].key = self._runs[run.run_id].home = key
        self._parcels[key] = tuple(run.run_id for run in fresh)
        self._graph.create_task(key, Task(key, run_packed, key, parcel), decoded.flow)
        # Dask would run it again as it is; at the first death of its worker it is ours to say what of it is.
        self._scheduler.tasks[key].suspicious = self._scheduler.allowed_failures

    def hear(self, outcomes: Sequence[Outcome]) -> None:
        """Runs of a parcel have ended, on a worker."""
        by_slot: dict[tuple[str, int], list[Outcome]] = {}
        for outcome in outcomes:
            known = self._runs.get(outcome.run_id)
            if known is not None and known.attempt == outcome.attempt:
                known.outcome, known.key = outcome, ""
                by_slot.setdefault(known.slot, []).append(outcome)
        for slot, own in by_slot.items():
            self._tell(slot, {"outcomes": encode_outcomes(own)})

    def ended(self, key: str, reason: str, has_values: bool) -> None:
        """A parcel is over; the runs of it that have no outcome died with their worker, or could not begin."""
        died: dict[tuple[str, int], list[str]] = {}
        runs = self._parcels.pop(key, ())
        if has_values:
            self._share(key, runs)
        for run_id in runs:
            known = self._runs.get(run_id)
            if known is not None and known.keep_seconds is not None:
                self._forget(run_id, known, known.keep_seconds)
            elif known is not None and known.key == key:
                known.key = ""
                died.setdefault(known.slot, []).append(run_id)
        for slot, run_ids in died.items():
            self._tell(slot, {"died": run_ids, "reason": reason})
        self._graph.release([key])

    def release(self, run_ids: Sequence[str], keep_seconds: float, slots: Collection[tuple[str, int]]) -> None:
        """The ends of these runs are on the state topic: results that did not travel go after ``keep_seconds``.

        Only those of the partitions ``slots``, which the engine that says so owns: others need the outcome still, to tell it.
        """
        for run_id in run_ids:
            known = self._runs.get(run_id)
            if known is None or known.slot not in slots:
                continue
            if known.stays and known.home in self._parcels:
                known.keep_seconds = keep_seconds  # its result becomes a value of its own when the parcel is over
            else:
                self._forget(run_id, known, keep_seconds)

    def _forget(self, run_id: str, known: _Packed, keep_seconds: float) -> None:
        del self._runs[run_id]
        if known.is_kept:
            self._scheduler.loop.call_later(keep_seconds, self._let_go, run_id)

    def cancel(self, run_ids: Sequence[str], slots: Collection[tuple[str, int]]) -> None:
        """These runs are over: the worker that has them begins them no more. Only those of the partitions ``slots``."""
        by_worker: dict[str, list[str]] = {}
        for run_id in run_ids:
            known = self._runs.get(run_id)
            if known is None or known.slot not in slots:
                continue
            task = self._scheduler.tasks.get(known.key)
            if task is not None and task.processing_on is not None:
                by_worker.setdefault(task.processing_on.address, []).append(run_id)
        for worker, stopped in by_worker.items():
            self._scheduler.worker_send(worker, {"op": "engine-stop", "packed": stopped})

    def _share(self, key: str, run_ids: Sequence[str]) -> None:
        """Results that neither travelled nor were stored become values of their own, to be had by their runs' names."""
        kept = [run_id for run_id in run_ids if (known := self._runs.get(run_id)) is not None and known.stays]
        if kept:
            graph = {_kept_key(run_id): Task(_kept_key(run_id), take_kept, TaskRef(key), run_id) for run_id in kept}
            self._graph.take_first(graph)
            for run_id in kept:
                self._runs[run_id].is_kept = True
                self._names.share(run_id, _kept_key(run_id))

    def _let_go(self, run_id: str) -> None:
        self._names.drop_variable(run_id)
        self._graph.release([_kept_key(run_id)])


def key_of_parcel(parcel: Parcel) -> str:
    """The key of a parcel on the cluster. Beginning with the flow's name it shares a group on Dask's scheduler."""
    return f"{parcel.flow}-{parcel.parcel_id}-0"


def _kept_key(run_id: str) -> str:
    return key_of("", run_id, "result")
