"""Retries: the policy a task declares, and the verdict after a failed attempt; pure. tenacity lives here alone.

tenacity gives the waits; its loop is not used, because an attempt is a new submission to the cluster and no worker
sleeps between two. The verdict has two halves: ``judge`` looks at the error, on the worker, where it exists as an
object; ``next_wait_seconds`` counts attempts, in the engine, which knows of the error only as text.
"""

from __future__ import annotations

import math
import sys
from types import FrameType

import msgspec
import tenacity
from tenacity.wait import wait_base

from engine.errors import DeclarationError, RetryableError, TaskTimeout, TerminalError

__all__ = ["Retry", "exponential", "fixed", "jittered", "Verdict", "judge", "next_wait_seconds"]

Errors = type[Exception] | tuple[type[Exception], ...]

#: No wait is longer: a year, which is also what a date can still be reckoned with.
_MAX_WAIT_SECONDS = 366 * 86_400.0
#: Where a policy's wait cannot be had after all.
_FALLBACK_SECONDS = 1.0


class Retry:
    """How often and when a failed task is tried again.

    ``attempts`` counts all attempts, the first included. ``wait`` gives the time between two: seconds, ``exponential``,
    ``jittered`` or any other wait of tenacity, also sums of them (default: one second). ``on`` names the only errors that are
    tried again (default: every Exception), ``unless`` those that never are; each is a class or a tuple of classes. A timeout
    counts as ``TimeoutError``, too. Raises DeclarationError.
    """

    __slots__ = ("attempts", "on", "unless", "wait")

    def __init__(self, attempts: int, wait: wait_base | float = 1.0, *, on: Errors = Exception, unless: Errors = ()) -> None:
        place = sys._getframe(1)
        if isinstance(attempts, bool) or not isinstance(attempts, int):
            raise _wrong(place, f"Retry(attempts={attempts!r}) is not a whole number", "Give the number of all attempts.")
        if attempts < 1:
            cause = f"Retry(attempts={attempts}) allows no attempt at all"
            raise _wrong(place, cause, "Give the number of all attempts, the first included.")
        self.attempts = attempts
        self.wait = _checked_wait(place, wait, attempts)
        self.on = _checked_errors(place, "on", on)
        self.unless = _checked_errors(place, "unless", unless)
        if not self.on:
            raise _wrong(place, "Retry(on=()) tries nothing again", "Name the errors to try again, or leave it out.")

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


class Verdict(msgspec.Struct, frozen=True):
    """What an error says of another attempt; it travels with the report."""

    #: No other attempt, even where the policy has some left.
    is_final: bool = False
    #: Overrides the policy's wait.
    retry_after_seconds: float | None = None


_GO_ON = Verdict()
_FINAL = Verdict(is_final=True)


def judge(retry: Retry | None, error: BaseException) -> Verdict:
    """What ``error`` says of another attempt; whether one is left is ``next_wait_seconds``'s to say."""
    if isinstance(error, TerminalError):
        return _FINAL
    if isinstance(error, RetryableError):
        # getattr: a subclass need not have called our __init__.
        return Verdict(retry_after_seconds=_sane_seconds(getattr(error, "retry_after_seconds", None)))
    if not isinstance(error, Exception):  # SystemExit, KeyboardInterrupt: somebody wants an end, not another attempt
        return _FINAL
    if retry is None:
        return _GO_ON
    kinds: tuple[type, ...] = (type(error), TimeoutError) if isinstance(error, TaskTimeout) else (type(error),)
    if any(issubclass(kind, retry.unless) for kind in kinds) or not any(issubclass(kind, retry.on) for kind in kinds):
        return _FINAL
    return _GO_ON


def judge_named(retry: Retry | None, type_name: str) -> Verdict:
    """The same for an error of which only the name came: that of a task, for the retry of its flow.

    Its base classes are not known: it is one of a policy's where the policy names it, or takes every Exception.
    """
    if retry is None or type_name == TerminalError.__qualname__:
        return _FINAL
    if any(kind.__qualname__ == type_name for kind in retry.unless):
        return _FINAL
    return _GO_ON if any(kind in (Exception, BaseException) or kind.__qualname__ == type_name for kind in retry.on) else _FINAL


def next_wait_seconds(
    retry: Retry | None, attempt: int, *, is_final: bool = False, retry_after_seconds: float | None = None
) -> float | None:
    """How long to wait after failed attempt number ``attempt`` (1 for the first); None when no other is to be made."""
    if retry is None or is_final or attempt >= retry.attempts:
        return None
    after_seconds = _sane_seconds(retry_after_seconds)  # it came from another process
    if after_seconds is not None:
        return after_seconds
    try:
        seconds = _sane_seconds(_ask(retry.wait, attempt))
    except Exception:  # a wait of the user's own that raises: the attempt is made all the same
        seconds = None
    return _FALLBACK_SECONDS if seconds is None else seconds


def _ask(wait: wait_base, attempt: int) -> float:
    # A wait is given the number of the attempt alone: what was raised stayed on the worker.
    state = tenacity.RetryCallState(retry_object=tenacity.AsyncRetrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    return float(wait(state))


def _sane_seconds(seconds: object) -> float | None:
    """Between nothing and a year; None for what is no number."""
    if not isinstance(seconds, int | float) or math.isnan(seconds):
        return None
    return float(min(max(seconds, 0.0), _MAX_WAIT_SECONDS))


def _checked_wait(place: FrameType, wait: object, attempts: int) -> wait_base:
    if isinstance(wait, int | float) and not isinstance(wait, bool):
        if not 0 <= wait <= _MAX_WAIT_SECONDS:
            raise _wrong(place, f"Retry(wait={wait!r}) is no time to wait", "Give seconds, from 0 to a year.")
        return fixed(wait)
    if not isinstance(wait, wait_base):
        remedy = "Give seconds, exponential(…), fixed(…), jittered(…) or a wait object of tenacity."
        raise _wrong(place, f"Retry(wait={wait!r}) is no wait", remedy)
    trouble = ""
    for attempt in (1, attempts):
        try:
            seconds = _ask(wait, attempt)
        except Exception as error:  # whatever a wait of the user's own raises, here where its line can be shown
            trouble = str(error) or type(error).__name__
        else:
            trouble = trouble or ("" if seconds >= 0 else f"it gave {seconds} s")
    if trouble:
        cause = f"Retry(wait={type(wait).__name__}(…)) cannot be used: {trouble}"
        raise _wrong(place, cause, "A wait may look at the number of the attempt alone.")
    return wait


def _checked_errors(place: FrameType, argument: str, errors: object) -> tuple[type[Exception], ...]:
    named = errors if isinstance(errors, tuple) else (errors,)
    for kind in named:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            cause = f"Retry({argument}=…) names {kind!r}, which is no Exception class"
            raise _wrong(place, cause, "Give a class, or a tuple of classes, that derive from Exception.")
        if argument == "on" and issubclass(kind, TerminalError):
            raise _wrong(place, f"Retry(on=…) names {kind.__name__}, which is never tried again", "Leave it out.")
        if argument == "unless" and issubclass(kind, RetryableError):
            raise _wrong(place, f"Retry(unless=…) names {kind.__name__}, which is always tried again", "Leave it out.")
    return named


def _wrong(place: FrameType, cause: str, remedy: str) -> DeclarationError:
    return DeclarationError(place.f_code.co_filename, place.f_lineno, cause, remedy)
