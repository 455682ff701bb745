"""Episodes: when rules over time have something to tell, and that they tell it once; pure, with time as an argument.

All of it follows from the state changes of the last ``horizon_seconds`` and the clock, so it is made anew from the topic.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Sequence

import msgspec

from engine.rules import Kind, Rule
from engine.states import StateChange

#: Open runs that one rule watches; beyond them the oldest are given up, unless they have been told of long ago.
MOST_OPEN = 100_000


class Firing(msgspec.Struct, frozen=True):
    """A rule has something to tell."""

    rule: Rule
    #: The same after a restart: what it tells has the same delivery id.
    episode: str
    #: Seconds since the epoch.
    at: float
    #: What set it off; None where it was that nothing happened.
    change: StateChange | None
    #: When what it is about began: the first failure, the last run, the start of the run. Seconds since the epoch.
    since: float


class Failures:
    """So many within a time. An episode is over when a whole such time has passed without its number being reached again."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        #: The latest, as many as the rule counts, in order.
        self._times: list[float] = []
        self._reached_at = float("-inf")

    def take(self, change: StateChange, now: float) -> Iterable[Firing]:
        """A change has been read."""
        if not self.rule.matches(change):
            return
        # The clock of a worker may be ahead: an hour in the future would count for an hour.
        bisect.insort(self._times, min(change.at.timestamp(), now))
        del self._times[: -self.rule.failures]
        first, last = self._times[0], self._times[-1]
        if len(self._times) < self.rule.failures or last - first > self.rule.seconds:
            return
        is_new = last - self._reached_at > self.rule.seconds
        self._reached_at = last
        if is_new:
            yield Firing(self.rule, f"{change.run_id}/{change.seq}", last, change, first)

    def tick(self, now: float) -> Iterable[Firing]:
        """Time alone changes nothing."""
        return ()


class NoRun:
    """None for a time. An episode is over with the next one."""

    def __init__(self, rule: Rule, began_at: float) -> None:
        """``began_at`` stands for the last run as long as none is known."""
        self.rule = rule
        self._began_at = began_at
        self._known_at = float("-inf")
        self._is_told = False

    def take(self, change: StateChange, now: float) -> Iterable[Firing]:
        """A change has been read."""
        if self.rule.matches(change) and (at := min(change.at.timestamp(), now)) > self._known_at:
            self._known_at, self._is_told = at, False
        return ()

    def tick(self, now: float) -> Iterable[Firing]:
        """All that was written until ``now`` has been read."""
        last = self._known_at if self._known_at > float("-inf") else self._began_at
        if not self._is_told and now - last >= self.rule.seconds:
            self._is_told = True
            yield Firing(self.rule, f"{last:.6f}", now, None, last)


class LongerThan:
    """A run that is open for longer than a time, counted from its first RUNNING. Each is told of once."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._open: dict[str, StateChange] = {}
        self._ids: dict[str, set[str]] = {}
        #: When each is due; one that has ended is passed over when its time comes.
        self._due: list[tuple[float, str]] = []

    def take(self, change: StateChange, now: float) -> Iterable[Firing]:
        """A change has been read."""
        id = change.task_run_id or change.run_id
        if self.rule.covers(change):
            if change.state.is_end:
                self._forget(id)
            elif change.state == "RUNNING" and id not in self._open:
                self._begin(id, change, now)
        if change.is_flow_run and change.state.is_end:
            # Tasks whose own end was lost with their owner.
            for left in list(self._ids.get(change.run_id, ())):
                self._forget(left)
        return ()

    def tick(self, now: float) -> Iterable[Firing]:
        """All that was written until ``now`` has been read."""
        while self._due and self._due[0][0] <= now:
            due_at, id = heapq.heappop(self._due)
            change = self._open.get(id)
            # It stays among the open ones: its next attempt is no other run.
            if change is not None:
                yield Firing(self.rule, id, due_at, change, due_at - self.rule.seconds)

    def _begin(self, id: str, change: StateChange, now: float) -> None:
        self._open[id] = change
        self._ids.setdefault(change.run_id, set()).add(id)
        heapq.heappush(self._due, (min(change.at.timestamp(), now) + self.rule.seconds, id))
        if len(self._open) > MOST_OPEN:
            self._forget(next(iter(self._open)))
        if len(self._due) > 2 * MOST_OPEN:
            self._due = [entry for entry in self._due if entry[1] in self._open]
            heapq.heapify(self._due)

    def _forget(self, id: str) -> None:
        change = self._open.pop(id, None)
        if change is not None and (ids := self._ids.get(change.run_id)) is not None:
            ids.discard(id)
            if not ids:
                del self._ids[change.run_id]


class Episodes:
    """What all rules over time know. ``began_at`` is now, in seconds since the epoch."""

    def __init__(self, rules: Sequence[Rule], began_at: float) -> None:
        self._watches: list[Failures | NoRun | LongerThan] = []
        for rule in rules:
            if rule.kind is Kind.FAILURES:
                self._watches.append(Failures(rule))
            elif rule.kind is Kind.NO_RUN:
                self._watches.append(NoRun(rule, began_at))
            elif rule.kind is Kind.LONGER_THAN:
                self._watches.append(LongerThan(rule))

    @property
    def horizon_seconds(self) -> float:
        """How far back the changes lie that all of it follows from."""
        return max((watch.rule.seconds for watch in self._watches), default=0.0)

    def take(self, change: StateChange, now: float) -> list[Firing]:
        """What is to be told of a change that has been read."""
        return [firing for watch in self._watches for firing in watch.take(change, now)]

    def tick(self, now: float) -> list[Firing]:
        """What is to be told when all that was written until ``now`` has been read."""
        return [firing for watch in self._watches for firing in watch.tick(now)]

    def rebuild(self, changes: Iterable[StateChange], told_until: float, now: float) -> None:
        """Take in what has been dealt with before: nothing that was due until ``told_until`` is told again."""
        for change in sorted(changes, key=lambda change: (change.at, change.seq)):
            self.take(change, now)
        self.tick(told_until)
