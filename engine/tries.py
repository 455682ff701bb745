"""Tries: which attempt each call of a run is at, and which calls wait for their next one; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engine.graph import Graph


class Tries:
    """The attempts of one attempt of a run."""

    def __init__(self) -> None:
        #: Of each call that has had more than one, the current.
        self._current: dict[str, int] = {}
        #: Calls between two attempts: what is heard of them is late.
        self._waiting: set[str] = set()
        #: Those and what needs them, where the cluster has lost all: to be submitted when the wait is over.
        self._held_back: set[str] = set()

    def of(self, index: str) -> int:
        """The attempt that a call is at, or that it waits to leave behind; 1 for the first."""
        return self._current.get(index, 1)

    def see(self, index: str, attempt: int) -> None:
        """The call is at this attempt."""
        self._current[index] = attempt
        self._waiting.discard(index)

    def is_late(self, index: str, attempt: int) -> bool:
        """Whether what is heard of this attempt of a call comes after its end."""
        current = self.of(index)
        return attempt < current or (attempt == current and index in self._waiting)

    def wait(self, index: str) -> None:
        """Another attempt will follow."""
        self._waiting.add(index)

    def leave(self, index: str) -> None:
        """No other attempt will follow."""
        self._waiting.discard(index)

    def go_on(self, index: str, graph: Graph, is_pending: Callable[[str], bool]) -> list[str]:
        """The wait is over: what may run now, which is the call and what was held back behind it; nothing if none waited."""
        if index not in self._waiting:
            return []
        self.see(index, self.of(index) + 1)
        again = [index]
        if index in self._held_back:
            again += (later for later in graph.downstream(index) if is_pending(later))
            self._hold_back(graph)
        return [one for one in again if one not in self._held_back]

    def lose(self, graph: Graph, pending: Iterable[str]) -> list[str]:
        """The cluster has lost everything: what of ``pending`` may run at once. No wait is cut short, but those of children.

        Their parent starts them again as if they had never run: better with the attempt that comes next, which they are
        submitted with before it can. Of those that have ended, their parent's new ones count.
        """
        pending = set(pending)
        for index in {*self._current, *self._waiting}:
            if graph.nodes[index].call.spawned_by and index in self._waiting:
                self.see(index, self.of(index) + 1)
            elif graph.nodes[index].call.spawned_by and index not in pending:
                del self._current[index]
        self._hold_back(graph)
        return [index for index in pending if index not in self._held_back]

    def ready(self, indices: Iterable[str], graph: Graph) -> Iterable[str]:
        """Which of these may be submitted now: where the cluster has lost all, none that needs what waits.

        Submitted along with it, that would run at once, as the attempt that is over.
        """
        if not self._held_back:
            return indices
        self._hold_back(graph)  # there may be calls now that there were not then
        return [index for index in indices if index not in self._held_back]

    def _hold_back(self, graph: Graph) -> None:
        self._held_back = self._waiting.union(*(graph.downstream(index) for index in self._waiting))
