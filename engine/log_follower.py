"""Follows the log file of a child to our standard error, as the child writes it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

_LOOK_SECONDS = 0.2


class LogFollower:
    """Passes on what is appended to a file that may come later, and come anew."""

    def __init__(self, file: Path) -> None:
        self._file = file
        # What is there already is of an earlier start.
        self._inode, self._offset = (file.stat().st_ino, file.stat().st_size) if file.is_file() else (0, 0)

    async def run(self) -> None:
        """Until cancelled; then what is still there is passed on."""
        try:
            while True:
                self._pass_on()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        try:
            inode = self._file.stat().st_ino
            with self._file.open("rb") as log:
                log.seek(self._offset if inode == self._inode else 0)
                text = log.read()
                self._inode, self._offset = inode, log.tell()
        except FileNotFoundError:
            return  # Not started yet.
        if text:
            # Our own engine's log, whose renderers have escaped what came with events.
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()
