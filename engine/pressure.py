"""Pressure: when reading the state topic pauses, and when runs are left on the log instead; pure.

A flow of which much waits pauses reading, which is cheap and enough for a burst. One of which much has waited for some seconds
without a break stays on the log while all others go by. An ordering key is slow by nature, and is left there at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.ledger import Ledger
from engine.waitlist import Waitlist

#: How long a flow may keep everybody else waiting, before reading all of it twice is worth its price.
PATIENCE_SECONDS = 2.0
#: When no more than this part waits, the flow has kept up after all.
_BREAK_PART = 10
#: A key may take this part of what may wait of its flow.
_KEY_PART = 4
#: Keys of one partition that may be left on the log, each with a lane of its own; further ones take their flow with them.
_MAX_KEYS = 16


class Pressure:
    """Decides for one engine."""

    def __init__(self, waitlist: Waitlist, max_waiting: int) -> None:
        """At most about ``max_waiting`` runs of a flow wait in memory; a poll may bring a few more."""
        self._waitlist = waitlist
        self._most = max_waiting
        self._most_of_key = max(1, max_waiting // _KEY_PART)
        #: Flows for which reading pauses.
        self._paused: set[str] = set()
        #: Flows of which much has waited ever since, time and again too much.
        self._since: dict[str, float] = {}

    @property
    def is_paused(self) -> bool:
        """Whether reading is to pause."""
        return bool(self._paused)

    def leaves(self, ledger: Ledger, flow: str, key: str | None, offset: int) -> bool:
        """Whether a run whose SCHEDULED lies at ``offset`` stays on the log for now."""
        if ledger.shelf.covers(flow, key, offset):
            return True
        return key is not None and self.leaves_key(ledger, flow, key, offset)

    def leaves_key(self, ledger: Ledger, flow: str, key: str, offset: int) -> bool:
        """The same for the key alone, where its flow's lane is being read."""
        if self._waitlist.behind(ledger.partition, flow, key) < self._most_of_key or len(ledger.shelf.lanes) >= _MAX_KEYS:
            return False
        ledger.shelf.put((flow, key), offset)
        return True

    def room(self, partition: int, flow: str, key: str | None) -> int:
        """How many runs may be fetched for a lane: none before half of what may wait is gone."""
        if key is not None:
            most, waiting = self._most_of_key, self._waitlist.behind(partition, flow, key)
        else:
            most, waiting = self._most, self._waitlist.weight(flow)
        return most - waiting if waiting <= most // 2 else 0

    def regulate(self, ledgers: Iterable[Ledger], now: float) -> list[str]:
        """Look what waits; answers the flows that are put on the shelf now, of all partitions that have recovered."""
        slow: list[str] = []
        for flow, weight in self._waitlist.weights():
            if weight <= (self._most // 2 if flow in self._paused else self._most):
                self._paused.discard(flow)
                if weight <= self._most // _BREAK_PART:
                    self._since.pop(flow, None)
                continue
            lacking = [one for one in ledgers if one.is_recovered and (flow, None) not in one.shelf.lanes]
            if not lacking:
                self._paused.discard(flow)
            elif now - self._since.setdefault(flow, now) < PATIENCE_SECONDS:
                self._paused.add(flow)
            else:
                self._paused.discard(flow)
                slow.append(flow)
                for ledger in lacking:
                    ledger.shelf.put((flow, None), ledger.next_offset)
        return slow
