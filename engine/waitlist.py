"""The waitlist: which runs may begin, in which order; pure. Runs of a flow with one ordering key go one after the other."""

from __future__ import annotations

from collections import deque

from engine.ledger import Ledger
from engine.runs import FlowRun

#: An open run, and the ledger it stands in.
Entry = tuple[Ledger, FlowRun]


class Waitlist:
    """Runs that are open and have not begun."""

    def __init__(self) -> None:
        self._ready: deque[Entry] = deque()
        #: Ordering keys in use, by (partition, flow, key), and the runs that wait for each.
        self._behind: dict[tuple[int, str, str], deque[Entry]] = {}
        self._behind_count = 0

    def __len__(self) -> int:
        return len(self._ready) + self._behind_count

    @property
    def ready(self) -> int:
        """How many runs may begin now."""
        return len(self._ready)

    def add(self, ledger: Ledger, run: FlowRun) -> None:
        """A run was opened."""
        if run.key is None:
            self._ready.append((ledger, run))
            return
        key = (ledger.partition, run.flow, run.key)
        if key in self._behind:
            self._behind[key].append((ledger, run))
            self._behind_count += 1
        else:
            self._behind[key] = deque()
            self._ready.append((ledger, run))

    def take(self, count: int) -> list[Entry]:
        """At most ``count`` runs that begin now; the ordering key of each is in use until ``end``."""
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def end(self, ledger: Ledger, run: FlowRun) -> None:
        """A run that began has ended: the next with its ordering key may begin."""
        if run.key is None:
            return
        key = (ledger.partition, run.flow, run.key)
        queue = self._behind.get(key)
        if queue:
            self._behind_count -= 1
            self._ready.append(queue.popleft())
        elif queue is not None:
            del self._behind[key]

    def drop(self, partition: int) -> None:
        """Forget the runs of a partition that was lost; its keys are free, as a key is of one partition."""
        self._ready = deque(entry for entry in self._ready if entry[0].partition != partition)
        for key in [key for key in self._behind if key[0] == partition]:
            self._behind_count -= len(self._behind.pop(key))
