"""The installed command as a subprocess, and one stack of ``engine dev`` per module."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.runs import run_id_of

ROOT = Path(__file__).parents[2]
#: Far beyond what any command takes here.
PATIENCE_SECONDS = 60.0
#: The source of every event that these tests send.
SOURCE = "/tests"

HANDLERS = """
import msgspec
from engine import flow, on, task

class Item(msgspec.Struct):
    name: str

@task
def shout(name: str) -> str:
    if name == "bad":
        raise ValueError("a bad name \\x1b[2J [bold]")
    return name.upper()

@flow(on("items", type="item.made"))
def process(item: Item):
    return shout(item.name)

@task(persist=True)
def fetch(folder: str) -> list[int]:
    with open(folder + "/fetched", "a") as file:
        file.write("x")
    return [1, 2, 3]

@task
def add(values: list[int]) -> int:
    return sum(values)

@flow(on("sums", type="sum.asked", where=lambda event: event.data.times > 0))
def summed(folder: str, times: int = 1):
    return add(fetch(folder))
"""


class Done:
    """A command that has ended."""

    def __init__(self, code: int | None, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def lines(self) -> list[Any]:
        """Standard output as lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


async def engine(*arguments: str, environment: dict[str, str] | None = None) -> Done:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=command_environment() | (environment or {}),
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode, out.decode(), err.decode())


def command_environment() -> dict[str, str]:
    """That of the tests without settings of the engine's, and with the checkout on the path."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("ENGINE_")}
    path = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(path)}


class Stack:
    """``engine dev`` as a child process."""

    def __init__(
        self,
        folder: Path,
        app: str,
        arguments: Sequence[str],
        *,
        handlers: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Without ``handlers`` those above are written into ``folder``. ``environment`` is for all processes."""
        self.app = app
        self.handlers = handlers or folder / "shouting.py"
        if handlers is None:
            self.handlers.write_text(HANDLERS)
        self.log_file = folder / "dev.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "engine", "dev", str(self.handlers), "--app", app, "--http", "127.0.0.1:0", *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=command_environment() | {"XDG_CACHE_HOME": str(folder / "cache")} | dict(environment or {}),
            )
        self.ready: dict[str, Any] = {}

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.log_file.read_text(errors="replace")

    @property
    def where(self) -> list[str]:
        """The flags with which other commands find it."""
        return ["--app", self.app, "--kafka", self.ready["kafka"]]

    def wait_ready(self) -> None:
        """Read its one line on standard output."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE_SECONDS)
        line = self.process.stdout.readline() if readable else b""
        assert line, f"not ready: {self.log}"
        self.ready = json.loads(line)

    def stop(self) -> tuple[int, bytes]:
        """Press Ctrl-C; its exit code and what else it wrote on standard output."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            rest, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            self.process.kill()
        return self.process.returncode, rest

    async def send(self, event_id: str, name: str) -> str:
        """Send an event; the id of the run that it makes."""
        await self.send_event("items", "item.made", event_id, {"name": name})
        return self.run_id("process", event_id)

    async def send_event(self, topic: str, type: str, event_id: str, data: object) -> None:
        """Send an event of any kind."""
        done = await engine(
            *("events", "send", topic, "--type", type, "--source", SOURCE, "--id", event_id),
            *("--data", json.dumps(data), "--kafka", self.ready["kafka"]),
        )
        assert done.code == 0, done.err

    def run_id(self, flow: str, event_id: str) -> str:
        """That of the run which an event of these tests makes."""
        return run_id_of(self.app, flow, SOURCE, event_id)

    async def watch(self, run_id: str) -> Done:
        """A run's changes as JSON, from its beginning until it has ended."""
        return await engine("runs", "watch", run_id, "--json", *self.where)

    async def tail(self, *arguments: str) -> Done:
        """Changes from the beginning on, as JSON."""
        return await engine("states", "tail", "--from-beginning", "--json", *self.where, *arguments)


@pytest.fixture(scope="module")
def stack(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack on the session's Kafka, with one worker."""
    folder = tmp_path_factory.mktemp("stack")
    arguments, results = ["--kafka", kafka, "--workers", "1", "--json"], {"ENGINE_RESULTS": f"file://{folder}/results"}
    running = Stack(folder, "accept", arguments, environment=results)
    try:
        running.wait_ready()
        yield running
    finally:
        code, rest = running.stop()
    assert (code, rest) == (0, b""), running.log
