"""The follower: reads what a trial's engines write while they do, so that somebody can act on it; it may be late or wrong.

What an owner that had lost its partition has written counts here like anything else: the checker alone knows better.
"""

from __future__ import annotations

import contextlib
import json

from tests.chaos.histories import Logged
from tests.chaos.observers import TROUBLE, Reader

_ENDS = frozenset({"completed", "failed", "crashed", "cancelled"})


class Follower:
    """Which runs there are, and which have ended."""

    def __init__(self, reader: Reader, app: str) -> None:
        self._reader = reader
        self._app = app
        #: Records that were looked at.
        self._seen = 0
        #: The flow of each run.
        self.flows: dict[str, str] = {}
        #: The end of each run that has one, in lower case.
        self.ended: dict[str, str] = {}
        #: Dead letters, without marks.
        self.letters: list[Logged] = []
        self.replays: list[Logged] = []

    @property
    def open(self) -> list[str]:
        """Runs that have not ended."""
        return [run_id for run_id in self.flows if run_id not in self.ended]

    async def look(self) -> None:
        """See what has come since."""
        with contextlib.suppress(*TROUBLE):  # the broker is away: the next look finds the rest
            await self._reader.read_on()
        seen, self._seen = self._seen, len(self._reader.records)
        for record in self._reader.records[seen:]:
            self._take(record)

    def _take(self, record: Logged) -> None:
        if record.topic == f"{self._app}.replays":
            self.replays.append(record)
        elif record.topic == f"{self._app}.dead-letters":
            if "x-engine-reason" in record.headers:
                self.letters.append(record)
        else:
            run_id = record.headers.get("ce_subject", "")
            kind = record.headers.get("ce_type", "")
            if kind == "engine.flow_run.scheduled":
                self.flows[run_id] = json.loads(record.value or "")["flow"]
            elif kind.startswith("engine.flow_run.") and (end := kind.rpartition(".")[2]) in _ENDS:
                self.ended.setdefault(run_id, end)
