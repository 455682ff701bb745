"""The lock of a development stack's folder: two stacks on the same data would destroy it."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from engine.command_errors import StackError


class StackLock:
    """Held from ``take`` until ``give_up``, or until the process has ended, however it did."""

    def __init__(self, directory: Path, app: str) -> None:
        self._directory, self._app = directory, app
        self._lock: IO[str] | None = None

    def take(self) -> None:
        """Make the folder, and lock it. Raises StackError where another stack has it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        lock = (self._directory / "stack.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise StackError(
                "stack", f"another one of app {self._app} is running", "Stop it, or choose another name with --app."
            ) from error
        self._lock = lock

    def give_up(self) -> None:
        """Let another one have it."""
        if self._lock is not None:
            self._lock.close()
