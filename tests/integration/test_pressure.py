"""More than can be worked off: memory stays bounded, a quick flow and other keys go by, and all is done in the end."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from engine.broker import Outgoing, Record
from engine.checkpoints import PART, read_checkpoint
from engine.flows import Flow
from engine.inline import InlineExecutor
from engine.memory import MemoryBroker
from engine.states import CHECKPOINT, State, type_of
from tests.app_under_test import AppUnderTest, fresh_settings
from tests.integration import flows_pressure as flows
from tests.integration.conftest import Apps
from tests.integration.test_takeover import assert_one_story, engine_process, notes
from tests.waiting import eventually

#: Events of the slow flow, and of the one whose engines are killed.
SLOW = 600
COUNT = 1_200

Start = Callable[..., Awaitable[AppUnderTest]]


@pytest.fixture(params=["memory", "Kafka and Dask"])
def apps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Apps | None:
    """None for the log in memory. Patience is short, so that a test need not take long."""
    monkeypatch.setattr("engine.pressure.PATIENCE_SECONDS", 0.2)
    if request.param == "memory":
        return None
    return Apps(request.getfixturevalue("kafka"), request.getfixturevalue("dask"))


@pytest.fixture
async def start(apps: Apps | None, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts an app with room for few runs."""
    async with AsyncExitStack() as stack:

        async def start(*flows: Flow[..., object], max_open_runs: int = 20) -> AppUnderTest:
            options: dict[str, Any] = {"max_open_runs": max_open_runs, "poll_records": 10, "event_partitions": 1}
            if apps is None:
                log = MemoryBroker()
                app = AppUnderTest(fresh_settings(**options), flows, log, InlineExecutor(), log)
            else:
                stack.push_async_callback(apps.close)
                app = apps.make(*flows, **options)
            stack.push_async_callback(app.close)
            await app.start()
            return app

        yield start
        (tmp_path / "go").touch()  # also where a test has failed: nobody keeps the workers


def begun(app: AppUnderTest, flow: str) -> list[str]:
    return [c.run_id for c in app.changes if c.flow == flow and c.is_flow_run and c.state is State.RUNNING]


def ends(app: AppUnderTest, flow: str) -> list[str]:
    return [c.run_id for c in app.changes if c.flow == flow and c.is_flow_run and c.state is State.COMPLETED]


async def test_a_quick_flow_goes_by_a_slow_one_and_memory_stays_bounded(start: Start, tmp_path: Path) -> None:
    app = await start(flows.slow, flows.quick)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, app.open_runs)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    topic, value = app.topic("numbers"), json.dumps({"folder": str(tmp_path), "number": 1}).encode()
    await app.write(*[Outgoing(topic, None, value, app.headers(f"slow-{n}", type="slow")) for n in range(SLOW)])
    for number in range(5):
        id = await app.send("numbers", {"number": number}, type="quick")
        assert (await app.run("quick", id)).result == number
    assert ends(app, "slow") == [], "not one of those that came before has gone on"
    assert len(begun(app, "slow")) == 2, "its own limit"
    (tmp_path / "go").touch()
    await eventually(lambda: len(ends(app, "slow")) >= SLOW, timeout_seconds=120.0)
    watching.cancel()
    assert len(set(ends(app, "slow"))) == len(ends(app, "slow")) == SLOW
    assert most < 100, "20 waiting, what a poll brings over, and what has ended a moment ago"
    open_now: set[str] = set()
    for change in app.changes:
        if change.flow == "slow" and change.is_flow_run:
            (open_now.add if change.state is State.RUNNING else open_now.discard)(change.run_id)
            # Two partitions are read as they come, so an end may be heard after the beginning that it made room for.
            assert len(open_now) <= 4
    await eventually(lambda: app.open_runs == 0)


async def test_a_hot_key_stops_neither_other_keys_nor_its_own_order(start: Start, tmp_path: Path) -> None:
    app = await start(flows.keyed)
    folder = str(tmp_path)
    await app.write(
        *[
            Outgoing(
                app.topic("numbers"),
                None,
                json.dumps({"folder": folder, "number": number, "person": "hot"}).encode(),
                app.headers(f"hot-{number}", type="keyed"),
            )
            for number in range(60)
        ]
    )
    others = tmp_path / "others"
    others.mkdir()
    (others / "go").touch()
    id = await app.send("numbers", {"folder": str(others), "number": 99, "person": "cold"}, type="keyed")
    assert (await app.run("keyed", id)).result == 99
    assert len(ends(app, "keyed")) == 1, "not one of the sixty before it has gone on"
    (tmp_path / "go").touch()
    await eventually(lambda: len(ends(app, "keyed")) == 61, timeout_seconds=120.0)
    order = [(await app.run_of(run_id)).result for run_id in begun(app, "keyed")]
    assert [number for number in order if number != 99] == list(range(60))


async def test_what_waits_on_the_log_survives_engines_that_stop_and_that_are_killed(
    kafka: str, dask: str, tmp_path: Path
) -> None:
    """The first leaves a checkpoint that says where the flow's runs go on; the second dies with more of them begun."""
    apps, handlers = Apps(kafka, dask), "tests.integration.flows_pressure"
    options = {"state_partitions": 1, "event_partitions": 1, "max_open_runs": 20, "poll_records": 10}
    try:
        watching = apps.make(flows.noted, settings=apps.settings(**options))
        settings = watching.settings

        def done() -> int:
            return len(notes(tmp_path))

        first_log = tmp_path / "first.log"
        async with engine_process(settings, first_log, handlers) as first:
            await watching.follow_only()
            events = [(f"e{n}", {"folder": str(tmp_path), "number": n}) for n in range(COUNT)]
            await watching.send_many("notes", events)
            await eventually(lambda: b"a slow flow's runs wait" in first_log.read_bytes())
            first.send_signal(signal.SIGTERM)
            assert await first.wait() == 0
        (tmp_path / "go").touch()
        async with engine_process(settings, tmp_path / "second.log", handlers) as second:
            before = done()
            await eventually(lambda: done() >= before + 100)
            second.kill()
            await second.wait()
        assert done() < COUNT, "else nothing was left for the third"
        bodies: dict[str, Callable[[Record], bytes | None]] = {
            PART: lambda record: record.value,
            CHECKPOINT: lambda record: read_checkpoint(record.value, record.headers).body,
        }
        log = await watching.records(settings.states_topic)
        held = [bodies[kind](record) for record in log if (kind := type_of(record.headers).decode()) in bodies]
        assert any(b'"shelf":[[' in (body or b"") for body in held)
        await apps.start(flows.noted, settings=settings)
        await eventually(lambda: len(watching.ends()) >= COUNT, timeout_seconds=180.0)
        for id, _ in events:
            assert_one_story(await watching.run("noted", id))
        assert Counter(notes(tmp_path)) == Counter(str(n) for n in range(COUNT)), "each task ran once"
    finally:
        (tmp_path / "go").touch()
        await apps.close()
