"""Parcels: many small runs that travel to a worker together, how many go at a time, and what a dead worker leaves; pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from engine.states import Failure, State, utc

#: No parcel has more runs: what a worker death puts in doubt, and what waits for the parcel's last run, stay small.
MAX_RUNS = 256
#: A parcel should take a worker no longer than this.
BUDGET_SECONDS = 0.05
#: What a parcel itself costs scheduler and worker: less work than this is not worth one of its own.
WORTH_SECONDS = 0.002
#: What a run is taken to last before one was measured: long enough that a flow of slow runs is not sent in one piece.
FIRST_GUESS_SECONDS = 0.005
#: A run whose worker has died so often, with no other run of its parcel left, ends CRASHED.
MAX_DEATHS = 3
#: So many deaths of its worker may be laid to others, then one counts. Else what holds the interpreter without a deadline would
#: go on for ever, and end those beside it that have one.
MAX_SPARED = 3
#: How much one measured run counts against all before it.
_WEIGHT = 0.02


class PackedRun(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A flow run as a worker needs it."""

    run_id: str
    #: A JSON object keyed by the flow's parameter names.
    parameters: bytes
    #: The run's span, parent of its tasks'.
    traceparent: str
    #: Seconds since the epoch.
    scheduled_at: float
    #: 1 for the first try, one more whenever it comes again after RETRYING.
    attempt: int = 1
    #: What earlier tries have finished (Outcome.memo); opaque to everyone but workers, and never on Kafka.
    memo: bytes = b""


class Timed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An attempt at a task with a deadline, in a packed run."""

    run_id: str
    #: As in TaskOutcome.
    index: str
    task: str
    attempt: int
    timeout_seconds: float


class Hung(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An attempt whose code could not be stopped when its time was over, and whose worker process is no more: it has failed."""

    attempt: Timed
    #: Seconds since the epoch.
    started_at: float
    #: See TaskTimeout.
    how: str
    #: Where its code was, as far as that is known.
    stack: str = ""


class Parcel(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Runs of one flow that one Dask task executes, one after the other."""

    parcel_id: str
    flow: str
    #: Where the worker finds the Flow: ``module:qualname``.
    reference: str
    runs: tuple[PackedRun, ...]
    inline_result_bytes: int
    #: The app whose result store takes what does not travel; the empty text where there is none.
    store: str = ""
    #: Whether a worker has died over it: it is to be known of all its attempts with a deadline that they are under way.
    is_suspect: bool = False
    #: Attempts of its runs that are not made again, because they are known to have hung.
    hung: tuple[Hung, ...] = ()
    #: How many deaths of its worker were laid to others.
    spared: int = 0


class TaskOutcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one task of a packed run, on the worker."""

    task: str
    #: Its place in the order of calls.
    index: str
    state: State
    attempt: int
    #: Seconds since the epoch; 0 where it never began.
    started_at: float = 0.0
    ended_at: float = 0.0
    error: Failure | None = None


class TaskEntry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The same as it stands in ``tasks`` of the run's end."""

    task: str
    index: str
    state: State
    attempt: int
    started_at: datetime | None = None
    ended_at: datetime | None = None
    #: Without the traceback where it is that of the run, too.
    error: Failure | None = None


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one try of a packed run: COMPLETED, FAILED or RETRYING."""

    run_id: str
    #: That of the PackedRun it answers.
    attempt: int
    state: State
    #: Seconds since the epoch on the worker's clock.
    started_at: float
    ended_at: float
    #: The encoded result, where it is small enough; else ``kept`` says why it did not travel.
    result: bytes | None = None
    kept: str | None = None
    #: Where the result store has it.
    stored: str | None = None
    error: Failure | None = None
    #: Encoded on the worker, a JSON array of TaskEntry: goes into the state change as it is.
    tasks: bytes = b"[]"
    #: Of RETRYING: when it is to come again, and with what.
    wait_seconds: float = 0.0
    memo: bytes = b""


#: As they travel between engine and worker.
encode_parcel = msgspec.msgpack.Encoder().encode
decode_parcel = msgspec.msgpack.Decoder(Parcel).decode
encode_outcomes = msgspec.msgpack.Encoder().encode
decode_outcomes = msgspec.msgpack.Decoder(list[Outcome]).decode
encode_timed = msgspec.msgpack.Encoder().encode
decode_timed = msgspec.msgpack.Decoder(tuple[Timed, ...]).decode
encode_hung = msgspec.msgpack.Encoder().encode
decode_hung = msgspec.msgpack.Decoder(list[Hung]).decode
decode_tasks = msgspec.json.Decoder(list[TaskEntry]).decode
encode_entries = msgspec.json.Encoder().encode
_moment = datetime.fromtimestamp


def encode_tasks(tasks: Iterable[TaskOutcome]) -> bytes:
    """A JSON array of TaskEntry."""
    return encode_entries([_entry(task) for task in tasks])


def _entry(task: TaskOutcome) -> TaskEntry:
    if not task.started_at:
        return TaskEntry(task.task, task.index, task.state, task.attempt, None, None, task.error)
    started_at, ended_at = _moment(task.started_at, UTC), _moment(task.ended_at, UTC)
    if not (started_at.microsecond and ended_at.microsecond):  # seldom: encoders leave an all-zero fraction out
        started_at, ended_at = utc(task.started_at), utc(task.ended_at)
    return TaskEntry(task.task, task.index, task.state, task.attempt, started_at, ended_at, task.error)


class Sizing:
    """How many ready runs of one flow go into the next parcels. A single event on an idle cluster goes at once, alone."""

    __slots__ = ("_has_measured", "run_seconds")

    def __init__(self) -> None:
        #: How long a run takes: an exponentially weighted mean.
        self.run_seconds = FIRST_GUESS_SECONDS
        self._has_measured = False

    @property
    def limit(self) -> int:
        """How many runs a parcel may have now."""
        return max(1, min(MAX_RUNS, int(BUDGET_SECONDS / self.run_seconds)))

    def learn(self, runs: int, seconds: float) -> None:
        """``runs`` of the flow have taken a worker ``seconds`` altogether."""
        if runs <= 0 or not math.isfinite(seconds):
            return
        mean = max(seconds / runs, 1e-6)
        weight = 1.0 - (1.0 - _WEIGHT) ** runs if self._has_measured else 1.0
        self.run_seconds += (mean - self.run_seconds) * weight
        self._has_measured = True

    def plan(self, ready: int, under_way: int, slots: int) -> list[int]:
        """Sizes of the parcels to send now, of ``ready`` runs, with ``under_way`` parcels of it on its ``slots`` threads.

        Free slots share what is ready. While all are busy runs accumulate: only parcels that are at least half full wait at the
        workers, one for each slot, so that none falls idle when there is much to do.
        """
        slots = max(1, slots)
        limit = self.limit
        sizes: list[int] = []
        if (free := min(slots - under_way, ready)) > 0:
            worth = math.ceil(ready * self.run_seconds / WORTH_SECONDS)
            parcels = min(free, max(1, worth, math.ceil(ready / limit)))
            going = min(ready, parcels * limit)
            small, larger = divmod(going, parcels)
            sizes = [small + 1] * larger + [small] * (parcels - larger)
            ready -= going
        room = 2 * slots - under_way - len(sizes)
        while room > 0 and ready > 0 and ready >= limit // 2:
            sizes.append(min(limit, ready))
            ready -= sizes[-1]
            room -= 1
        return sizes


class Verdict(msgspec.Struct, frozen=True):
    """What follows from a worker's death."""

    #: Outcomes that count, heard of before it died.
    finished: list[Outcome]
    #: To be sent now.
    parcels: list[Parcel]
    #: Runs that end CRASHED.
    crashed: list[PackedRun]


class Parcels:
    """The parcels under way. Whatever happens to workers, each run gets one outcome that counts, or crashes."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        #: Parcels, and their runs that have no outcome yet.
        self._parcels: dict[str, tuple[Parcel, dict[str, PackedRun]]] = {}
        #: Where a run is.
        self._places: dict[str, str] = {}
        self._deaths: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._parcels)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._places

    def by_flow(self) -> Counter[str]:
        """How many parcels of each flow are under way."""
        return Counter(parcel.flow for parcel, _ in self._parcels.values())

    def pack(self, flow: str, reference: str, runs: Iterable[PackedRun], inline_result_bytes: int, store: str = "") -> Parcel:
        """A new parcel, from now on under way. A run must not be in another one."""
        return self._add(Parcel(self._new_id(), flow, reference, tuple(runs), inline_result_bytes, store))

    def done(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Outcomes were heard, of a whole parcel or a part, perhaps twice or late; answers those that count."""
        counting: list[Outcome] = []
        for outcome in outcomes:
            place = self._places.get(outcome.run_id)
            if place is None:
                continue
            _, left = self._parcels[place]
            if left[outcome.run_id].attempt == outcome.attempt:
                self._forget(outcome.run_id)
                counting.append(outcome)
        return counting

    def died(self, parcel_id: str, finished: Sequence[Outcome] = ()) -> Verdict:
        """The worker died over a parcel: what has no outcome is sent again in halves, until the culprit is alone."""
        verdict = Verdict(self.done(finished), [], [])
        if parcel_id not in self._parcels:
            return verdict  # all was heard of before, or it was split already
        parcel, left = self._parcels.pop(parcel_id)
        runs = tuple(left.values())
        if len(runs) > 1:
            middle = (len(runs) + 1) // 2
            verdict.parcels.extend(self._send_again(parcel, half, is_suspect=True) for half in (runs[:middle], runs[middle:]))
            return verdict
        [run] = runs
        deaths = self._deaths[run.run_id] = self._deaths.get(run.run_id, 0) + 1
        if deaths < MAX_DEATHS:
            verdict.parcels.append(self._send_again(parcel, runs, is_suspect=True))
        else:
            del self._places[run.run_id], self._deaths[run.run_id]
            verdict.crashed.append(run)
        return verdict

    def is_under_way(self, parcel_id: str) -> bool:
        """Whether a parcel has runs without an outcome."""
        return parcel_id in self._parcels

    def holding(self, run_ids: Iterable[str]) -> list[str]:
        """The parcels under way in which these runs are, each once."""
        return list(dict.fromkeys(self._places[run_id] for run_id in run_ids if run_id in self._places))

    def again(self, parcel_id: str) -> list[Parcel]:
        """A parcel was not taken: what is left of it, to be sent again."""
        if parcel_id not in self._parcels:
            return []
        parcel, left = self._parcels.pop(parcel_id)
        return [self._send_again(parcel, tuple(left.values()))]

    def resubmit(self) -> list[Parcel]:
        """The cluster has lost everything: what has no outcome yet, to be sent again."""
        parcels = list(self._parcels.values())
        self._parcels.clear()
        return [self._send_again(parcel, tuple(left.values())) for parcel, left in parcels]

    def drop(self, run_ids: Iterable[str]) -> None:
        """These runs are not ours any more: what is heard of them does not count."""
        for run_id in run_ids:
            if run_id in self._places:
                self._forget(run_id)

    def _send_again(self, parcel: Parcel, runs: tuple[PackedRun, ...], *, is_suspect: bool = False) -> Parcel:
        # Under a new id: of the old one Dask remembers that it failed, and a late word of it must not be taken for this one's.
        is_suspect = is_suspect or parcel.is_suspect
        return self._add(msgspec.structs.replace(parcel, parcel_id=self._new_id(), runs=runs, is_suspect=is_suspect))

    def _add(self, parcel: Parcel) -> Parcel:
        self._parcels[parcel.parcel_id] = (parcel, {run.run_id: run for run in parcel.runs})
        for run in parcel.runs:
            self._places[run.run_id] = parcel.parcel_id
        return parcel

    def _forget(self, run_id: str) -> None:
        place = self._places.pop(run_id)
        self._deaths.pop(run_id, None)
        _, left = self._parcels[place]
        del left[run_id]
        if not left:
            del self._parcels[place]
