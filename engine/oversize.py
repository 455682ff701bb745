"""State changes that are larger than the state topic takes: what is left out of them, and how they say so; no I/O."""

from __future__ import annotations

import msgspec

from engine.states import ABSENT, Failure, StateChange

#: What is kept of the texts of an error.
_MAX_TEXT = 2_000
_LEAST_TEXT = 200


def smaller(change: StateChange, *, is_bare: bool = False) -> StateChange:
    """The same step without what may be large; a bare one without what only the next owner would need, too.

    Never left out: which run and task, state, seq, epoch, times, where a result is.
    """
    left_out = [name for name in ("parents", "result", "tasks") if _is_there(change, name)]
    if is_bare and change.handled:
        left_out.append("handled")
        change = msgspec.structs.replace(change, handled=())
    error = change.error
    if error is not None:
        limit = _LEAST_TEXT if is_bare else _MAX_TEXT
        error = Failure(error.type[:_LEAST_TEXT], error.message[:limit], error.traceback[-limit:])
        if error != change.error:
            left_out.append("part of the error")
    said = f"too large for the state topic, left out: {', '.join(left_out) or 'nothing'}"
    reason = said if change.reason is None else f"{change.reason[:_MAX_TEXT]}; {said}"
    return msgspec.structs.replace(change, parents=(), result=ABSENT, tasks=ABSENT, error=error, reason=reason)


def _is_there(change: StateChange, name: str) -> bool:
    value = getattr(change, name)
    return value is not ABSENT and value != ()
