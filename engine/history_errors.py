"""Errors of the history database; like all others they say what failed, why, and what to do next."""

from __future__ import annotations

from engine.errors import EngineError
from engine.history_places import is_server, shown

#: What mends a database that cannot be read.
REBUILD = "Run: engine history rebuild"


class HistoryUnavailable(EngineError):
    """Raised when the history database cannot be read or written now: locked, on a full disk, its folder or server not there.

    The projector keeps its offsets with its rows, so nothing is lost: it tries again until it can, then goes on.
    Queries and other commands end with it.
    """

    exit_code = 4

    def __init__(self, path: str, cause: str) -> None:
        path = shown(path)
        super().__init__(path, cause)
        self.path, self.cause = path, cause

    def __str__(self) -> str:
        what = "server, network, user and password" if is_server(self.path) else "disk, folder and permissions"
        return f"history database {self.path}: {self.cause}. See to {what}; nothing is lost meanwhile."


class HistoryUnreadable(EngineError):
    """Raised when the history database is damaged, of another version or app, or no database of ours at all.

    The projector ends with it and changes nothing. All of it is on the topics, so `engine history rebuild` mends it.
    """

    def __init__(self, path: str, cause: str, remedy: str) -> None:
        path = shown(path)
        super().__init__(path, cause, remedy)
        self.path, self.cause, self.remedy = path, cause, remedy

    def __str__(self) -> str:
        return f"history database {self.path}: {self.cause}. {self.remedy}"


class HistoryInUse(EngineError):
    """Raised when another projector writes to the same history database. This one ends; one is enough."""

    def __init__(self, path: str) -> None:
        path = shown(path)
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"history database {self.path}: another process writes to it. Stop that one, or name another one (--history)."
