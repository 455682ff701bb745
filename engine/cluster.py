"""The Dask cluster: an Executor that submits graphs, shares futures and hears from the scheduler plugin.

With the other rooms of the cluster the only importer of distributed. It wants no futures back: the plugin holds the keys, the
workers' reports say what became of them, and a result travels inside its report.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from distributed import Client, LocalCluster, fire_and_forget

from engine.dask_answers import VERSION
from engine.dask_clients import close_client, open_client
from engine.dask_logs import LOGS
from engine.errors import DaskUnavailable
from engine.executor import Call, Listener, RunEnd, Submission, decode_reports, encode_call, encode_end
from engine.logs import logger
from engine.parcels import Parcel, decode_outcomes, encode_parcel
from engine.reporter import ReportPlugin, ResultsPlugin, warm_up
from engine.run_logs import LogMail, decode_mail
from engine.scheduler import NAME, PARCELS, REFUSED, RunsPlugin

#: How often the connection is looked at.
_WATCH_SECONDS = 0.5
#: Messages of one stream wait for each other so long; Dask's own 10 ms would be half of our latency.
_STREAM_INTERVAL_SECONDS = 0.002
#: Larger graphs go to the scheduler in pieces, so that none blocks its loop for long.
_CHUNK_CALLS = 1_000
#: Enough for a task on most of the workers.
_WARM_UP_CALLS = 16


class Cluster:
    """One engine's connection to a Dask scheduler."""

    def __init__(
        self,
        app: str,
        address: str,
        *,
        modules: Sequence[str] = (),
        connect_timeout_seconds: float = 10.0,
        results: str = "",
        max_result_bytes: int = 0,
        max_run_tasks: int = 100_000,
    ) -> None:
        """``results`` is the URL of the app's result store, of which the workers are told."""
        self.address = address
        #: Empty while submissions can be taken; otherwise why not.
        self.trouble = f"not connected to the Dask scheduler at {address} yet"
        #: Threads of all workers, as last heard.
        self.slots = 1
        self.on_logs: Callable[[Sequence[LogMail]], None] = lambda mails: None
        self._app = app
        #: Handler modules that workers import ahead of the first task.
        self._modules = tuple(modules)
        self._results, self._max_result_bytes, self._max_run_tasks = results, max_result_bytes, max_run_tasks
        self._timeout_seconds = connect_timeout_seconds
        self._client: Client | None = None
        self._comm: Any = None
        self._token = ""
        self._is_lost = False
        self._owned: dict[int, int] = {}
        self._listener: Listener
        self._watcher: asyncio.Task[None] | None = None

    async def start(self, listener: Listener) -> None:
        """Connect, and stay connected. Raises DaskUnavailable."""
        self._listener = listener
        await self._connect()
        self._watcher = asyncio.create_task(self._watch(), name="engine-cluster-watch")

    def own(self, partition: int, epoch: int) -> None:
        """See engine.executor.Executor."""
        self._owned[partition] = epoch
        self._send(self._owning(partition, epoch))

    def _owning(self, partition: int, epoch: int) -> dict[str, Any]:
        op = {"op": "engine-own", "app": self._app, "partition": partition, "epoch": epoch}
        return op | {"max_run_tasks": self._max_run_tasks}

    async def held(self, partition: int, epoch: int) -> list[str]:
        """See engine.executor.Executor."""
        if self._client is None:
            raise DaskUnavailable(self.address, self.trouble)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                found: list[str] = await self._client.scheduler.engine_held(app=self._app, partition=partition, epoch=epoch)
        except Exception as error:  # whatever distributed raises where the connection breaks, or the scheduler is another one
            raise DaskUnavailable(self.address, str(error) or repr(error)) from error
        return found

    def submit(self, submissions: Sequence[Submission]) -> None:
        """All calls of all submissions in one message to the scheduler; very wide graphs in a few."""
        chunk: list[Submission] = []
        count = 0
        for submission in submissions:
            chunk.append(submission)
            count += len(submission.calls)
            if count >= _CHUNK_CALLS:
                self._submit(chunk)
                chunk, count = [], 0
        if chunk:
            self._submit(chunk)

    def send(self, parcel: Parcel, owners: Sequence[tuple[int, int]]) -> None:
        """See engine.executor.Executor."""
        self._send({"op": "engine-parcel", "app": self._app, "parcel": encode_parcel(parcel), "owners": list(owners)})

    def release_parcels(self, run_ids: Sequence[str], keep_seconds: float) -> None:
        """See engine.executor.Executor."""
        self._send({"op": "engine-release-parcels", "run_ids": list(run_ids), "keep_seconds": keep_seconds})

    async def fetch(self, call: Call) -> Any:
        """See engine.executor.Executor."""
        client = self._client
        if client is None:
            raise LookupError(f"not connected: {self.trouble}")
        answer = await client.scheduler.gather(keys=[call.key])
        if answer["status"] != "OK":
            raise LookupError(f"the result of {call.key} is not on the cluster any more")
        return answer["data"][call.key]

    def release(self, run_id: str, keep_seconds: float, end: RunEnd | None = None) -> None:
        """See engine.executor.Executor."""
        told = None if end is None else encode_end(end)
        self._send({"op": "engine-release", "run_id": run_id, "keep_seconds": keep_seconds, "end": told})

    def cancel(self, run_id: str) -> None:
        """See engine.executor.Executor."""
        self._send({"op": "engine-cancel", "run_id": run_id})

    def cancel_packed(self, run_ids: Sequence[str]) -> None:
        """See engine.executor.Executor."""
        self._send({"op": "engine-cancel-packed", "run_ids": list(run_ids)})

    async def close(self) -> None:
        """Disconnect. What was submitted goes on: the plugin holds it for the next owner."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._client is not None:
            await close_client(self._client)
        self.trouble = "closed"

    def _submit(self, submissions: Sequence[Submission]) -> None:
        runs = [
            (one.run_id, one.partition, one.epoch, one.is_anew, one.is_tried_again, [encode_call(call) for call in one.calls])
            for one in submissions
        ]
        self._send({"op": "engine-submit", "app": self._app, "runs": runs})

    def _send(self, message: dict[str, Any]) -> None:
        if self._client is None or self._comm is None or self._comm.closed():
            return  # nothing is lost: everything open is submitted again after the reset that follows a reconnect
        self._comm.send(message)

    async def _connect(self) -> None:
        try:
            client = await open_client(self.address, timeout=self._timeout_seconds, name="engine")
        except (OSError, TimeoutError, ValueError, ImportError) as error:
            raise DaskUnavailable(self.address, f"{error}") from error
        try:
            await client.register_plugin(RunsPlugin())
            await client.register_plugin(ReportPlugin(self._modules))
            if self._results:
                await client.register_plugin(ResultsPlugin(self._app, self._results, self._max_result_bytes))
            self._token, version, self.slots = await client.scheduler.engine_token()
        except Exception as error:  # whatever the other side answers: it is not a scheduler we can work with
            await close_client(client)
            raise DaskUnavailable(self.address, f"the scheduler refused the engine's plugin: {error}") from error
        if version != VERSION:
            await close_client(client)
            raise DaskUnavailable(
                self.address, f"it runs engine {version}, this process engine {VERSION}: install the same there"
            )
        client.subscribe_topic(NAME, self._hear)
        client.subscribe_topic(PARCELS, self._hear_parcels)
        client.subscribe_topic(REFUSED, self._warn)
        client.subscribe_topic(LOGS, self._hear_logs)
        # The first graph that a scheduler and its workers see takes them some hundred milliseconds: let it be this one.
        fire_and_forget(client.map(warm_up, range(_WARM_UP_CALLS), pure=False))
        self._client = client
        self._adopt(client)

    def _adopt(self, client: Client) -> None:
        self._comm = client.scheduler_comm
        self._comm.interval = _STREAM_INTERVAL_SECONDS
        # distributed keeps the last thousand messages for those who debug it: of ours that would be as many graphs.
        self._comm.recent_message_log = deque(maxlen=1)
        for partition, epoch in self._owned.items():
            self._send(self._owning(partition, epoch))
        self.trouble = ""
        self._is_lost = False

    def _hear(self, event: bytes) -> None:
        self._listener.on_reports(decode_reports(event))

    def _hear_parcels(self, event: dict[str, Any]) -> None:
        if "outcomes" in event:
            self._listener.on_outcomes(decode_outcomes(event["outcomes"]))
        elif "died" in event:
            self._listener.on_deaths(event["died"], event["reason"])
        else:
            self._listener.on_refused(event["parcel"])

    def _hear_logs(self, event: list[bytes]) -> None:
        self.on_logs([decode_mail(mail) for mail in event])

    def _warn(self, event: list[int]) -> None:
        partition, epoch, latest = event
        logger.error(
            "the Dask scheduler takes nothing from us for a partition: another engine has owned it since",
            partition=partition,
            epoch=epoch,
            latest_epoch=latest,
            remedy="where the state topic was made anew, restart the scheduler",
        )

    async def _watch(self) -> None:
        """Notice a lost connection, a new scheduler at the old address, and get back in touch with either."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                await self._check()
            except Exception as error:  # DaskUnavailable, or what distributed raises while it breaks: looked at again
                if not self.trouble:
                    logger.warning("lost the Dask scheduler; open runs wait for it", dask=self.address, error=str(error))
                self.trouble = str(error) or repr(error)
                self._is_lost = True

    async def _check(self) -> None:
        client = self._client
        if client is None or client.status in ("closed", "closing"):
            await self._connect()
            self._say_back()
            return
        comm = client.scheduler_comm
        if client.status != "running" or comm is None or comm.closed():
            raise DaskUnavailable(self.address, "the connection is lost")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                token, _, self.slots = await client.scheduler.engine_token()
        except (OSError, TimeoutError) as error:
            raise DaskUnavailable(self.address, f"{error}") from error
        except Exception:  # a scheduler that does not know us: a new one at the old address
            token = ""
        if token != self._token:
            self._client = None
            await close_client(client)
            await self._connect()
            self._say_back()
        elif comm is not self._comm or self._is_lost:
            # The same scheduler, after a while without an answer: what we sent meanwhile may not have come through.
            self._adopt(client)
            self._say_back()

    def _say_back(self) -> None:
        logger.info("in touch with the Dask scheduler again; open runs go on", dask=self.address)
        self._listener.on_reset()


@contextlib.asynccontextmanager
async def in_process(workers: int = 1, threads: int = 4) -> AsyncIterator[str]:
    """A Dask cluster inside this process; gives its address. For tests: it takes some 50 ms."""
    async with LocalCluster(
        n_workers=workers,
        threads_per_worker=threads,
        processes=False,
        asynchronous=True,
        dashboard_address=None,
        # Left to itself its HTTP server takes port 8787 of every interface, or warns that somebody else has it.
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        worker_dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster.scheduler_address
