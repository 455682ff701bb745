"""Logs of runs on real Kafka and Dask processes: live while the run goes on, whole, in order, and never too much."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError
from engine.history import History
from engine.history_store import HistoryStore
from engine.kafka import KafkaBroker
from engine.log_outbox import MAX_BYTES
from engine.log_rows import LogRow
from engine.projector import Projector
from engine.settings import Settings
from engine.states import State
from tests.integration import flows_logs as flows
from tests.integration.conftest import Apps
from tests.integration.dask_under_test import child_environment
from tests.waiting import eventually


@asynccontextmanager
async def projecting(settings: Settings, path: str) -> AsyncIterator[None]:
    projector = Projector(settings, KafkaBroker(settings), HistoryStore(path, settings.app))
    running = asyncio.create_task(projector.run())
    yield
    projector.stop()
    await running


@asynccontextmanager
async def following(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-m", "engine", "runs", "logs", *arguments)
    process = await asyncio.create_subprocess_exec(*command, env=child_environment(), stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def told_by(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    return msgspec.json.decode(await process.stdout.readline())


def lines(path: str, run_id: str) -> list[LogRow]:
    try:
        with History.open(path) as history:
            return history.logs(run_id, limit=100_000)
    except EngineError:
        return []  # not there yet, or being made


async def test_what_tasks_log_is_there_while_they_run_and_in_the_order_of_each(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.mapped)
    path, gate = str(tmp_path / "history.db"), tmp_path / "gate"
    run_id = app.run_id("mapped", await app.send("both", {"numbers": [0, 1, 2], "gate": str(gate)}))
    async with projecting(app.settings, path):
        await eventually(lambda: len(lines(path, run_id)) == 7)
        assert app.ends() == [], "the run goes on"
        flags = ("--follow", "--json", "--app", app.settings.app, "--kafka", app.settings.kafka)
        async with following(run_id, *flags) as topic, following(run_id[:12], *flags, "--history", path) as database:
            told = [[await told_by(command) for _ in range(7)] for command in (topic, database)]
            gate.touch()
            assert [await command.wait() for command in (topic, database)] == [0, 0], "it ends with the run"
        run = await app.run_of(run_id)
    assert told[0] == told[1]
    assert [line["message"] for line in told[0]] == [line.message for line in lines(path, run_id)]
    assert run.result == [0, 1, 2]
    found = lines(path, run_id)
    assert [(line.message, line.logger) for line in found if line.name is None] == [("wired", "both")]
    traces = {change.traceparent[3:35] for change in run.changes if change.traceparent}
    for number in range(3):
        own = [line for line in found if line.name == f"both/0.{number}"]
        assert [line.message for line in own] == [f"by the engine number={number}", f"by logging {number}"]
        assert {(line.attempt, line.level, line.trace_id) for line in own} == {(1, "info", *traces)}


async def test_a_task_that_logs_a_hundred_megabytes_ends_as_if_it_had_not(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.flooded)
    path = str(tmp_path / "history.db")
    run = await app.do("flood", {"lines": 100_000}, "flooded")
    assert (run.end.state, run.result) == (State.COMPLETED, 100_000)
    async with projecting(app.settings, path):
        await eventually(lambda: "more lines were dropped" in "".join(line.message for line in lines(path, run.id)[-1:]))
    found = lines(path, run.id)
    assert sum(len(line.message) for line in found) <= MAX_BYTES
    assert found[-1].message.startswith(f"{100_001 - (len(found) - 1):,} more lines were dropped")
