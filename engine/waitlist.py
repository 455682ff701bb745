"""The waitlist: which runs may begin, in which order; pure. Flows take turns, and one at its limit is passed over.

Runs of a flow with one ordering key go one after the other, and hold back nobody but each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from engine.ledger import Ledger
from engine.runs import FlowRun

#: An open run, and the ledger it stands in.
Entry = tuple[Ledger, FlowRun]

#: Parameters of so many bytes count as one more run: what is bounded is memory.
_WEIGHT_SHIFT = 14


class _Line:
    """The runs of one flow."""

    __slots__ = ("begun", "is_in_turn", "limit", "parked", "ready", "weight")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.ready: deque[Entry] = deque()
        #: Runs that have begun and not ended, with their partitions; and those of them that only wait.
        self.begun: dict[str, int] = {}
        self.parked: set[str] = set()
        self.is_in_turn = False
        #: Of all its runs that have not begun, also of those behind a key.
        self.weight = 0

    @property
    def room(self) -> int:
        return self.limit - len(self.begun) + len(self.parked)


class Waitlist:
    """Runs that are open and have not begun, and how many of each flow have."""

    def __init__(self, limit: int = 1 << 30, limits: Mapping[str, int] | None = None) -> None:
        """At most ``limit`` runs of a flow may be begun and not ended, or as many as ``limits`` says for it."""
        self._limit = limit
        self._limits = dict(limits or {})
        self._lines: dict[str, _Line] = {}
        #: Flows of which a run may begin now, the one that is next first.
        self._turns: deque[_Line] = deque()
        #: Ordering keys in use, by (partition, flow, key), and the runs that wait for each.
        self._behind: dict[tuple[int, str, str], deque[Entry]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def ready(self) -> int:
        """How many runs may begin now."""
        return sum(min(len(line.ready), line.room) for line in self._turns)

    @property
    def has_ready(self) -> bool:
        """Whether any run may begin now."""
        return bool(self._turns)

    @property
    def parked(self) -> int:
        """How many runs that began only wait."""
        return sum(len(line.parked) for line in self._lines.values())

    def weights(self) -> list[tuple[str, int]]:
        """How heavy what waits of each flow is: one for each run, and one for every 16 KiB of its parameters."""
        return [(flow, line.weight) for flow, line in self._lines.items()]

    def weight(self, flow: str) -> int:
        """How heavy what waits of a flow is; see ``weights``."""
        line = self._lines.get(flow)
        return 0 if line is None else line.weight

    def begun(self) -> dict[str, tuple[int, int]]:
        """By flow: how many runs have begun and not ended, and how many of them only wait."""
        return {flow: (len(line.begun), len(line.parked)) for flow, line in self._lines.items()}

    def behind(self, partition: int, flow: str, key: str) -> int:
        """How many runs wait for an ordering key."""
        queue = self._behind.get((partition, flow, key))
        return 0 if queue is None else len(queue)

    def add(self, ledger: Ledger, run: FlowRun) -> None:
        """A run was opened."""
        line = self._lines.get(run.flow)
        if line is None:
            line = self._lines[run.flow] = _Line(self._limits.get(run.flow, self._limit))
        self._count += 1
        line.weight += _weight(run)
        if run.key is not None:
            key = (ledger.partition, run.flow, run.key)
            if key in self._behind:
                self._behind[key].append((ledger, run))
                return
            self._behind[key] = deque()
        line.ready.append((ledger, run))
        self._queue(line)

    def take(self, count: int) -> list[Entry]:
        """At most ``count`` runs that begin now, of each flow in turn; the key of each is in use until ``end``."""
        taken: list[Entry] = []
        turns = self._turns
        while turns and len(taken) < count:
            line = turns[0]
            entry = line.ready.popleft()
            ledger, run = entry
            line.begun[run.run_id] = ledger.partition
            line.weight -= _weight(run)
            taken.append(entry)
            if not line.ready or line.room <= 0:
                line.is_in_turn = False
                turns.popleft()
            elif len(turns) > 1:
                turns.rotate(-1)
        self._count -= len(taken)
        return taken

    def withdraw(self, ledger: Ledger, run: FlowRun) -> bool:
        """A run will not begin; False where it does not wait here."""
        line = self._lines.get(run.flow)
        entry = (ledger, run)
        if line is None:
            return False
        queue = None if run.key is None else self._behind.get((ledger.partition, run.flow, run.key))
        if entry in line.ready:
            line.ready.remove(entry)
            if queue:
                line.ready.append(queue.popleft())
            elif run.key is not None:
                self._behind.pop((ledger.partition, run.flow, run.key), None)
        elif queue is not None and entry in queue:
            queue.remove(entry)
        else:
            return False
        self._lose(line, [entry])
        self._check(line)
        return True

    def park(self, run: FlowRun) -> bool:
        """A run that began only waits (it sleeps, or awaits an event): it does not count until ``unpark``. Whether it did."""
        line = self._lines.get(run.flow)
        if line is None or run.run_id not in line.begun or run.run_id in line.parked:
            return False
        line.parked.add(run.run_id)
        self._queue(line)
        return True

    def unpark(self, run: FlowRun) -> None:
        """A run that waited goes on: its flow may be above its limit until others have ended."""
        line = self._lines.get(run.flow)
        if line is not None and run.run_id in line.parked:
            line.parked.remove(run.run_id)
            self._check(line)

    def end(self, ledger: Ledger, run: FlowRun) -> None:
        """A run that began has ended: the next with its ordering key may begin."""
        line = self._lines.get(run.flow)
        if line is None or line.begun.pop(run.run_id, None) is None:
            return  # forgotten with its partition
        line.parked.discard(run.run_id)
        if run.key is not None:
            key = (ledger.partition, run.flow, run.key)
            queue = self._behind.get(key)
            if queue:
                line.ready.append(queue.popleft())
            elif queue is not None:
                del self._behind[key]
        self._queue(line)

    def drop(self, partition: int) -> None:
        """Forget the runs of a partition that was lost; its keys are free, as a key is of one partition."""
        for key in [key for key in self._behind if key[0] == partition]:
            self._lose(self._lines[key[1]], self._behind.pop(key))
        for line in self._lines.values():
            self._lose(line, [entry for entry in line.ready if entry[0].partition == partition])
            line.ready = deque(entry for entry in line.ready if entry[0].partition != partition)
            line.begun = {run_id: number for run_id, number in line.begun.items() if number != partition}
            line.parked &= line.begun.keys()
            self._check(line)
            self._queue(line)

    def _lose(self, line: _Line, entries: deque[Entry] | list[Entry]) -> None:
        self._count -= len(entries)
        line.weight -= sum(_weight(run) for _, run in entries)

    def _queue(self, line: _Line) -> None:
        if not line.is_in_turn and line.ready and line.room > 0:
            line.is_in_turn = True
            self._turns.append(line)

    def _check(self, line: _Line) -> None:
        if line.is_in_turn and not (line.ready and line.room > 0):
            line.is_in_turn = False
            self._turns.remove(line)


def _weight(run: FlowRun) -> int:
    return 1 + (len(run.parameters) >> _WEIGHT_SHIFT)
