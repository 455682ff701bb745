"""Errors of the history database; like all others they say what failed, why, and what to do next."""

from __future__ import annotations

from engine.errors import EngineError


class HistoryUnavailable(EngineError):
    """Raised when the history database cannot be read or written now: locked, on a full disk, in a folder that is not there.

    The projector keeps its offsets with its rows, so nothing is lost: it tries again until it can, then goes on.
    Queries and other commands end with it.
    """

    exit_code = 4

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(path, cause)
        self.path, self.cause = path, cause

    def __str__(self) -> str:
        return f"history database {self.path}: {self.cause}. See to disk, folder and permissions; nothing is lost meanwhile."


class HistoryUnreadable(EngineError):
    """Raised when the history database is damaged, of another version or app, or no database of ours at all.

    The projector ends with it and changes nothing. All of it is on the topics, so `engine history rebuild` mends it.
    """

    def __init__(self, path: str, cause: str, remedy: str) -> None:
        super().__init__(path, cause, remedy)
        self.path, self.cause, self.remedy = path, cause, remedy

    def __str__(self) -> str:
        return f"history database {self.path}: {self.cause}. {self.remedy}"


class HistoryInUse(EngineError):
    """Raised when another projector writes to the same history database. This one ends; one is enough."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"history database {self.path}: another process writes to it. Stop that one, or name another path (--history)."
