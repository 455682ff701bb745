"""A run as the scheduler plugin holds it: its keys, its owner, and what its calls have come to."""

from __future__ import annotations

import msgspec

from engine.executor import Report


class HeldRun:
    """A run whose keys the scheduler keeps."""

    __slots__ = ("client", "final", "keys", "promise", "reports", "shared", "slot", "spawned")

    def __init__(self, slot: tuple[str, int], client: str) -> None:
        #: App and partition, and the client of the engine that owns it.
        self.slot = slot
        self.client = client
        #: By index.
        self.keys: dict[str, str] = {}
        #: The latest report of each call, in the order of their ends: a flow that is gone through again hears them so.
        self.reports: dict[str, Report] = {}
        self.spawned: list[Report] = []
        #: The call that gives the flow's result, as far as it is known; what stands for it until the run ends, where anything
        #: does; and which of the two is in the run's Variable.
        self.final: str | None = None
        self.promise: str | None = None
        self.shared: str | None = None

    def all_keys(self) -> list[str]:
        """What it has on the scheduler."""
        return [*self.keys.values(), *([self.promise] if self.promise is not None else [])]

    def hear(self, report: Report) -> None:
        """Keep what a call has come to; what it has started is kept beside that, in ``spawned``."""
        known = self.reports.get(report.index)
        if not report.spawned:
            self.reports.pop(report.index, None)  # so that the order is that of the ends
            self.reports[report.index] = report
        elif known is None or known.attempt < report.attempt:
            # It says as well that the attempt has begun, and the report that says so alone may still be on its way.
            self.reports[report.index] = msgspec.structs.replace(report, spawned=())
