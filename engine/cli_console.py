"""The console that commands draw on: as wide as the terminal, and without an edge where there is none; knows no words."""

from __future__ import annotations

import os
from typing import Never

from rich.console import Console

#: A pipe or a file has no edge: nothing is cut, or folded into a second line, that `grep` then looks for in vain.
_NO_EDGE = 1_000


class CommandConsole(Console):
    """Prints on standard output; where its reader has gone, raises BrokenPipeError as any other print does."""

    def __init__(self, *, soft_wrap: bool = False) -> None:
        super().__init__(highlight=False, soft_wrap=soft_wrap)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _NO_EDGE

    def on_broken_pipe(self) -> Never:
        """Rich would exit with 1 here, which says that a run has failed."""
        raise BrokenPipeError
