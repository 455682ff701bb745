"""The contract with what runs tasks: calls go in, reports come out.

``engine.cluster`` fulfils it on Dask, ``engine.inline`` in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from engine.parcels import Outcome, Parcel
from engine.run_logs import LogMail
from engine.states import Failure, State, later, utc

#: A place in a call's arguments: (VALUE, n, 0) is its n-th dependency, (LIST, n, m) those from n up to m, (ITEM, n, i)
#: element i of its n-th dependency.
Place = tuple[int, int, int]
VALUE, LIST, ITEM = 0, 1, 2


#: The index of a run's final future, where that is none of its calls'.
FINAL = "final"
#: Stands in the metadata of a Dask scheduler that can be asked how many tasks wait, because an engine has connected to it.
HAS_COUNTS = "engine-has-counts"
#: What the states say of a task whose value was in the result store already.
TAKEN = "taken from the result store"


class Call(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One task of a run, ready to be submitted. It travels to the worker whole."""

    #: "3": the third after the first call of the flow. "3.17": element 17 of the map that is that call. 16 hex digits: a
    #: task that another one has started. With the run's id it makes the task's key.
    index: str
    #: Name of the task; the empty text for the step that puts a flow's result together.
    task: str
    #: Where the worker finds the function: ``module:qualname``.
    function: str
    flow: str
    run_id: str
    #: Pickled ``(args, kwargs)``, with a persistent id for each result of another call (engine.arguments).
    arguments: bytes
    #: Keys of the calls whose results it takes.
    dependencies: tuple[str, ...]
    #: What the persistent ids stand for; empty where each is the dependency of that number.
    places: tuple[Place, ...]
    attempt: int
    #: Depth in the graph: the deeper, the sooner, so that a started pipeline is finished before the next begins.
    depth: int
    is_async: bool
    #: Whether the value is sent back with the report: the flow's result, or what an async flow may look at.
    returns: bool
    #: Whether the value is the flow's result.
    is_final: bool
    inline_result_bytes: int
    timeout_seconds: float | None
    #: The span that the attempt's is a child of; and when the task was scheduled (seconds since the epoch).
    traceparent: str
    scheduled_at: float
    #: Whether other calls take its value, which may have to travel to their worker.
    is_taken: bool = False
    #: Whether a map waits to know how many elements its value has.
    is_walked: bool = False
    #: Whether the value is to be put into the result store, and taken from there.
    persist: bool = False
    #: The app whose result store it is; the empty text where there is none.
    store: str = ""
    map_index: int | None = None
    #: The index of the task that started it; the empty text for the flow's own calls.
    spawned_by: str = ""
    #: How many attempts before this one ended with their worker: what they have started is found again, not made anew.
    deaths: int = 0
    #: Another run whose stored value of this call may stand for its own, and how many attempts its flow had.
    reuse: tuple[str, int] | None = None
    #: Where the attempt's time was over in a process that did not get on and was ended for it: when it began, and on which
    #: worker. It is only reported then.
    hung: tuple[float, str] | None = None

    @property
    def key(self) -> str:
        """The key on the cluster: deterministic, so that a second owner finds what the first one submitted."""
        return key_of(self.task, self.run_id, self.index)

    def at_attempt(self, attempt: int) -> Call:
        """The same call for that attempt."""
        return self if self.attempt == attempt else msgspec.structs.replace(self, attempt=attempt)

    @property
    def has_news(self) -> bool:
        """Whether its end is only complete with something about its value."""
        return self.returns or self.is_walked


class Submission(msgspec.Struct, frozen=True):
    """Calls of one run that are to be submitted together."""

    run_id: str
    partition: int
    epoch: int
    calls: tuple[Call, ...]
    #: Whether it is this owner's first of the run: what the cluster has heard of it is told again.
    is_anew: bool = False
    #: Whether its flow may be tried again: then no call of this attempt is sure to give the run's result.
    is_tried_again: bool = False


class RunEnd(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a run has ended, for whoever has its final future; where it says nothing, its final call gives the result."""

    #: Why it has no result, and whether that is the infrastructure's fault.
    error: Failure | None = None
    is_crash: bool = False
    #: What gives the result where no call of the run did.
    result: Call | None = None


class Report(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of an attempt: RUNNING, COMPLETED, FAILED (user code) or CRASHED (the infrastructure).

    RETRYING: its worker died, and the cluster runs the next attempt by itself.
    """

    run_id: str
    index: str
    state: State
    attempt: int
    #: Seconds since the epoch on the worker's clock; 0 where it never began.
    started_at: float
    at: float
    worker: str
    error: Failure | None = None
    #: A failed attempt with another one to come: after how long. The call waits on the cluster until it is submitted again.
    retry_in_seconds: float | None = None
    #: The encoded value of a call that returns, where it is small enough.
    result: bytes | None = None
    #: Why the value of a call that returns did not travel: "too large" or "not encodable: …".
    kept: str | None = None
    #: Where the result store has the value.
    stored: str | None = None
    #: How many elements the value of a call that is walked has.
    length: int | None = None
    #: Indices of the children whose results its value waits for.
    tail: tuple[str, ...] = ()
    #: What puts the value together once they are there; between worker and scheduler alone.
    continuation: Call | None = None
    #: Indices of the children whose failure it was told of: it has dealt with them.
    handled: tuple[str, ...] = ()
    #: Tasks that it has just started.
    spawned: tuple[Call, ...] = ()
    #: Something the states should say of the end, e.g. that a worker had to be restarted.
    remark: str | None = None

    @property
    def is_urgent(self) -> bool:
        """Whether somebody may wait for it: it must be heard before the cluster itself hears of the end."""
        return self.error is not None or self.continuation is not None or self.has_value

    @property
    def is_retried(self) -> bool:
        """Whether the attempt is over and another one follows."""
        return self.state is State.RETRYING or self.retry_in_seconds is not None

    @property
    def next_attempt_at(self) -> datetime | None:
        """When the wait before the next attempt is over; None where nobody waits for it."""
        return None if self.retry_in_seconds is None else later(utc(self.at), self.retry_in_seconds)

    @property
    def has_value(self) -> bool:
        """Whether it says something of the call's value."""
        return not (self.result is None and self.kept is None and self.stored is None and self.length is None)


#: Reports as they travel from worker to scheduler to engine, and calls the other way.
encode_reports = msgspec.msgpack.Encoder().encode
decode_reports = msgspec.msgpack.Decoder(list[Report]).decode
encode_end = msgspec.msgpack.Encoder().encode
decode_end = msgspec.msgpack.Decoder(RunEnd).decode
encode_call = msgspec.msgpack.Encoder().encode
decode_call = msgspec.msgpack.Decoder(Call).decode


class Listener(Protocol):
    """Who hears what becomes of what was submitted, on the event loop."""

    def on_reports(self, reports: Sequence[Report]) -> None:
        """News of calls."""
        ...

    def on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Packed runs have ended, or wait for another try."""
        ...

    def on_deaths(self, run_ids: Sequence[str], reason: str) -> None:
        """These packed runs have no outcome, because the worker that had them died."""
        ...

    def on_refused(self, parcel_id: str) -> None:
        """A parcel was not taken, because somebody else owns a partition of one of its runs now."""
        ...

    def on_reset(self) -> None:
        """Everything submitted was lost and must be submitted again."""
        ...


class Executor(Protocol):
    """Runs submissions. Its methods but start, fetch and close never wait."""

    #: Empty while it can take submissions; otherwise why not.
    trouble: str
    #: How many calls can run at a time, as far as it is known.
    slots: int
    #: Takes what tasks log, on the event loop; set before ``start``. Lines may be lost, and are never worth waiting for.
    on_logs: Callable[[Sequence[LogMail]], None]

    async def start(self, listener: Listener) -> None:
        """Connect. Raises DaskUnavailable."""
        ...

    def own(self, partition: int, epoch: int) -> None:
        """From now on this process drives the runs of ``partition``: older epochs' submissions are refused."""
        ...

    async def held(self, partition: int, epoch: int) -> list[str]:
        """The runs of a partition that the cluster holds; none where ``epoch`` is not the latest. Raises DaskUnavailable."""
        ...

    def submit(self, submissions: Sequence[Submission]) -> None:
        """Submit all in one message. What the cluster has already is attached to, not run again.

        With a run's first submission, which may be without calls, its final future is there for whoever asks.
        A call that waits for its next attempt is run when it is submitted with a higher attempt than before.
        """
        ...

    def release(self, run_id: str, keep_seconds: float, end: RunEnd | None = None) -> None:
        """The run's end is safely on the state topic: its results may go, after ``keep_seconds``."""
        ...

    def cancel(self, run_id: str) -> None:
        """The run is over, whatever its tasks are at: stop those that run, forget the others, let all of it go."""
        ...

    def cancel_packed(self, run_ids: Sequence[str]) -> None:
        """These packed runs are over: those that no worker has begun are not begun."""
        ...

    def send(self, parcel: Parcel, owners: Sequence[tuple[int, int]]) -> None:
        """Run a parcel; ``owners`` are partition and epoch of each of its runs. What is under way is attached to."""
        ...

    def release_parcels(self, run_ids: Sequence[str], keep_seconds: float) -> None:
        """The ends of these packed runs are safely on the state topic: results on the cluster go after ``keep_seconds``."""
        ...

    async def fetch(self, call: Call) -> Any:
        """The value of a call that has completed. Raises LookupError where it is lost."""
        ...

    async def close(self) -> None:
        """Disconnect. What was submitted goes on."""
        ...


def key_of(task: str, run_id: str, index: str) -> str:
    """Key of a call on the cluster. Beginning with the task's name it shares a group on Dask's scheduler."""
    return f"{task or 'result'}-{run_id}-{index}"


def run_of(key: str) -> str | None:
    """The run that a key belongs to; None for keys that are not ours."""
    parts = key.rsplit("-", 2)
    return parts[1] if len(parts) == 3 and len(parts[1]) == 32 else None


def index_of(key: str) -> str:
    """The index of the call that a key of ours belongs to."""
    return key.rpartition("-")[2]


def values_at(places: Sequence[Place], results: Sequence[Any]) -> Sequence[Any]:
    """What stands at each place of a call's arguments, given the results of its dependencies in order."""
    if not places:
        return results
    return [
        results[first] if kind == VALUE else list(results[first:second]) if kind == LIST else results[first][second]
        for kind, first, second in places
    ]
