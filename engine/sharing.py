"""Attaching: any process gets the futures of an open run by task and map index; it disturbs nothing and gathers nothing.

With the other rooms of the cluster the only importer of distributed.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from distributed import Client, Future

from engine.command_errors import NotFound, UsageError
from engine.dask_answers import KEYS, WANT
from engine.dask_clients import close_client, open_client
from engine.errors import DaskUnavailable
from engine.executor import FINAL
from engine.runs import logical
from engine.settings import load

T = TypeVar("T")

_RUN_ID = re.compile(r"[0-9a-f]{32}")
#: What the step that puts a flow's result together is called on the cluster; it is no task of the user's.
_COLLECT = "result"
_COLLECT_INDICES = (_COLLECT, FINAL)


class Attached:
    """The futures of a run, as far as its calls were submitted when it was looked at (``refresh`` looks again).

    While it is open, the cluster keeps the results, also when the run has ended. A future of a task that is tried again is
    pending until its last attempt has ended, and so is what you submit on top of it. Closing frees all futures that it
    gave out.
    """

    def __init__(self, client: Client, run_id: str, *, owns_client: bool) -> None:
        """For ``attach``, which looks up the futures."""
        self.run_id = run_id
        #: The client of the futures: submit what depends on them through it.
        self.client = client
        #: The future of the run's result.
        self.final: Future | None = None
        self._owns_client = owns_client
        self._futures: dict[str, Future] = {}
        #: Keys in the order in which they are given out, and indices by task.
        self._keys: list[str] = []
        self._indices: dict[str, list[str]] = {}
        self._is_closed = False

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of their first calls."""
        return list(dict.fromkeys(_split(key)[0] for key in self._keys if not self._collects(key)))

    def futures(self, task: str | None = None) -> list[Future]:
        """The futures of a task, or of all tasks, by call and map index; those spawned inside tasks last."""
        if task is None:
            return [self._futures[key] for key in self._keys if not self._collects(key)]
        return [self._futures[self._key(task, index)] for index in self._indices.get(task, ())]

    def future(self, task: str, map_index: int | None = None, index: str | None = None) -> Future:
        """The future of one call: of a task's only one, of an element of its only map, or by ``index``.

        ``index`` is the last part of a task run's id: "3" is the fourth call of the flow, "3.17" element 17 of the map
        that is that call. Raises NotFound, and UsageError where several fit.
        """
        known = self._indices.get(task, [])
        fitting = [
            place
            for place in known
            if (index is None or place == index) and (map_index is None or place.endswith(f".{map_index}"))
        ]
        if len(fitting) == 1:
            return self._futures[self._key(task, fitting[0])]
        if fitting:
            raise UsageError(
                f"future({task!r})",
                f"run {self.run_id} has {len(fitting)} such calls: {_listed(fitting)}",
                "Say which by index=…, or take them all by futures().",
            )
        name = task if index is None and map_index is None else f"{task}, index {index or map_index}"
        there = f"it has calls {_listed(known)}" if known else f"it has the tasks {_listed(self.tasks)}"
        raise NotFound(
            f"call in run {self.run_id}", name, f"So far {there}; `await attached.refresh()` looks for calls that came since."
        )

    async def refresh(self) -> None:
        """Take in calls that were submitted since. Raises NotFound when the run has ended, DaskUnavailable."""
        await _on_loop_of(self.client, self._look(None))

    async def close(self) -> None:
        """Free the futures; the run goes on. Twice does no harm."""
        if self._is_closed:
            return
        self._is_closed = True
        await _on_loop_of(self.client, self._release())
        if self._owns_client:
            await close_client(self.client)

    async def __aenter__(self) -> Attached:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<attached to run {self.run_id}: {len(self._futures)} futures of {', '.join(self.tasks) or 'no task'}>"

    async def _look(self, app: str | None) -> None:
        try:
            # A scheduler that no engine has ever connected to answers None.
            ask = getattr(self.client.scheduler, KEYS)
            answer = await ask(run_id=self.run_id, client=self.client.id, app=app)
        except (OSError, TimeoutError) as error:
            raise DaskUnavailable(_address(self.client), str(error)) from error
        if not answer:
            raise _not_found(self.run_id)
        keys = [str(key) for key in answer["keys"]]
        for key in keys:
            if key not in self._futures:
                self._futures[key] = Future(key, self.client)
        self.final = self._futures.get(answer["shared"])
        self._sort()
        # They are ours since the answer was given, and what became of them meanwhile was told to futures that did not
        # exist. Said again, now that they do, it makes the scheduler tell again.
        self.client._send_to_scheduler({"op": WANT, "keys": keys})

    async def _release(self) -> None:
        for future in self._futures.values():
            future.release()
        self._futures.clear()
        self._sort()
        self.final = None

    def _sort(self) -> None:
        self._keys = sorted(self._futures, key=lambda key: (_order(_split(key)[1]), key))
        self._indices = {}
        for key in self._keys:
            task, index = _split(key)
            self._indices.setdefault(task, []).append(index)

    def _key(self, task: str, index: str) -> str:
        return f"{task}-{self.run_id}-{index}"

    def _collects(self, key: str) -> bool:
        task, index = _split(key)
        is_final = self.final is not None and key == self.final.key
        return task == _COLLECT and (is_final or logical(index) in _COLLECT_INDICES)


async def attach(run_id: str, dask: str | Client | None = None, app: str | None = None) -> Attached:
    """The futures of an open run, pending or not, in any process: ``async with await engine.attach(run_id) as attached: …``.

    ``dask`` is the scheduler's address (default: the settings in force) or a client of your own, synchronous or not. With
    an address the attachment has a client of its own, ``attached.client``, whose futures are awaited. With ``app`` the run
    must be one of that app. In a notebook::

        attached = await engine.attach(run_id, dask=client)
        client.submit(plot, attached.future("price", map_index=3)).result()

    Raises NotFound for a run that has ended or never was there, DaskUnavailable and SettingsError.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise _not_found(run_id)
    owns_client = not isinstance(dask, Client)
    client = await _connect(dask) if owns_client else dask
    attached = Attached(client, run_id, owns_client=owns_client)
    try:
        await _on_loop_of(client, attached._look(app))
    except BaseException:  # cancelled, too: it is raised on when nothing of ours is left
        await attached.close()
        raise
    return attached


async def _connect(dask: str | None) -> Client:
    settings = load({"dask": dask}, os.environ, Path.cwd())
    try:
        return await open_client(settings.dask, timeout=settings.connect_timeout_seconds, name="engine-attach")
    except (OSError, TimeoutError, ValueError, ImportError) as error:
        raise DaskUnavailable(settings.dask, str(error)) from error


async def _on_loop_of(client: Client, work: Coroutine[Any, Any, T]) -> T:
    """A synchronous client lives on a loop in a thread of its own."""
    loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
    if loop is asyncio.get_running_loop():
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _address(client: Client) -> str:
    return str(client.scheduler.address) if client.scheduler is not None else "(closed)"


def _not_found(run_id: str) -> NotFound:
    return NotFound(
        "open run on the Dask scheduler",
        run_id,
        f"It has ended, has not begun, or runs on another scheduler: `engine runs show {run_id[:40]}` tells. "
        "The result of an ended run is in its COMPLETED, or where result_ref says.",
    )


def _split(key: str) -> tuple[str, str]:
    """Task and index of a key."""
    task, _, index = key.rsplit("-", 2)
    return task, index


def _order(index: str) -> tuple[tuple[int, str], ...]:
    """Numbers by size; the ids of spawned tasks, which are longer, after them."""
    return tuple((len(part), part) for part in index.split("."))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, …" if len(names) > 5 else shown or "none"
