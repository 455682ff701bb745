"""Commands that start, or fail to start, by themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import HANDLERS, Stack, engine

NOWHERE = ["--kafka", "127.0.0.1:1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["states", "tail"],
        ["runs", "watch", "id"],
        ["events", "send", "items", "--data", "1"],
        ["doctor", "--dask", "tcp://127.0.0.1:1"],
    ],
)
async def test_without_kafka_a_command_exits_4_and_says_where_it_looked(arguments: list[str]) -> None:
    done = await engine(*arguments, *NOWHERE, environment={"ENGINE_CONNECT_TIMEOUT_SECONDS": "1"})
    assert done.code == 4
    assert "127.0.0.1" in done.out + done.err
    assert "Traceback" not in done.err


async def test_without_dask_the_engine_waits_saying_so_and_exits_4(kafka: str) -> None:
    settings = {"ENGINE_CONNECT_TIMEOUT_SECONDS": "2", "ENGINE_HTTP": ""}
    done = await engine("run", "--kafka", kafka, "--app", "nodask", "--dask", "tcp://127.0.0.1:1", environment=settings)
    assert done.code == 4
    assert '"event": "waiting"' in done.err
    assert "cannot reach the Dask scheduler at tcp://127.0.0.1:1" in done.err.splitlines()[-1]


@pytest.mark.parametrize("command", ["run", "dev"])
async def test_a_bad_handler_stops_the_start_with_file_and_line(command: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(HANDLERS.replace("item: Item", "item"))
    done = await engine(command, str(file))
    assert done.code == 2
    assert f"error: {file}:14:" in done.err
    assert "Traceback" not in done.err


async def test_ctrl_c_stops_a_stack_and_leaves_no_process(kafka: str, tmp_path: Path) -> None:
    stack = Stack(tmp_path, "interrupted", ["--kafka", kafka, "--workers", "1", "--json"])
    try:
        stack.wait_ready()
        children = psutil.Process(stack.process.pid).children(recursive=True)
        assert len(children) >= 3  # scheduler, worker, engine
    finally:
        code, rest = stack.stop()
    assert (code, rest) == (0, b"")
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


async def test_the_demo_shows_it_all_and_exits_0(tmp_path: Path) -> None:
    done = await engine("demo", "--flights", "30", environment={"TMPDIR": str(tmp_path)})
    assert done.code == 0, done.out + done.err
    assert "29 flow runs completed" in done.out
    assert "6 dead letters" in done.out
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
