"""Child processes that end with us: each in a session of its own, its output in a file, killed with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from engine.command_errors import StackError

#: How often a child is asked whether it is ready.
POLL_SECONDS = 0.05

_LEASH = Path(__file__).with_name("leash.py")
_TAIL_BYTES = 16_384
#: A log that has become longer is begun anew; the end of it stays beside it. Looked at so often.
MOST_LOG_BYTES = 64 * 1024 * 1024
LOG_SECONDS = 2.0
_KEPT_LOG_BYTES = 1024 * 1024


def leashed(command: Sequence[str]) -> tuple[str, ...]:
    """The command, so that it dies with this process."""
    # Isolated and without site-packages, Python needs 20 ms for the leash; the command itself runs unrestricted.
    return (sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), *command)


class ChildProcess:
    """One run of a command. Start it from a thread that lives as long as it should: Linux kills it when that thread is gone."""

    def __init__(self, name: str, command: Sequence[str], *, log_file: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log_file = log_file
        self._command = tuple(command)
        self._environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process, which is also its process group and its session; None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start it; what it prints is appended to ``log_file``."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *leashed(self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Ctrl-C in the terminal must reach the parent alone, which stops its children in order.
                start_new_session=True,
            )

    async def until(self, ready: Callable[[], Awaitable[bool]], timeout_seconds: float) -> None:
        """Return when ``ready`` says so. Raises StackError, with the end of its log, when it ended or takes too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not await ready():
                    if self.exit_code is not None:
                        raise StackError(self.name, f"ended with code {self.exit_code}", self._story())
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise StackError(self.name, f"not ready after {timeout_seconds:g} s", self._story()) from error

    async def wait(self) -> int:
        """Wait until it ends, whatever the reason; answers its exit code."""
        if self._process is None:
            return 0
        return await self._process.wait()

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, and after ``grace_seconds`` make it; then kill what it has left behind."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
        except TimeoutError:
            pass  # It had its time; the next line ends it.
        finally:
            self.kill()
        await self._process.wait()

    def kill(self) -> None:
        """Kill it and all that it started, at once."""
        self._signal(signal.SIGKILL)

    def tail(self, lines: int = 15) -> str:
        """The last lines that this run has printed."""
        try:
            with self.log_file.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""  # Never started, or its folder was cleared: there is nothing to tell.
        return "\n".join(text.strip().splitlines()[-lines:])

    def bound_log(self) -> None:
        """Begin the log anew where it is too long, keeping its end as ``….log.1``; what is printed meanwhile may be lost.

        The process goes on writing to the same file: it appends, so what comes next is at the file's new end.
        """
        try:
            size = self.log_file.stat().st_size
            if size <= MOST_LOG_BYTES:
                return
            with self.log_file.open("r+b") as log:
                log.seek(max(0, size - _KEPT_LOG_BYTES))
                self.log_file.with_name(f"{self.log_file.name}.1").write_bytes(log.read(_KEPT_LOG_BYTES))
                log.truncate(0)
            self._log_start = 0
        except OSError:
            return  # Its folder was cleared, or the disk is full: looked at again soon.

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            # Where nothing is left of the group (macOS says so by PermissionError) there is nobody to tell.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _story(self) -> str:
        return f"Its log is {self.log_file}; it ends with:\n{self.tail()}"


class Children:
    """The child processes of one parent, by name; says when one ends that was not told to."""

    def __init__(self, logs: Path, ended: Callable[[ChildProcess], None]) -> None:
        self._logs = logs
        self._ended = ended
        self._running: dict[str, ChildProcess] = {}
        self._ending: set[ChildProcess] = set()
        self._watches: dict[ChildProcess, asyncio.Task[None]] = {}

    @property
    def pids(self) -> dict[str, int]:
        """Process by name."""
        return {name: child.pid for name, child in self._running.items() if child.pid is not None}

    def get(self, name: str) -> ChildProcess | None:
        """The child of that name, running or just ended; None where it was stopped."""
        return self._running.get(name)

    def names(self, prefix: str = "") -> list[str]:
        """Those that begin with ``prefix``."""
        return [name for name in self._running if name.startswith(prefix)]

    async def launch(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> ChildProcess:
        """Start a child; one of the same name is ended first."""
        await self.stop([name], 0.0)
        child = ChildProcess(name, command, log_file=self._logs / f"{name}.log", environment=environment)
        self._running[name] = child
        await child.start()
        self._watches[child] = asyncio.create_task(self._watch(child), name=f"watch-{name}")
        return child

    async def stop(self, names: Sequence[str], grace_seconds: float) -> None:
        """Stop these at the same time."""
        # Taken out first: then their end is no news.
        children = [child for name in names if (child := self._running.pop(name, None)) is not None]
        self._ending |= set(children)
        try:
            await asyncio.gather(*(child.stop(grace_seconds) for child in children))
            await asyncio.gather(*(watch for child in children if (watch := self._watches.pop(child, None)) is not None))
        finally:
            self._ending -= set(children)

    def kill(self) -> None:
        """Kill all at once, those that are being stopped too; whoever waits for one of them is told."""
        for child in (*self._running.values(), *self._ending):
            child.kill()

    async def _watch(self, child: ChildProcess) -> None:
        ending = asyncio.create_task(child.wait(), name=f"wait-{child.name}")
        try:
            while not (await asyncio.wait([ending], timeout=LOG_SECONDS))[0]:
                await asyncio.to_thread(child.bound_log)
        finally:
            ending.cancel()
        if self._running.get(child.name) is child:
            self._ended(child)


async def run_to_end(child: ChildProcess, timeout_seconds: float) -> int:
    """Start a child and wait for its end; answers its exit code, -9 where it was killed for taking too long."""
    await child.start()
    try:
        async with asyncio.timeout(timeout_seconds):
            return await child.wait()
    except TimeoutError:
        return -signal.SIGKILL  # The finally below kills it.
    finally:
        await child.stop(0.0)
