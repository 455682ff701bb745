"""Deliveries: one notice for one target, what holds its offset back, and when it is tried again or given up; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.notices import Notice
from engine.retries import Retry, next_wait_seconds
from engine.targets import DEFAULT_RETRY, Target

#: Without a retry policy of its own a delivery is not tried again when it is so old: else it would take a target that hangs
#: hours to fail at all that waits for it.
GIVE_UP_SECONDS = 900.0


class Holds:
    """Up to where a partition may be committed: to the first record that somebody is still to be told of."""

    def __init__(self, start: int) -> None:
        self._next = start
        #: How many deliveries wait for the record at an offset. Offsets come in order, so the first is the lowest.
        self._held: dict[int, int] = {}

    @property
    def safe_offset(self) -> int:
        """The next offset to commit."""
        return next(iter(self._held), self._next)

    @property
    def next_offset(self) -> int:
        """Where reading goes on."""
        return self._next

    def hold(self, offset: int) -> None:
        """A delivery waits for the record at ``offset``, which is not below one that was held before."""
        self._held[offset] = self._held.get(offset, 0) + 1

    def release(self, offset: int) -> None:
        """One of them has come to its end."""
        left = self._held.get(offset, 0) - 1
        if left > 0:
            self._held[offset] = left
        else:
            self._held.pop(offset, None)

    def pass_by(self, next_offset: int) -> None:
        """All below ``next_offset`` has been looked at."""
        self._next = max(self._next, next_offset)


class Delivery:
    """One notice on its way to one target."""

    __slots__ = ("_release", "attempts", "notice", "queued_at", "target")

    def __init__(self, notice: Notice, target: Target, queued_at: float, release: Callable[[], None]) -> None:
        """``release`` is called once, when it was delivered or given up."""
        self.notice, self.target, self.queued_at = notice, target, queued_at
        self.attempts = 0
        self._release: Callable[[], None] | None = release

    def finish(self) -> None:
        """It was delivered, or given up."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def wait_seconds(self, now: float, *, is_final: bool = False, retry_after_seconds: float | None = None) -> float | None:
        """How long to wait after an attempt that has just failed; None where it is given up."""
        policy: Retry = self.target.retry or DEFAULT_RETRY
        if self.target.retry is None and now - self.queued_at >= GIVE_UP_SECONDS:
            return None
        return next_wait_seconds(policy, self.attempts, is_final=is_final, retry_after_seconds=retry_after_seconds)


def hold_all(held: Sequence[tuple[Holds, int]]) -> Callable[[], None]:
    """Hold each partition at its offset (where no record set a notice off: where reading is); answers the release of all."""
    for holds, offset in held:
        holds.hold(offset)

    def release() -> None:
        for holds, offset in held:
            holds.release(offset)

    return release
