"""The stack of a trial: Kafka, Dask and engines as processes of their own, each started again when it is gone.

Whatever happens to a process is noted in the nemesis's log, together with ends that nobody has asked for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from engine.apache import ApacheKafka
from engine.dask_processes import SCHEDULER, WORKER_PREFIX, DaskProcesses
from engine.processes import ChildProcess, Children
from tests.chaos.engine_process import POINT, SNAPSHOTS
from tests.chaos.flows import EFFECTS
from tests.chaos.histories import Fault, Snapshot
from tests.integration.dask_under_test import child_environment

ENGINE_PREFIX = "engine-"
GRACE_SECONDS = 5.0
#: An engine that is told to leave and does not in so long is a finding.
LEAVE_SECONDS = 120.0


class Stack:
    """All processes of one trial."""

    def __init__(
        self, directory: Path, app: str, session_seconds: float, variant: str = "sound", engines: int = 2, workers: int = 2
    ) -> None:
        self.directory, self.app, self.variant = directory, app, variant
        self.effects = directory / "effects.jsonl"
        self.kafka = ApacheKafka(directory / "kafka")
        #: After so long without a sign of life an engine has lost its partitions.
        self.session_seconds = session_seconds
        self.faults: list[Fault] = []
        self._environment = child_environment(
            TESTED_PREFIX=f"{app}.",
            DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1000",
            ENGINE_STATE_PARTITIONS="4",
            ENGINE_EVENT_PARTITIONS="2",
            ENGINE_SESSION_TIMEOUT_SECONDS=str(session_seconds),
            # A broker that was killed takes its time on a busy machine.
            ENGINE_CONNECT_TIMEOUT_SECONDS="900",
            ENGINE_GRACE_SECONDS=str(GRACE_SECONDS),
            ENGINE_RESULTS=(directory / "results").absolute().as_uri(),
            **{EFFECTS: str(self.effects), SNAPSHOTS: str(directory / "snapshot")},
        )
        self._children = Children(directory / "logs", self._ended)
        self._dask = DaskProcesses(
            *(self._children, directory, self._environment),
            workers=workers,
            threads_per_worker=3,
            worker_memory_limit="1GiB",
            scheduler_arguments=(),
            worker_arguments=(),
            start_seconds=300.0,
            grace_seconds=2.0,
        )
        self._engines = engines
        self._expected: set[int] = set()
        self._gone: set[str] = set()
        #: Where the next process of a name is to die; and where those that run are, by process id.
        self._dooms: dict[str, str] = {}
        self._doomed: dict[int, str] = {}
        self._restarts: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._is_dask_down = False

    async def start(self) -> None:
        """Start everything; engines come up on their own."""
        await self.kafka.start(lambda line: None)
        await self._dask.start()
        for number in range(self._engines):
            await self.start_engine(f"{ENGINE_PREFIX}{number}")

    async def stop(self) -> None:
        """Stop everything, engines first."""
        self._is_stopping = True
        for task in self._restarts:
            task.cancel()
        await asyncio.gather(*self._restarts, return_exceptions=True)
        self._continue_all()
        await self._children.stop(self.names(ENGINE_PREFIX), GRACE_SECONDS)
        await self._children.stop(self._children.names(), 2.0)
        if self.kafka.pid is not None:
            os.kill(self.kafka.pid, signal.SIGKILL)  # nobody looks at its data again
        await self.kafka.stop()

    def names(self, prefix: str) -> list[str]:
        """Children that run."""
        children = [(name, self._children.get(name)) for name in self._children.names(prefix)]
        return [name for name, child in children if child is not None and child.pid and child.exit_code is None]

    async def settled(self) -> None:
        """Return when everything that was to be started again has been."""
        while self._restarts:
            await asyncio.gather(*self._restarts, return_exceptions=True)

    async def start_engine(self, name: str) -> None:
        """Start an engine; it needs a second or two until it is a member of its groups."""
        arguments = ["--app", self.app, "--kafka", self.kafka.bootstrap, "--dask", self._dask.address]
        command = [sys.executable, "-m", "tests.chaos.engine_process", self.variant, "run", "tests.chaos.flows", *arguments]
        point = self._dooms.pop(name, "")
        environment = {**self._environment, **({POINT: point} if point else {})}
        child = await self._children.launch(name, [*command, "--http", "127.0.0.1:0"], environment)
        if point:
            self._doomed[_pid(child)] = point
        self.note("start", child)

    # --- What the nemesis does -------------------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """kill -9; it is started again."""
        child = self._child(name)
        self._expected.add(_pid(child))
        self.note("kill", child)
        child.kill()

    def doom(self, name: str, point: str, passage: int) -> None:
        """kill -9; the one that is started again dies by itself at a point, if it comes there."""
        self._dooms[name] = f"{point}|{passage}"
        self.kill(name)

    async def pause(self, name: str, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        child = self._child(name)
        self.note("stop", child)
        os.killpg(_pid(child), signal.SIGSTOP)
        await asyncio.sleep(seconds)
        if child.exit_code is None:
            os.killpg(_pid(child), signal.SIGCONT)
            self.note("continue", child)

    async def leave(self, name: str) -> None:
        """SIGTERM, and how it ends."""
        child = self._child(name)
        self._expected.add(_pid(child))
        self.note("leave", child)
        os.kill(_pid(child), signal.SIGTERM)
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await child.wait()
        except TimeoutError:
            child.kill()  # its exit code says that it did not go by itself
            await child.wait()
        self.note("left", child, child.exit_code)

    async def leave_for_good(self, name: str) -> None:
        """SIGTERM, and nobody starts it again."""
        self._gone.add(name)
        await self.leave(name)

    async def kill_dask(self) -> None:
        """kill -9 of the scheduler. Its workers never come back to a new one: they are started again with it."""
        self._is_dask_down = True
        # A worker that is just coming up would miss the new scheduler.
        restarts = [task for task in self._restarts if WORKER_PREFIX in task.get_name()]
        for task in restarts:
            task.cancel()
        await asyncio.gather(*restarts, return_exceptions=True)
        for name in (SCHEDULER, *self.names(WORKER_PREFIX)):
            child = self._child(name)
            self._expected.add(_pid(child))
            self.note("kill" if name == SCHEDULER else "restart", child)
            child.kill()
        await self._dask.start()
        self._is_dask_down = False

    async def kill_broker(self) -> None:
        """kill -9 of Kafka, and a start with the same data and ports."""
        pid = self.kafka.pid
        assert pid is not None
        self.faults.append(Fault(time.time(), "kill", "broker", "kafka", pid))
        os.kill(pid, signal.SIGKILL)
        await self.kafka.wait()
        await self.kafka.stop()
        await self.kafka.start(lambda line: None)
        self.faults.append(Fault(time.time(), "start", "broker", "kafka", self.kafka.pid or 0))

    async def pause_broker(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        pid = self.kafka.pid
        assert pid is not None
        self.faults.append(Fault(time.time(), "stop", "broker", "kafka", pid))
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
        self.faults.append(Fault(time.time(), "continue", "broker", "kafka", pid))

    async def snapshots(self) -> list[Snapshot]:
        """What the engines' ledgers say; call it when nothing moves."""
        found: list[Snapshot] = []
        for name in self.names(ENGINE_PREFIX):
            child = self._child(name)
            file = self.directory / f"snapshot.{child.pid}"
            file.unlink(missing_ok=True)
            os.kill(_pid(child), signal.SIGUSR1)
            async with asyncio.timeout(120.0):
                while not file.exists():  # noqa: ASYNC110  # another process writes it
                    await asyncio.sleep(0.05)
            found += msgspec.json.decode(file.read_bytes(), type=list[Snapshot])
        return found

    def note(self, what: str, child: ChildProcess, code: int | None = None, point: str = "") -> None:
        """Write into the log what happens to a process, before it does."""
        whom = child.name.partition("-")[0]
        self.faults.append(Fault(time.time(), what, whom, child.name, child.pid or 0, code, point))

    def _child(self, name: str) -> ChildProcess:
        child = self._children.get(name)
        if child is None:
            raise LookupError(f"{name} does not run")
        return child

    def _ended(self, child: ChildProcess) -> None:
        if self._is_stopping:
            return
        point = self._doomed.pop(_pid(child), "")
        if _pid(child) not in self._expected:
            is_doomed = bool(point) and child.exit_code == -signal.SIGKILL
            self.note("kill" if is_doomed else "exit", child, child.exit_code, point if is_doomed else "")
        if child.name in self._gone:
            return
        if child.name.startswith(ENGINE_PREFIX):
            self._soon(self.start_engine(child.name), child.name)
        elif child.name.startswith(WORKER_PREFIX) and not self._is_dask_down:
            self._soon(self._dask.start_workers([child.name]), child.name)

    def _soon(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"restart-{name}")
        self._restarts.add(task)
        task.add_done_callback(self._restarted)

    def _restarted(self, task: asyncio.Task[None]) -> None:
        self._restarts.discard(task)
        # Killed before it was up, say: its end is in the log, and it is started once more.
        _ = task.cancelled() or task.exception()

    def _continue_all(self) -> None:
        for name in self._children.names():
            child = self._children.get(name)
            if child is not None and child.pid and child.exit_code is None:
                os.killpg(child.pid, signal.SIGCONT)


def _pid(child: ChildProcess) -> int:
    assert child.pid is not None
    return child.pid
