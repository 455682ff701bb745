"""The contract with what runs tasks: submissions go in, reports come out.

``engine.cluster`` fulfils it on Dask, ``engine.testing`` in the test's own process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from engine.states import Failure, State


class Call(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One task of a run, ready to be submitted. It travels to the worker whole."""

    #: Index in call order within the run; with the run's id it makes the task's key.
    index: int
    #: Name of the task; the empty text for the step that puts a flow's result together.
    task: str
    #: Where the worker finds the function: ``module:qualname``.
    function: str
    flow: str
    run_id: str
    #: Pickled ``(args, kwargs)``, with a persistent id for each result of another call (engine.graph).
    arguments: bytes
    #: The calls whose results it takes, in the order of their persistent ids.
    dependencies: tuple[int, ...]
    attempt: int
    #: Depth in the graph: the deeper, the sooner, so that a started pipeline is finished before the next begins.
    depth: int
    is_async: bool
    #: Whether the value is the flow's result: the worker sends it back with its report.
    returns: bool
    inline_result_bytes: int
    timeout_seconds: float | None
    #: The run's span, parent of the task's; and when the task was scheduled (seconds since the epoch).
    traceparent: str
    scheduled_at: float
    #: Whether other calls take its value, which may have to travel to their worker.
    is_taken: bool = False

    @property
    def key(self) -> str:
        """The key on the cluster: deterministic, so that a second owner finds what the first one submitted."""
        return key_of(self.task, self.run_id, self.index)


class Submission(msgspec.Struct, frozen=True):
    """Calls of one run that are to be submitted together."""

    run_id: str
    partition: int
    epoch: int
    calls: tuple[Call, ...]


class Report(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of an attempt: RUNNING, COMPLETED, FAILED (user code) or CRASHED (the infrastructure)."""

    run_id: str
    index: int
    state: State
    attempt: int
    #: Seconds since the epoch on the worker's clock; 0 where it never began.
    started_at: float
    at: float
    worker: str
    error: Failure | None = None
    #: The encoded result of a call that returns, where it is small enough.
    result: bytes | None = None
    #: Why a result that returns did not travel: "too large" or "not encodable: …".
    kept: str | None = None
    #: What the error says of another attempt (engine.retries.Verdict).
    is_final: bool = False
    retry_after_seconds: float | None = None


#: Reports as they travel from worker to scheduler to engine.
encode_reports = msgspec.msgpack.Encoder().encode
decode_reports = msgspec.msgpack.Decoder(list[Report]).decode

OnReports = Callable[[Sequence[Report]], None]


class Executor(Protocol):
    """Runs submissions. Its methods but start and close never wait."""

    #: Empty while it can take submissions; otherwise why not.
    trouble: str

    async def start(self, on_reports: OnReports, on_reset: Callable[[], None]) -> None:
        """Connect. ``on_reset`` is called whenever everything submitted was lost and must be submitted again.

        Raises DaskUnavailable.
        """
        ...

    def own(self, partition: int, epoch: int) -> None:
        """From now on this process drives the runs of ``partition``: older epochs' submissions are refused."""
        ...

    def submit(self, submissions: Sequence[Submission]) -> None:
        """Submit all in one message. What the cluster has already is attached to, not run again."""
        ...

    def forget(self, run_id: str, keys: Sequence[str]) -> None:
        """Drop these calls, so that they can be submitted for another attempt."""
        ...

    def release(self, run_id: str, keep_seconds: float) -> None:
        """The run's end is safely on the state topic: its results may go, after ``keep_seconds``."""
        ...

    async def close(self) -> None:
        """Disconnect. What was submitted goes on."""
        ...


def key_of(task: str, run_id: str, index: int) -> str:
    """Key of a call on the cluster. Beginning with the task's name it shares a group on Dask's scheduler."""
    return f"{task or 'result'}-{run_id}-{index}"


def run_of(key: str) -> str | None:
    """The run that a key belongs to; None for keys that are not ours."""
    parts = key.rsplit("-", 2)
    return parts[1] if len(parts) == 3 and len(parts[1]) == 32 else None
