"""Parcels as Dask's scheduler has them: which packed runs are under way, and what they came to, until their engine lets go.

Runs inside the scheduler, in its event loop. A run that is under way or has ended is not run again for another owner.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec
from dask._task_spec import Task, TaskRef
from distributed import Scheduler

from engine.dask_graph import DaskGraph
from engine.dask_names import Names
from engine.executor import key_of
from engine.hangs import Suspect
from engine.parcels import (
    MAX_SPARED,
    Hung,
    Outcome,
    Parcel,
    Timed,
    decode_hung,
    decode_parcel,
    decode_timed,
    encode_outcomes,
    encode_parcel,
)
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


class _At(msgspec.Struct, frozen=True):
    """Where a parcel is."""

    worker: str
    number: int
    #: Attempts with a deadline that are under way, and since when by the clock that only goes on.
    since: dict[Timed, float]


_NOWHERE = _At("", 0, {})


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
        scheduler.handlers["engine_note"] = self.note
        self._runs: dict[str, _Packed] = {}
        #: Runs of each parcel under way.
        self._parcels: dict[str, tuple[str, ...]] = {}
        #: Where parcels are, as far as that was noted.
        self._at: dict[str, _At] = {}
        #: Parcels whose end is not to be laid to what is left of them, and attempts that hung.
        self._again: dict[str, list[Hung]] = {}

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
        self._begin(decoded, parcel)

    def _begin(self, parcel: Parcel, encoded: bytes) -> None:
        key = key_of_parcel(parcel)
        for run in parcel.runs:
            self._runs[run.run_id].key = self._runs[run.run_id].home = key
        self._parcels[key] = tuple(run.run_id for run in parcel.runs)
        self._graph.create_task(key, Task(key, run_packed, key, encoded), parcel.flow)
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

    async def note(self, worker: str, key: str, timed: bytes, number: int) -> None:
        """Where a parcel is; its worker may wait for the answer. One that another has overtaken does not count."""
        known = self._at.get(key)
        if known is None or known.worker != worker:
            known = _At(worker, 0, {})
        if key in self._parcels and number > known.number:
            now = time.monotonic()
            self._at[key] = _At(worker, number, {one: known.since.get(one, now) for one in decode_timed(timed)})

    def hear_stuck(self, worker: str, key: str, hung: bytes, at: float) -> None:
        """Code of a run cannot be stopped: its worker, by whose clock it is ``at``, gives the parcel up next, and ends."""
        if key in self._parcels:
            behind = time.time() - at
            stuck = [msgspec.structs.replace(one, started_at=one.started_at + behind) for one in decode_hung(hung)]
            self._again.setdefault(key, []).extend(stuck)

    def suspects(self, keys: Iterable[str], worker: str) -> dict[str, Suspect]:
        """The attempts of these parcels that were under way when their worker died, by a name for each."""
        now = time.monotonic()
        found: dict[str, Suspect] = {}
        for key in keys:
            at = self._at.get(key, _NOWHERE)
            for timed, since in at.since.items() if at.worker == worker else ():
                name = _name_of(key, timed)
                found[name] = Suspect(name, timed.timeout_seconds, now - since, now - since)
        return found

    def go_on(self, keys: Iterable[str], found: Collection[str]) -> None:
        """These died with their worker, of which it is known that it was ended for the attempts ``found``, here or elsewhere.

        Dask gives them up, which is heard of next; what is left of them runs again, and nobody counts that.
        """
        now = time.monotonic()
        for key in keys:
            if key in self._parcels:
                since_of = self._at.get(key, _NOWHERE).since
                hung = [(timed, now - since) for timed, since in since_of.items() if _name_of(key, timed) in found]
                again = [Hung(timed, time.time() - seconds, "ended") for timed, seconds in hung]
                self._again.setdefault(key, []).extend(again)

    def move(self, keys: Iterable[str]) -> None:
        """The worker of these leaves, and Dask gives them to another one: without the runs that have ended."""
        for key in keys:
            task, runs = self._graph.get(key), self._parcels.get(key, ())
            left = {run_id for run_id in runs if (known := self._runs.get(run_id)) and (known.key == key or known.stays)}
            if task is None or task.state != "processing" or len(left) == len(runs):
                continue
            parcel = decode_parcel(task.run_spec.args[1])
            parcel = msgspec.structs.replace(parcel, runs=tuple(run for run in parcel.runs if run.run_id in left))
            task.run_spec = Task(key, run_packed, key, encode_parcel(parcel))

    def ended(self, key: str, reason: str, has_values: bool) -> None:
        """A parcel is over; the runs of it that have no outcome died with their worker, or could not begin."""
        left: list[str] = []
        runs = self._parcels.pop(key, ())
        hung = self._again.pop(key, None)
        self._at.pop(key, None)
        if has_values:
            self._share(key, runs)
        for run_id in runs:
            known = self._runs.get(run_id)
            if known is not None and known.keep_seconds is not None:
                self._forget(run_id, known, known.keep_seconds)
            elif known is not None and known.key == key:
                known.key = ""
                left.append(run_id)
        if left and (hung is None or not self._begin_again(key, left, hung)):
            self._tell_died(left, reason)
        self._graph.release([key])

    def _begin_again(self, key: str, left: Collection[str], hung: Collection[Hung]) -> bool:
        task = self._graph.get(key)
        parcel = None if task is None else decode_parcel(task.run_spec.args[1])
        if parcel is None or (not hung and parcel.spared >= MAX_SPARED):
            return False
        again = msgspec.structs.replace(
            parcel,
            parcel_id=os.urandom(16).hex(),  # of the old one Dask knows that it failed
            runs=tuple(run for run in parcel.runs if run.run_id in left),
            is_suspect=True,
            hung=tuple(one for one in (*parcel.hung, *hung) if one.attempt.run_id in left),
            spared=parcel.spared + (not hung),
        )
        self._begin(again, encode_parcel(again))
        return True

    def _tell_died(self, run_ids: Iterable[str], reason: str) -> None:
        died: dict[tuple[str, int], list[str]] = {}
        for run_id in run_ids:
            died.setdefault(self._runs[run_id].slot, []).append(run_id)
        for slot, own in died.items():
            self._tell(slot, {"died": own, "reason": reason})

    def runs_of(self, slot: tuple[str, int]) -> list[str]:
        """The runs of a partition that nobody has let go yet."""
        return [run_id for run_id, known in self._runs.items() if known.slot == slot]

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


def _name_of(key: str, timed: Timed) -> str:
    return f"{key}/{timed.run_id}/{timed.index}"


def _kept_key(run_id: str) -> str:
    return key_of("", run_id, "result")
