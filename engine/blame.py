"""Blame: which calls of a run have failed, which have no value because of them, and whether that fails the run; pure."""

from __future__ import annotations

from collections.abc import Iterable

from engine.executor import Call, index_of
from engine.runs import index_of_task_run, logical
from engine.states import Failure, State

_NO_REASON = Failure("Unknown", "the cluster gave no reason")


class Blame:
    """What has gone wrong in one attempt of a run."""

    def __init__(self) -> None:
        #: In order; one that the flow or a parent has dealt with does not fail the run.
        self._failures: dict[str, tuple[State, Failure]] = {}
        self._handled: set[str] = set()
        #: Calls that have no value and will have none, and the call that is to blame.
        self._valueless: dict[str, str] = {}

    def __contains__(self, index: str) -> bool:
        return index in self._failures

    def fail(self, index: str, state: State, failure: Failure | None) -> Failure:
        """A call has failed for good; the first word of it counts."""
        self._valueless.setdefault(index, index)
        return self._failures.setdefault(index, (state, failure or _NO_REASON))[1]

    def lose(self, index: str, cause: str) -> None:
        """A call will have no value, because ``cause`` has none."""
        self._valueless.setdefault(index, cause)

    def handle(self, indices: Iterable[str]) -> None:
        """Somebody was told of these failures."""
        self._handled.update(indices)

    def why(self, cause: str) -> tuple[State, Failure]:
        """How the call that is to blame has failed."""
        return self._failures.get(cause, (State.FAILED, _NO_REASON))

    def cause(self, indices: Iterable[str]) -> str | None:
        """The call that is to blame for the first of these that has no value; None where all have, or may have, one."""
        if not self._valueless:
            return None
        return next((self._valueless[index] for index in indices if index in self._valueless), None)

    def cause_for(self, call: Call, parents: Iterable[str]) -> str | None:
        """The call that is to blame for a value that this one needs and will not have.

        A map as a whole stands among its parents (task run ids) alone: one that was never made has no elements to depend on.
        """
        if not self._valueless:
            return None
        needed = [logical(index_of(key)) for key in call.dependencies]
        return self.cause([logical(call.index), *needed, *(logical(index_of_task_run(parent)) for parent in parents)])

    def verdict(self) -> tuple[State, Failure] | None:
        """What fails the run: the first failure that nobody has dealt with."""
        return next((end for index, end in self._failures.items() if index not in self._handled), None)
