"""Child processes: they end with us, and with them all that they started."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from engine.command_errors import StackError
from engine.processes import ChildProcess, Children, run_to_end
from tests.waiting import eventually

FOREVER = "import signal; print('up', flush=True); signal.pause()"
#: A process that does not listen to SIGTERM and has a child that does not either.
STUBBORN = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", {"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + FOREVER!r}])
print("child", inner.pid, flush=True)
signal.pause()
"""


def child(folder: Path, code: str) -> ChildProcess:
    return ChildProcess("child", [sys.executable, "-c", code], log_file=folder / "child.log", environment=dict(os.environ))


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until_printed(process: ChildProcess, text: str) -> None:
    async def has_printed() -> bool:
        return text in process.tail()

    await process.until(has_printed, 20.0)


async def test_stop_asks_first(tmp_path: Path) -> None:
    process = child(tmp_path, "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); " + FOREVER)
    await process.start()
    await until_printed(process, "up")
    await process.stop(20.0)
    assert process.exit_code == 7


async def test_stop_ends_a_tree_that_does_not_want_to(tmp_path: Path) -> None:
    process = child(tmp_path, STUBBORN)
    await process.start()
    await until_printed(process, "up")
    inner = next(int(line.split()[1]) for line in process.tail().splitlines() if line.startswith("child"))
    await process.stop(0.1)
    assert process.exit_code == -signal.SIGKILL
    await eventually(lambda: is_gone(inner))


async def test_what_an_ended_child_left_behind_is_killed_too(tmp_path: Path) -> None:
    process = child(tmp_path, STUBBORN.replace("signal.pause()\n", "sys.exit(0)\n"))
    await process.start()
    assert await process.wait() == 0
    inner = next(int(line.split()[1]) for line in process.tail().splitlines() if line.startswith("child"))
    await process.stop(1.0)
    await eventually(lambda: is_gone(inner))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the death of its parent")
async def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
from engine.processes import ChildProcess
async def main():
    command = [sys.executable, "-c", {FOREVER!r}]
    child = ChildProcess("inner", command, log_file=Path({str(tmp_path / "inner.log")!r}), environment=dict(os.environ))
    await child.start()
    print(child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    inner = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await eventually(lambda: is_gone(inner))


async def test_a_child_that_ends_before_it_is_ready_tells_its_story(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    process = child(tmp_path, "raise SystemExit('no such port')")
    await process.start()
    with pytest.raises(StackError, match=r"(?s)ended with code 1.*no such port"):
        await process.until(never, 20.0)


async def test_a_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    process = child(tmp_path, FOREVER)
    await process.start()
    with pytest.raises(StackError, match=r"not ready after 0\.2 s"):
        await process.until(never, 0.2)
    await process.stop(1.0)


async def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    process = ChildProcess("child", ["/no/such/command"], log_file=tmp_path / "log", environment={})
    assert await run_to_end(process, 20.0) == 127
    assert "cannot run /no/such/command" in process.tail()


async def test_a_run_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    assert await run_to_end(child(tmp_path, FOREVER), 0.2) == -signal.SIGKILL


CHATTY = """
import pathlib, sys, time
print("line\\n" * 100_000, "last", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
print("after", flush=True)
while True:
    time.sleep(1)
"""


async def test_a_log_that_grows_without_end_is_begun_anew_and_its_end_kept(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.processes.MOST_LOG_BYTES", 10_000)
    monkeypatch.setattr("engine.processes.LOG_SECONDS", 0.01)
    chatty = await children.launch("chatty", [sys.executable, "-c", CHATTY, str(tmp_path / "go")], dict(os.environ))
    kept = tmp_path / "chatty.log.1"
    await eventually(lambda: kept.exists() and "last" in kept.read_text())
    await eventually(lambda: chatty.log_file.stat().st_size == 0)
    (tmp_path / "go").touch()
    await until_printed(chatty, "after")
    assert chatty.log_file.read_text() == "after\n"


@pytest.fixture
async def ended() -> list[str]:
    return []


@pytest.fixture
async def children(tmp_path: Path, ended: list[str]) -> AsyncIterator[Children]:
    children = Children(tmp_path, lambda child: ended.append(child.name))
    yield children
    await children.stop(children.names(), 1.0)


async def test_only_an_end_that_nobody_asked_for_is_news(children: Children, ended: list[str]) -> None:
    for name in ("asked", "killed"):
        await children.launch(name, [sys.executable, "-c", FOREVER], dict(os.environ))
    os.kill(children.pids["killed"], signal.SIGKILL)
    await eventually(lambda: ended == ["killed"])
    await children.stop(["asked"], 1.0)
    assert ended == ["killed"]


async def test_launching_a_name_again_replaces_it(children: Children, ended: list[str]) -> None:
    first = await children.launch("one", [sys.executable, "-c", FOREVER], dict(os.environ))
    second = await children.launch("one", [sys.executable, "-c", FOREVER], dict(os.environ))
    assert first.exit_code is not None
    assert (second.exit_code, ended) == (None, [])
    assert children.pids == {"one": second.pid}
