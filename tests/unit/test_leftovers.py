"""engine.leftovers: what has ended under an earlier owner is let go, and nothing that has not."""

from __future__ import annotations

import asyncio

import msgspec

from engine.errors import DaskUnavailable
from engine.executor import RunEnd
from engine.ledger import Ledger
from engine.leftovers import Leftovers
from engine.states import State, StateChange, utc

ENDED, OPEN, UNREAD = ("1" * 32, "2" * 32, "3" * 32)


class Cluster:
    """As much of an executor as is asked."""

    def __init__(self, error: DaskUnavailable | None = None) -> None:
        self._error = error
        self.released: list[tuple[str, float]] = []

    async def held(self, partition: int, epoch: int) -> list[str]:
        assert (partition, epoch) == (3, 4)
        if self._error is not None:
            raise self._error
        return [ENDED, OPEN, UNREAD]

    def release(self, run_id: str, keep_seconds: float, end: RunEnd | None = None) -> None:
        self.released.append((run_id, keep_seconds))

    def release_parcels(self, run_ids: list[str], keep_seconds: float) -> None:
        self.released += [(run_id, keep_seconds) for run_id in run_ids]


def ledger() -> Ledger:
    """One run has ended, one is open; of the third nothing has been read."""
    made = Ledger(3, epoch=4, dedup_window_seconds=60.0)
    change = StateChange(run_id=ENDED, flow="f", state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1.0))
    made.read(0, change)
    made.begin_epoch(1)
    made.read(2, msgspec.structs.replace(change, state=State.CANCELLED, seq=1, epoch=1))
    made.read(3, msgspec.structs.replace(change, run_id=OPEN))
    made.begin_epoch(4)
    return made


async def looked(cluster: Cluster) -> None:
    leftovers = Leftovers(cluster, 7.0)  # type: ignore[arg-type]
    leftovers.look(ledger())
    await asyncio.gather(*leftovers._looks)
    await leftovers.close()


async def test_runs_that_have_ended_under_an_earlier_owner_are_let_go_and_no_others() -> None:
    cluster = Cluster()
    await looked(cluster)
    assert cluster.released == [(ENDED, 7.0), (ENDED, 7.0)], "as a run of its own and as a packed one"


async def test_a_cluster_that_does_not_answer_is_left_alone() -> None:
    cluster = Cluster(DaskUnavailable("tcp://x", "it is away"))
    await looked(cluster)
    assert cluster.released == []
