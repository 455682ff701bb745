"""Vital signs: what a look at Kafka's groups, the Dask cluster and the engines has seen, as values; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from engine.broker import Partition, Standing


class Lag(msgspec.Struct, frozen=True):
    """How far a group is behind in one partition.

    The dispatch group commits with its checkpoints, so of it this is what the next owner would read, not what waits.
    """

    group: str
    topic: str
    partition: int
    #: The next offset that the group would read; None where it has committed none, and would begin with the first.
    committed: int | None
    end: int
    lag: int


class Worker(msgspec.Struct, frozen=True):
    """A worker of the cluster as the scheduler knows it, from its last heartbeat."""

    address: str
    name: str
    #: "running", "paused" (too little memory is left), "closing" …
    status: str
    threads: int
    #: Resident memory now, and the limit; 0 where there is none.
    memory_bytes: int
    memory_limit_bytes: int
    #: What of it is results; and results that were put onto the disk.
    managed_bytes: int
    spilled_bytes: int
    #: Tasks that run, and tasks that were sent there and wait for a thread or for what they take.
    executing: int
    queued: int
    #: Percent of one core.
    cpu: float
    #: Seconds since the epoch, by the scheduler's clock.
    last_seen_at: float


class DaskVital(msgspec.Struct, frozen=True):
    """A scheduler and its workers."""

    address: str
    started_at: float
    threads: int
    workers: tuple[Worker, ...]
    #: Tasks that wait for a worker to have room; None where no engine has been there since the scheduler started.
    tasks_queued: int | None
    #: Tasks that wait for others, or for their next attempt.
    tasks_waiting: int | None
    #: Tasks that are with a worker, running or not.
    tasks_processing: int | None


class EngineVital(msgspec.Struct, frozen=True):
    """What one engine says of itself."""

    address: str
    #: None where it did not answer; ``trouble`` says why.
    is_ready: bool | None
    #: Each part and "ok", or what it waits for.
    parts: Mapping[str, str]
    trouble: str = ""


class Vital(msgspec.Struct, frozen=True):
    """What one look saw. Of ``lags``, ``ends`` and ``dask`` None means no answer; the trouble beside it says why."""

    #: Seconds since the epoch.
    at: float
    #: Of the intake group and the dispatch group, by group, topic and partition.
    lags: tuple[Lag, ...] | None
    #: The offset that the next record gets, of the topics of ``lags`` and of all the app's own.
    ends: Mapping[Partition, int] | None
    kafka_trouble: str
    dask: DaskVital | None
    dask_trouble: str
    #: One for each address of the setting ``engines``.
    engines: tuple[EngineVital, ...]

    def behind(self, offsets: Mapping[Partition, int]) -> dict[Partition, int] | None:
        """How many records a reader that has got to ``offsets`` (``History.offsets``) is behind, by partition."""
        if self.ends is None:
            return None
        return {place: max(0, self.ends[place] - offset) for place, offset in offsets.items() if place in self.ends}


def lags_of(standing: Standing) -> Iterator[Lag]:
    """How far each group is behind in every partition of the topics of which it has committed any."""
    for group, committed in standing.committed.items():
        topics = {topic for topic, _ in committed}
        for (topic, partition), end in sorted(standing.ends.items()):
            if topic in topics:
                offset = committed.get((topic, partition))
                # What retention has taken cannot be read any more.
                reads_from = max(standing.begins.get((topic, partition), 0), offset or 0)
                yield Lag(group, topic, partition, offset, end, max(0, end - reads_from))
