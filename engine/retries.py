"""Retries: the policy a task declares, and the verdict after a failed attempt; pure. tenacity lives here alone.

tenacity gives the waits; its loop is not used, because an attempt is a new submission to the cluster and no worker
sleeps between two.
"""

from __future__ import annotations

import sys

import tenacity
from tenacity.wait import wait_base

from engine.errors import DeclarationError

__all__ = ["Retry", "exponential", "fixed", "jittered", "next_wait_seconds"]


class Retry:
    """How often and when a failed task is tried again.

    ``attempts`` counts all attempts, the first included. ``wait`` gives the time between two (default: one second).
    """

    __slots__ = ("attempts", "wait")

    def __init__(self, attempts: int, wait: wait_base | float = 1.0) -> None:
        if attempts < 1:
            place = sys._getframe(1)
            raise DeclarationError(
                place.f_code.co_filename,
                place.f_lineno,
                f"Retry(attempts={attempts}) allows no attempt at all",
                "Give the number of all attempts, the first included.",
            )
        self.attempts = attempts
        self.wait = fixed(wait) if isinstance(wait, int | float) else wait

    def __repr__(self) -> str:
        return f"Retry(attempts={self.attempts}, wait={type(self.wait).__name__})"


def exponential(first_seconds: float, *, factor: float = 2.0, max_seconds: float = 3600.0) -> wait_base:
    """Wait ``first_seconds``, then ``factor`` times longer each time, never more than ``max_seconds``."""
    return tenacity.wait_exponential(multiplier=first_seconds, exp_base=factor, max=max_seconds)


def fixed(seconds: float) -> wait_base:
    """Wait ``seconds`` each time."""
    return tenacity.wait_fixed(seconds)


def jittered(first_seconds: float, *, max_seconds: float = 3600.0) -> wait_base:
    """Wait a random time between nothing and an exponentially growing limit ("full jitter")."""
    return tenacity.wait_random_exponential(multiplier=first_seconds, max=max_seconds)


def next_wait_seconds(retry: Retry | None, attempt: int) -> float | None:
    """How long to wait after failed attempt number ``attempt`` (1 for the first); None when none is left."""
    if retry is None or attempt >= retry.attempts:
        return None
    # tenacity's waits read only the attempt number off the state they are given.
    state = tenacity.RetryCallState(retry_object=tenacity.AsyncRetrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    return float(retry.wait(state))
