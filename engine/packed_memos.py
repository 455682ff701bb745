"""Memos: what a packed run has finished when it goes back to wait for a retry, so that its next try does not do it again.

Values are pickled. A memo goes from worker to engine to worker by way of Dask, never by Kafka, and only workers read it.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

import msgspec

from engine.packed_handles import Absent, PackedHandle, PackedRows
from engine.parcels import TaskOutcome
from engine.states import Failure, State

#: Finished values beyond this do not travel: their tasks are run again.
MAX_BYTES = 1024 * 1024

#: A call's index and the name of its task: a flow that calls another task at that place gets nothing of this one.
Key = tuple[str, str]


class Wait(msgspec.Struct, frozen=True):
    """A call between two attempts."""

    #: Number of the next one, and when it may begin (seconds since the epoch).
    attempt: int
    due_at: float
    #: Why the last one failed.
    failure: Failure


class Memo(msgspec.Struct, frozen=True):
    """What earlier tries of a run have come to."""

    #: Pickled one by one, so that one which cannot be read spoils no other.
    values: dict[Key, bytes]
    failures: dict[Key, Failure]
    #: Their ``due_at`` counts from when the run comes again, which is when the first is due: another worker's clock may differ.
    waits: dict[Key, Wait]
    #: What is told of all that is not to be done again.
    tasks: list[TaskOutcome]


def write(
    handles: Iterable[PackedHandle], waits: dict[Key, Wait], tasks: Iterable[TaskOutcome], *, with_failures: bool = True
) -> bytes:
    """The memo of a run that has made these calls. A value that does not pickle, or is too large, is left out.

    Without failures it is for another attempt of the whole flow, in which what failed is tried again.
    """
    first_at = min((wait.due_at for wait in waits.values()), default=0.0)
    memo = Memo({}, {}, {key: msgspec.structs.replace(wait, due_at=wait.due_at - first_at) for key, wait in waits.items()}, [])
    room = MAX_BYTES
    for handle in handles:
        value, key = handle._value, (handle.index, handle.task)
        if value.__class__ is Absent:
            if with_failures and value.state is State.FAILED and value.failure is not None:
                memo.failures[key] = value.failure
        elif not isinstance(handle, PackedRows) and (data := _pickled(value)) is not None and len(data) <= room:
            memo.values[key] = data
            room -= len(data)
    kept = memo.values.keys() | memo.failures.keys()
    memo.tasks.extend(task for task in tasks if (task.index, task.task) in kept)
    return pickle.dumps(memo)


def read(data: bytes) -> Memo:
    """A memo that ``write`` made on a worker of this app."""
    memo: Memo = pickle.loads(data)  # noqa: S301  # never from Kafka
    return memo


def value_in(memo: Memo, key: Key) -> Any:
    """The value of a finished call. Raises LookupError where there is none that can be read."""
    try:
        return pickle.loads(memo.values[key])  # noqa: S301  # as above
    except Exception as error:  # its class has changed meanwhile: the task is run again
        raise LookupError(key) from error


def _pickled(value: Any) -> bytes | None:
    try:
        return pickle.dumps(value, protocol=5)
    except Exception:  # whatever user types raise there: the task is run again
        return None
