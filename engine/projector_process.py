"""The projector as a process of its own beside a dashboard, so that pages stay quick: started, watched, started again.

Where another process writes to the same database it waits until that one is gone, and then takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping

import msgspec

from engine.history_opener import is_in_use
from engine.logs import logger
from engine.processes import leashed
from engine.settings import NOT_FOR_WORKERS, Settings

_STARTING = "the projector is starting"
#: How often it is looked whether another writer has gone.
_LOOK_SECONDS = 1.0
#: Between two starts of one that ends; it doubles up to the limit.
_BACKOFF_SECONDS, _BACKOFF_LIMIT_SECONDS = 1.0, 30.0
#: What it has to write a batch and leave.
_GRACE_SECONDS = 5.0
#: Of one line of its log.
_LINE_BYTES = 1024 * 1024


class _Told(msgspec.Struct):
    message: str = ""


class _Waiting(msgspec.Struct):
    """What it says with ``--json`` while it runs: first that it has begun, without trouble."""

    trouble: str = ""


class _Ending(msgspec.Struct):
    """What a command says with ``--json`` of the error that ended it."""

    error: _Told


class ProjectorProcess:
    """Runs ``engine history run`` on the database of the settings, until stopped."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], *, fresh: bool = False) -> None:
        """``fresh`` begins with empty tables, once."""
        self._is_fresh = fresh
        self._settings = settings
        # It is to see Kafka and the database; who may look at pages is none of its business.
        self._environment = {name: text for name, text in environment.items() if name not in NOT_FOR_WORKERS}
        # Not as a flag, which everybody on the machine can read: there may be a password in it.
        self._environment["ENGINE_HISTORY"] = settings.history
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._last_line = b""
        #: Why it does not run now; empty where it does, or another process does its work.
        self.trouble = _STARTING
        #: Whether another process writes to the database.
        self.is_elsewhere = False

    def stop(self) -> None:
        """Let ``run`` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Keep it running. It outlives whatever ends it: pages say so, and show what there is."""
        backoff, loop = _BACKOFF_SECONDS, asyncio.get_running_loop()
        while not self._stopping.is_set():
            self.is_elsewhere = await asyncio.to_thread(is_in_use, self._settings.history_path)
            if self.is_elsewhere:
                self.trouble = ""
                await self._rest(_LOOK_SECONDS)
                continue
            self.trouble, began = _STARTING, loop.time()
            try:
                code = await self._run_once()
            except OSError as error:  # no memory or no processes left for it: it is tried again
                code, self._last_line = -1, str(error).encode()
            if self._stopping.is_set():
                return
            if loop.time() - began > 2 * _BACKOFF_LIMIT_SECONDS:
                backoff = _BACKOFF_SECONDS
            self.trouble = _reason(self._last_line) or f"the projector ended with code {code}"
            logger.warning("the projector ended", code=code, reason=self.trouble, again_in_seconds=backoff)
            await self._rest(backoff)
            backoff = min(2 * backoff, _BACKOFF_LIMIT_SECONDS)

    async def _run_once(self) -> int:
        settings = self._settings
        command = (sys.executable, "-m", "engine", "history", "run", "--json")
        where = ("--app", settings.app, "--kafka", settings.kafka)
        again, self._is_fresh = (("--fresh",) if self._is_fresh else ()), False
        process = self._process = await asyncio.create_subprocess_exec(
            *leashed((*command, *where, *again)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            limit=_LINE_BYTES,
            # A signal to our whole group (Ctrl-C, or the end of `engine dev`) must reach us alone, who end it in order:
            # one that ended by itself would be complained of.
            start_new_session=True,
        )
        self._last_line = b""
        reading = [
            asyncio.create_task(self._hear(process.stdout), name="projector-trouble"),
            asyncio.create_task(self._pass_on(process.stderr), name="projector-log"),
        ]
        ending = asyncio.create_task(process.wait(), name="projector-end")
        stopping = asyncio.create_task(self._stopping.wait(), name="projector-stop")
        try:
            await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(process)
            stopping.cancel()
            await asyncio.gather(ending, *reading, stopping, return_exceptions=True)
        return process.returncode or 0

    async def _hear(self, stdout: asyncio.StreamReader | None) -> None:
        while stdout is not None:
            try:
                line = await stdout.readline()
                if not line:
                    return
                self.trouble = msgspec.json.decode(line, type=_Waiting).trouble
            except (ValueError, msgspec.MsgspecError):
                continue  # A line that is too long, or none of ours: it says nothing of how it is.

    async def _pass_on(self, stderr: asyncio.StreamReader | None) -> None:
        """Its log is ours."""
        while stderr is not None:
            try:
                line = await stderr.readline()
            except ValueError:
                continue  # A line that is too long is lost; the next one is not.
            if not line:
                return
            self._last_line = line
            # Why it ended is told with what ``run`` does about it. A line of the log may begin with an error, too.
            if not _reason(line):
                sys.stderr.write(line.decode(errors="replace"))
                sys.stderr.flush()

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):  # the time is over: once more
            await asyncio.wait_for(self._stopping.wait(), seconds)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_GRACE_SECONDS):
            await process.wait()
    except TimeoutError:
        # Its batch is not written, nor are its offsets: the next one reads it again.
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _reason(line: bytes) -> str:
    try:
        return msgspec.json.decode(line, type=_Ending).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""  # It ended in a way of which it said nothing.
