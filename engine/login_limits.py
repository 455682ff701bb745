"""How often one may guess a token: wrong ones by their sender, within a time; the counting alone, no clock."""

from __future__ import annotations

from collections import OrderedDict, deque

#: Wrong tokens of one sender within the time; more are not even looked at.
MOST_FAILURES = 10
WITHIN_SECONDS = 60.0
#: Senders that are remembered, the latest.
MOST_SENDERS = 10_000


class LoginLimits:
    """The failures of each sender."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_seconds(self, sender: str, now: float) -> float:
        """How long the sender has to wait before another token of theirs is looked at; 0 where they need not."""
        failures = self._failures.get(sender)
        if failures is None or len(failures) < MOST_FAILURES:
            return 0.0
        return max(0.0, failures[0] + WITHIN_SECONDS - now)

    def failed(self, sender: str, now: float) -> None:
        """Count a wrong token."""
        failures = self._failures.setdefault(sender, deque(maxlen=MOST_FAILURES))
        failures.append(now)
        self._failures.move_to_end(sender)
        if len(self._failures) > MOST_SENDERS:
            self._failures.popitem(last=False)

    def succeeded(self, sender: str) -> None:
        """Forget the failures of a sender."""
        self._failures.pop(sender, None)
