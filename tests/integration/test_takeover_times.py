"""How long nobody leads the runs of an engine that is stopped, killed or paused; another one stands by. Times are printed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.states import CHECKPOINT, State, is_ownership, type_of
from tests.app_under_test import AppUnderTest
from tests.integration import flows_takeover as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import SharedDask, child_environment
from tests.integration.test_takeover import assert_one_story, engine_process, notes
from tests.waiting import eventually

S = State


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With threads enough for two tasks that wait and for what comes after them.

    Dask may keep a run of usually quick tasks on one worker, and what it has given to that stays behind those that wait.
    """
    shared = SharedDask(tmp_path_factory.mktemp("dask"), child_environment(), threads=4)
    yield shared.address
    shared.stop()


async def until_it_waits(watching: AppUnderTest, folder: str) -> str:
    """Follow, and make a run of which two tasks wait."""
    await watching.follow_only()
    id = await watching.send("climbs", {"folder": folder, "steps": 6, "waiting": 2})
    await eventually(lambda: len([c for c in watching.changes if c.task == "follow" and c.state is S.COMPLETED]) == 4)
    return id


async def next_change(watching: AppUnderTest, folder: Path, since: float) -> float:
    """Let the tasks that wait end; answers how long after ``since`` the next owner tells of it."""
    epoch = max(change.epoch for change in watching.changes)
    (folder / "go").touch()
    await eventually(lambda: any(change.epoch > epoch for change in watching.changes))
    return time.monotonic() - since


async def test_a_clean_stop_hands_over_and_waits_for_no_timeout(apps: Apps, tmp_path: Path) -> None:
    settings = apps.settings(state_partitions=1, session_timeout_seconds=45.0)
    watching, folder = apps.make(flows.climb, flows.single, settings=settings), str(tmp_path)
    async with engine_process(settings, tmp_path / "first.log") as first:
        id = await until_it_waits(watching, folder)
        async with engine_process(settings, tmp_path / "second.log") as second:
            engines = {first, second}
            owner = await find_owner(watching, engines)
            stopped_at = time.monotonic()
            owner.send_signal(signal.SIGTERM)
            assert await owner.wait() == 0
            exited = time.monotonic() - stopped_at
            took = await next_change(watching, tmp_path, stopped_at)  # else the run would end while it is handed over
            print(f"\nSIGTERM to the next owner's first change: {took:.2f} s, to the exit {exited:.2f} s")
            assert took < settings.session_timeout_seconds  # what a member that only goes silent costs
            assert_one_story(await watching.run("climb", id))
    assert max(Counter(notes(tmp_path)).values()) == 1
    types = {type_of(record.headers).decode() for record in await watching.records(settings.states_topic)}
    assert CHECKPOINT in types


async def test_a_killed_engine_is_replaced(apps: Apps, tmp_path: Path) -> None:
    watching, folder = apps.make(flows.climb, flows.single, state_partitions=1), str(tmp_path)
    settings = watching.settings
    async with engine_process(settings, tmp_path / "first.log") as first:
        id = await until_it_waits(watching, folder)
        async with engine_process(settings, tmp_path / "second.log") as second:
            owner = await find_owner(watching, {first, second})
            killed_at = time.monotonic()
            owner.kill()
            took = await next_change(watching, tmp_path, killed_at)
            print(f"\nkill -9 to the next owner's first change: {took:.2f} s, session {settings.session_timeout_seconds} s")
            assert_one_story(await watching.run("climb", id))
    assert max(Counter(notes(tmp_path)).values()) == 1


async def test_a_paused_engine_that_wakes_up_is_void_notices_and_joins_again(apps: Apps, tmp_path: Path) -> None:
    watching, folder = apps.make(flows.climb, flows.single, state_partitions=1), str(tmp_path)
    settings = watching.settings
    async with engine_process(settings, tmp_path / "first.log") as first:
        id = await until_it_waits(watching, folder)
        async with engine_process(settings, tmp_path / "second.log") as second:
            owner = await find_owner(watching, {first, second})
            other = second if owner is first else first
            paused_at = time.monotonic()
            owner.send_signal(signal.SIGSTOP)
            try:
                took = await next_change(watching, tmp_path, paused_at)
                print(f"\nSIGSTOP to the next owner's first change: {took:.2f} s")
            finally:
                owner.send_signal(signal.SIGCONT)
            assert_one_story(await watching.run("climb", id))
            # It is as good as new: with the other gone it owns the partition and leads runs again.
            other.send_signal(signal.SIGTERM)
            assert await other.wait() == 0
            assert_one_story(await watching.do("singles", {"folder": folder, "number": 77}, "single", id="afterwards"))
            assert owner.returncode is None
    assert max(Counter(notes(tmp_path)).values()) == 1


async def test_engines_come_and_go_under_load_and_no_run_is_lost_or_doubled(apps: Apps, tmp_path: Path) -> None:
    watching = apps.make(flows.single, state_partitions=6)
    settings = watching.settings
    sent: list[str] = []

    async def send(count: int) -> None:
        events = [(f"e{len(sent) + n}", {"folder": str(tmp_path), "number": len(sent) + n}) for n in range(count)]
        sent.extend(id for id, _ in events)
        await watching.send_many("singles", events)

    async with engine_process(settings, tmp_path / "first.log") as first:
        await watching.follow_only()
        await send(80)
        async with engine_process(settings, tmp_path / "second.log") as second:
            await send(80)
            await eventually(lambda: len(watching.ends()) >= 60)
            async with engine_process(settings, tmp_path / "third.log"):
                await send(80)
                second.kill()
                await eventually(lambda: len(watching.ends()) >= 140)
                first.send_signal(signal.SIGTERM)
                await send(80)
                assert await first.wait() == 0
                for id in sent:
                    assert_one_story(await watching.run("single", id))
    assert len(watching.ends()) == len(sent)
    owners = Counter(change.epoch for change in watching.ends())
    print(f"\n{len(sent)} runs under {len(owners)} ownerships: {sorted(owners.values())}")
    assert len(owners) > settings.state_partitions, "no partition changed hands"


async def find_owner(watching: AppUnderTest, engines: set[asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    """Who owns the only partition when the group has settled: who wrote the last ownership record."""
    settled: list[int] = []

    async def owner() -> int:
        records = await watching.records(watching.settings.states_topic)
        values = [record.value or b"" for record in records if is_ownership(type_of(record.headers))]
        return int(values[-1].split(b'"owner":"')[1].split(b"/")[1])

    while len(settled) < 4 or len(set(settled[-4:])) > 1:
        settled.append(await owner())
    return next(engine for engine in engines if engine.pid == settled[-1])
