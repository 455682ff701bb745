"""The carrier: runs parcels in the threads of a Dask worker, and sends what becomes of their runs and where they are.

With the other rooms of the cluster the only importer of distributed.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Worker

from engine.log_outbox import LogOutbox
from engine.logs import logger
from engine.packing import run_parcel
from engine.parcels import Hung, Outcome, Timed, decode_parcel, encode_hung, encode_outcomes, encode_timed
from engine.restarter import Restarter
from engine.results import ResultStore
from engine.telemetry import Tracer
from engine.whereabouts import Whereabouts, notes_of

#: A scheduler that takes longer to note something is not waited for: the run is more important than whom to blame for it.
_NOTE_SECONDS = 1.0


class _Load:
    """A parcel that runs here."""

    def __init__(self, note: Callable[[], bool], notes: float) -> None:
        #: Outcomes on their way.
        self.pending: deque[Outcome] = deque()
        self.whereabouts = Whereabouts(note, notes)
        #: What the scheduler has been told of them, and how often.
        self.noted: tuple[Timed, ...] = ()
        self.number = 0

    def take(self) -> list[Outcome]:
        """The outcomes that nobody has taken."""
        outcomes: list[Outcome] = []
        try:
            while True:
                outcomes.append(self.pending.popleft())
        except IndexError:  # empty, or another thread was faster
            return outcomes


class Carrier:
    """The parcels of one worker."""

    def __init__(
        self,
        worker: Worker,
        restarter: Restarter,
        tracer: Tracer,
        logs: LogOutbox,
        send_logs: Callable[[], None],
        store_of: Callable[[str], ResultStore],
        *,
        restarts: bool,
    ) -> None:
        """``restarts`` says whether code that cannot be stopped ends this process."""
        self._worker = worker
        self._restarter = restarter
        self._tracer, self._logs, self._send_logs = tracer, logs, send_logs
        self._store_of = store_of
        self._restarts = restarts
        self._loads: dict[str, _Load] = {}
        #: Runs that are to be left out.
        self._stopped: set[str] = set()

    def stop(self, run_ids: Sequence[str]) -> None:
        """Begin none of these runs."""
        self._stopped.update(run_ids)

    def run(self, key: str, parcel: bytes) -> dict[str, Any]:
        """Run a parcel in this thread, telling outcomes on the way. Answers the results that stay here, by run."""
        decoded = decode_parcel(parcel)
        notes = notes_of(decoded) if self._restarts else 0
        load = self._loads[key] = _Load(functools.partial(self._note, key), notes)
        kept: dict[str, Any] = {}
        try:
            run_parcel(
                decoded,
                functools.partial(self._tell, key),
                tracer=self._tracer,
                logs=self._logs,
                worker=self._worker.address,
                pending=load.pending,
                on_stuck=functools.partial(self._stuck, key),
                keep=functools.partial(self._keep, decoded.store, kept),
                is_stopped=lambda run_id: run_id in self._stopped or self._restarter.has_given_up(key),
                whereabouts=load.whereabouts,
            )
        finally:
            del self._loads[key]
            self._stopped.difference_update([run.run_id for run in decoded.runs])
            self._restarter.hold(key)
        return kept

    def tell_live(self) -> None:
        """Send what would wait behind a run that takes long; called on the event loop, now and then."""
        for key, load in list(self._loads.items()):
            if outcomes := load.take():
                self._tell(key, outcomes)
            if load.noted != load.whereabouts.at:
                self._worker.loop.add_callback(self._send_note, key, threading.Event())  # for which nobody waits

    def _keep(self, app: str, kept: dict[str, Any], run_id: str, value: Any) -> str | None:
        if app:
            return self._store_of(app).save(run_id, "result", "result", value)
        kept[run_id] = value
        return None

    def _tell(self, key: str, outcomes: list[Outcome]) -> None:
        if self._restarter.has_given_up(key):
            return  # its runs are with another worker
        # From the parcel's own thread: this is in the event loop's queue before Dask's word that the parcel is over.
        message = {"op": "engine-outcomes", "outcomes": encode_outcomes(outcomes)}
        self._worker.loop.add_callback(self._send_logs)
        self._worker.loop.add_callback(self._worker.batched_send, message)

    def _stuck(self, key: str, hung: Hung, outcome: Outcome) -> None:
        """Code of a run cannot be stopped. Another worker goes on with its parcel, as if the attempt had failed by itself."""
        if not self._restarts:
            self._tell(key, [outcome])
            return
        load = self._loads.get(key)
        if load is None:
            return  # what an async task of a run that is over does has no say any more
        if outcomes := load.take():
            self._tell(key, outcomes)
        message = {"op": "engine-stuck-packed", "key": key, "hung": encode_hung([hung]), "at": time.time()}
        self._restarter.begin(key, lambda: self._worker.batched_send(message))

    def _note(self, key: str) -> bool:
        """See Whereabouts; called in the parcel's thread. What has ended is told first: it may be the last that is heard."""
        if outcomes := self._loads[key].take():
            self._tell(key, outcomes)
        noted = threading.Event()
        self._worker.loop.add_callback(self._send_note, key, noted)
        return noted.wait(_NOTE_SECONDS)

    async def _send_note(self, key: str, noted: threading.Event) -> None:
        load = self._loads.get(key)
        if load is None:
            return
        load.noted = load.whereabouts.at
        load.number += 1
        worker, timed = self._worker.address, encode_timed(load.noted)
        try:
            # A question, because messages that need no answer wait for others.
            await self._worker.scheduler.engine_note(worker=worker, key=key, timed=timed, number=load.number)
        except Exception as error:  # the scheduler is away: nobody can be blamed then, and nothing else is lost
            logger.info("the scheduler did not note where a parcel is", key=key, error=repr(error))
            return
        noted.set()
