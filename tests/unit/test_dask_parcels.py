"""engine.dask_parcels: what becomes of a parcel whose worker was ended for an attempt, in it or beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from distributed import Scheduler

from engine.dask_graph import DaskGraph
from engine.dask_names import Names
from engine.dask_parcels import HeldParcels, key_of_parcel
from engine.parcels import MAX_SPARED, Outcome, PackedRun, Parcel, Timed, decode_parcel, encode_parcel, encode_timed
from engine.states import State

WORKER = "tcp://worker:1"
SLOT = ("shop", 0)
TIMED = Timed("run-1", "0", "price", 1, 0.5)


class Held:
    """The parcels of a scheduler that has no workers, and what their engine is told."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.told: list[dict[str, Any]] = []
        graph = DaskGraph(scheduler)
        self.parcels = HeldParcels(scheduler, graph, Names(scheduler), lambda _, event: self.told.append(event))

    def send(self, count: int) -> str:
        runs = tuple(PackedRun(f"run-{number}", b"{}", "", 1.0) for number in range(count))
        parcel = Parcel("0123456789abcdef", "f", "m:f", runs, 10)
        self.parcels.send(encode_parcel(parcel), [SLOT] * count)
        return key_of_parcel(parcel)

    def under_way(self) -> tuple[str, Parcel]:
        [key] = [key for key in self.scheduler.tasks if key in self.parcels]
        return key, decode_parcel(self.scheduler.tasks[key].run_spec.args[1])

    async def note(self, key: str, *timed: Timed, number: int = 1) -> None:
        await self.parcels.note(WORKER, key, encode_timed(timed), number)

    def ends(self, run_id: str) -> None:
        self.parcels.hear([Outcome(run_id, 1, State.COMPLETED, 1.0, 2.0)])
        self.told.clear()

    def dies(self, key: str, *found: str) -> None:
        self.parcels.go_on([key], found)
        self.parcels.ended(key, "its worker died", has_values=False)


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    async with Scheduler(protocol="inproc://", dashboard=False) as scheduler:
        yield Held(scheduler)


async def test_the_attempt_that_hung_is_named_and_all_but_what_has_ended_goes_on(held: Held) -> None:
    key = held.send(3)
    await held.note(key, TIMED)
    held.ends("run-0")
    [name] = held.parcels.suspects([key], WORKER)
    held.dies(key, name)
    again, parcel = held.under_way()
    assert again != key, "of that one Dask knows that it failed"
    assert [run.run_id for run in parcel.runs] == ["run-1", "run-2"]
    assert [(one.attempt, one.how) for one in parcel.hung] == [(TIMED, "ended")]
    assert (parcel.is_suspect, held.told) == (True, [])
    held.dies(again, *held.parcels.suspects([again], WORKER))
    assert held.under_way()[1].hung == parcel.hung, "it is not forgotten when there is another death"


async def test_what_was_noted_by_another_worker_or_is_overtaken_names_nobody(held: Held) -> None:
    key = held.send(2)
    await held.note(key, number=2)
    await held.note(key, TIMED, number=1)
    assert held.parcels.suspects([key], WORKER) == {}
    await held.note(key, TIMED, number=3)
    assert held.parcels.suspects([key], "tcp://other:1") == {}
    assert [suspect.timeout_seconds for suspect in held.parcels.suspects([key], WORKER).values()] == [0.5]


async def test_an_attempt_is_under_way_since_it_was_noted_first(held: Held) -> None:
    key = held.send(2)
    await held.note(key, TIMED)
    [first] = held.parcels.suspects([key], WORKER).values()
    await held.note(key, TIMED, msgspec.structs.replace(TIMED, index="0+0"), number=2)
    both = [suspect.given_seconds for suspect in held.parcels.suspects([key], WORKER).values()]
    assert both[0] >= first.given_seconds
    assert both[0] > both[1]


async def test_of_deaths_that_are_laid_to_others_it_is_spared_a_few(held: Held) -> None:
    key = held.send(2)
    for _ in range(MAX_SPARED):
        held.dies(key, "another")
        assert held.told == []
        key, parcel = held.under_way()
        assert parcel.hung == ()
    held.dies(key, "another")
    assert held.told == [{"died": ["run-0", "run-1"], "reason": "its worker died"}]


async def test_a_death_of_which_nobody_knows_the_cause_is_told(held: Held) -> None:
    key = held.send(2)
    held.ends("run-1")
    held.parcels.ended(key, "its worker died", has_values=False)
    assert held.told == [{"died": ["run-0"], "reason": "its worker died"}]
    assert key not in held.parcels
