"""Trace contexts: the ids of the spans of a run, as they follow from what each describes; pure, and makes no spans.

Format: W3C Trace Context, traceparent version 00.
"""

from __future__ import annotations

import hashlib

_SAMPLED = frozenset("13579bdf")


def is_sampled(traceparent: str | None) -> bool:
    """Whether somebody records the trace."""
    return bool(traceparent) and traceparent[-1:] in _SAMPLED  # type: ignore[index]


def trace_id_of(traceparent: str | None) -> str:
    """The trace id, 32 hex digits; empty where there is no trace."""
    return traceparent[3:35] if traceparent else ""


def child_of(traceparent: str, *identity: object) -> str:
    """The context of the span that ``identity`` names inside the trace of ``traceparent``.

    A trace that is not sampled is passed on unchanged, as W3C has it for those who record nothing.
    """
    if not is_sampled(traceparent):
        return traceparent
    digest = hashlib.blake2b("/".join(map(str, identity)).encode(), digest_size=8)
    return f"{traceparent[:36]}{digest.hexdigest()}{traceparent[52:]}"


def run_context(scheduled_traceparent: str, run_id: str) -> str:
    """The context of a flow run's span: child of the ``send`` that scheduled it."""
    return child_of(scheduled_traceparent, run_id, "run")


def start_context(run_traceparent: str, run_id: str, attempt: int) -> str:
    """The context of the span that says an attempt of a flow has begun: beside the run's, below the same parent."""
    return child_of(run_traceparent, run_id, "start", attempt)


def attempt_context(run_traceparent: str, task_run_id: str, attempt: int) -> str:
    """The context of one attempt's span: child of the run's."""
    return child_of(run_traceparent, task_run_id, attempt)
