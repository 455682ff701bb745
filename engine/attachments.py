"""What runs inside Dask's scheduler for those who look at a run from outside: whose wishes lie on its keys beside ours.

A wish from outside keeps a key, and where Dask has a key's result or error it runs nothing. So whenever the engine is
about to submit a key again, the wishes of others are lifted first and restored after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from distributed import Scheduler
from distributed.scheduler import TaskState

from engine.executor import run_of

#: What engine.sharing asks for by call, and what it sends.
KEYS = "engine_keys"
DETACH = "engine-detach"


class HeldRun(Protocol):
    """A run as the plugin has it."""

    #: The app, and the partition of its state topic.
    slot: tuple[str, int]
    keys: set[str]
    shared: str | None


class Attachments:
    """Which clients are attached to which runs."""

    def __init__(self, scheduler: Scheduler, runs: Mapping[str, HeldRun]) -> None:
        """``runs`` are the plugin's open runs, as they come and go."""
        self._scheduler = scheduler
        self._runs = runs
        #: By run and attachment: the client, and what it asked for. A client may attach to a run more than once, and a
        #: call overtakes what was sent before it, so a count would not do.
        self._attached: dict[str, dict[str, tuple[str, set[str]]]] = {}
        self._lifted: dict[str, set[str]] = {}

    async def tell_keys(self, run_id: str, client: str, attachment: str, app: str | None = None) -> dict[str, Any]:
        """Answers keys and final key of an open run, and notes that ``client`` wants them; nothing for other runs.

        In one step, because the run may end and its keys be gone by the time that the answer is read.
        """
        held = self._runs.get(run_id)
        if held is None or client not in self._scheduler.clients or app not in (None, held.slot[0]):
            return {}
        keys = {key for key in held.keys if key in self._scheduler.tasks}
        self._scheduler.client_desires_keys(keys, client)
        self._attached.setdefault(run_id, {}).setdefault(attachment, (client, set()))[1].update(keys)
        return {"keys": sorted(keys), "shared": held.shared if held.shared in keys else None}

    def detach(self, client: str, run_id: str, attachment: str) -> None:
        """An attachment is closed; its client gives up its wishes itself."""
        self._remove(run_id, {attachment})

    def remove_client(self, client: str) -> None:
        """``client`` is gone."""
        for run_id, attached in list(self._attached.items()):
            self._remove(run_id, {attachment for attachment, (owner, _) in attached.items() if owner == client})

    def lift(self, keys: Iterable[str]) -> None:
        """These keys, which the plugin has dropped, will be submitted again, maybe: nobody else may keep them."""
        for key in keys:
            clients = self._erase(key)
            if clients:
                self._lifted[key] = clients

    def restore(self, keys: Iterable[str]) -> None:
        """These keys are submitted: they are wanted again by those whose wishes were lifted."""
        if self._lifted:
            for key in self._lifted.keys() & set(keys):
                for client in self._lifted.pop(key) & self._scheduler.clients.keys():
                    self._scheduler.client_desires_keys([key], client)

    def end(self, run_id: str) -> None:
        """The run has ended: what was lifted will not be submitted again."""
        for key in [key for key in self._lifted if run_of(key) == run_id]:
            self._cancel(key, self._lifted.pop(key))

    def begin(self, run_id: str) -> None:
        """A run begins: nobody may keep keys of an earlier one of this id."""
        for _, keys in self._attached.pop(run_id, {}).values():
            for key in keys:
                self._cancel(key, self._erase(key))

    def _erase(self, key: str) -> set[str]:
        """Remove a key that others keep; answers who. Their tasks on top of it stay as they are, or are cancelled."""
        task = self._scheduler.tasks.get(key)
        if task is None:
            return set()
        for dependent in list(task.dependents):
            if dependent.state in ("memory", "erred"):
                _sever(task, dependent)
            elif run_of(str(dependent.key)) != run_of(key):
                # It waits, which would make Dask run the key as it was.
                self._cancel(dependent.key, self._erase(dependent.key))
        clients = {state.client_key for state in task.who_wants or ()}
        for client in clients:
            self._scheduler.client_releases_keys([key], client)
        if self._scheduler.tasks.get(key) is task and not task.who_wants and not task.waiters:
            self._scheduler.transitions({key: "forgotten"}, f"engine-erase-{key}")
        return clients

    def _cancel(self, key: Any, clients: Iterable[str]) -> None:
        for client in clients:
            comm = self._scheduler.client_comms.get(client)
            if comm is not None and not comm.closed():
                comm.send({"op": "cancelled-keys", "keys": [key]})

    def _remove(self, run_id: str, attachments: set[str]) -> None:
        attached = self._attached.get(run_id, {})
        for attachment in attachments:
            attached.pop(attachment, None)
        if not attached:
            self._attached.pop(run_id, None)


def _sever(task: TaskState, dependent: TaskState) -> None:
    """``dependent`` has ended and keeps its end, though what it depended on goes; left to Dask it would go, too."""
    if dependent.exception_blame is task:
        dependent.exception_blame = dependent
        dependent.exception, dependent.exception_text = task.exception, task.exception_text
        dependent.traceback, dependent.traceback_text = task.traceback, task.traceback_text
    task.dependents.remove(dependent)
    dependent.dependencies.remove(task)
    dependent.has_lost_dependencies = True
