"""Reruns from a task: which calls of an ended run are made again, and which may keep what they have stored; pure.

What counts is the flow's own calls: a map is one, and tasks that a task has started belong to the call above them.
"""

from __future__ import annotations

import msgspec

from engine.command_errors import NotFound
from engine.executor import TAKEN
from engine.parcels import decode_tasks
from engine.runs import index_of_task_run, logical
from engine.states import ABSENT, Reuse, State, StateChange

#: Names of tasks that an error lists.
_NAMES_SHOWN = 50
#: Tasks of the engine's own, which nobody names.
_OWN = "engine."


class Plan(msgspec.Struct, frozen=True):
    """What becomes of the calls of a run that is run again from a task: their names, ``task/index``, in order."""

    #: Whose stored results are taken.
    taken: tuple[str, ...]
    #: Those that run again: the task, what comes behind it, and what has stored nothing.
    again: tuple[str, ...]
    reuse: Reuse | None


class _Made(msgspec.Struct):
    """A call of the flow, with all task runs that belong to it."""

    #: The seq of its first SCHEDULED, and of the first end among its task runs; None before it.
    scheduled: int
    ended: int | None = None
    #: The names of its tasks.
    tasks: set[str] = msgspec.field(default_factory=set)
    #: The calls that it takes results of.
    parents: set[str] = msgspec.field(default_factory=set)
    #: Whether the result store has anything of it.
    is_stored: bool = False


class Calls:
    """The calls of one run, from its changes in order."""

    def __init__(self) -> None:
        self._calls: dict[str, _Made] = {}
        #: By task run id, the call that it belongs to.
        self._call_of: dict[str, str] = {}
        self._attempts = 1
        self._has_ended = False
        #: Whether the flow was seen to do what only an async one does: to hear of values, or to call more after an end.
        self._is_async = False

    def take(self, change: StateChange) -> None:
        """Take in a change of the run."""
        if change.task_run_id is None:
            self._attempts = max(self._attempts, change.attempt)
            self._has_ended = self._has_ended and change.state is not State.RUNNING
            self._take_entries(change)
            return
        name = self._name(change.task_run_id, change.spawned_by)
        made = self._calls.get(name)
        if made is None:
            made = self._calls[name] = _Made(change.seq)
            is_element = "." in logical(index_of_task_run(change.task_run_id))
            self._is_async |= self._has_ended and change.spawned_by is None and not is_element
        made.tasks.add(change.task or "")
        made.parents.update(self._name(parent) for parent in change.parents)
        made.parents.discard(name)
        if change.state.is_end:
            self._has_ended = True
            made.ended = change.seq if made.ended is None else made.ended
            self._is_async |= change.result is not ABSENT and change.spawned_by is None
        if change.state is State.COMPLETED:
            made.is_stored |= change.result_ref is not None or change.reason == TAKEN

    def plan(self, run_id: str, task: str, *, is_async: bool = False) -> Plan:
        """What is run again from ``task``, a task's name or one call of it. ``is_async`` says what is known of the flow.

        Raises NotFound, which names the tasks, where the run has no such task.
        """
        again = {name for name, made in self._calls.items() if name == task or task in made.tasks}
        if not again:
            known = sorted({one for made in self._calls.values() for one in made.tasks if not one.startswith(_OWN)})
            shown = ", ".join(known[:_NAMES_SHOWN]) + ("…" if len(known) > _NAMES_SHOWN else "")
            raise NotFound("task", task, f"Tasks of run {run_id}: {shown or 'none'}.")
        is_async = is_async or self._is_async
        while True:
            ends = [ended for name in again if (ended := self._calls[name].ended) is not None]
            # An async flow may have made a call because of what it had heard by then.
            heard = min(ends) if ends and is_async else None
            more = {
                name
                for name, made in self._calls.items()
                if name not in again and (made.parents & again or (heard is not None and made.scheduled > heard))
            }
            if not more:
                break
            again |= more
        ordered = sorted(self._calls, key=_place)
        taken = tuple(name for name in ordered if name not in again and self._calls[name].is_stored)
        kept = set(taken)
        rest = tuple(name for name in ordered if name not in kept and not name.startswith(_OWN))
        reuse = Reuse(run_id, taken, self._attempts, not is_async) if taken else None
        return Plan(taken, rest, reuse)

    def _take_entries(self, change: StateChange) -> None:
        """Of a packed run its end alone names the tasks; nothing of them is stored."""
        if change.tasks is ABSENT:
            return
        try:
            entries = decode_tasks(change.tasks)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # of a newer version: then it has no tasks that could be named
        for entry in entries:
            name = f"{entry.task}/{_call_index(entry.index)}"
            self._calls.setdefault(name, _Made(change.seq, change.seq)).tasks.add(entry.task)

    def _name(self, task_run_id: str, spawned_by: str | None = None) -> str:
        known = self._call_of.get(task_run_id)
        if known is not None:
            return known
        if spawned_by is not None:
            name = self._name(spawned_by)
        else:
            name = f"{task_run_id.split('/')[1]}/{_call_index(index_of_task_run(task_run_id))}"
        self._call_of[task_run_id] = name
        return name


def _place(name: str) -> tuple[int, str]:
    """In the order in which the flow makes its calls."""
    index = name.rpartition("/")[2]
    return (int(index), name) if index.isdecimal() else (0, name)


def _call_index(index: str) -> str:
    return logical(index).partition(".")[0]
