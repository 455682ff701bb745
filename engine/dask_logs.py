"""Log lines as they pass through Dask's scheduler, from workers to the engines that own their runs.

Workers have no Kafka: that would be a connection and its secrets for each of them, and lines of one run from several producers
in no order. So lines come the way that reports come, in the same order, but unlike reports nothing of them is held: where no
engine listens, or it does not keep up, they are dropped, before they can hold anything else up.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from engine.log_outbox import Allowance
from engine.logs import logger

#: What engines hear: encoded mails.
LOGS = "engine-logs"
#: Of all workers together, at once and each second: less than would be felt here.
_BURST_BYTES, _BYTES_PER_SECOND = 32 * 1_048_576, 8 * 1_048_576
#: An engine for which so many messages wait gets no lines.
_MOST_WAITING = 1_000
#: Runs that were let go and whose last lines may be on their way.
_REMEMBERED = 2_000
_SAY_SECONDS = 10.0


class Way(Protocol):
    """What the scheduler has of an engine: distributed's BatchedSend is one."""

    #: Messages that wait to be sent.
    buffer: list[Any]

    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        ...

    def send(self, message: Any) -> None:
        """Queue a message."""
        ...


class LogWays:
    """Knows which engine lines go to."""

    def __init__(self, ways: Mapping[str, Way], client_of: Callable[[str], str | None]) -> None:
        """``ways`` are those to engines, by client; ``client_of`` answers the client of the engine that owns a run."""
        self._ways, self._client_of = ways, client_of
        self._allowance = Allowance(_BURST_BYTES, _BYTES_PER_SECOND)
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._dropped = 0
        self._said_at = 0.0

    def let_go(self, run_id: str, client: str) -> None:
        """A run is held no longer; what it said last may still come."""
        self._gone[run_id] = client
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def pass_on(self, worker: str, mails: Sequence[tuple[str, bytes]]) -> None:
        """Lines from a worker: the run's id and the encoded mail of each batch."""
        by_client: dict[str, list[bytes]] = {}
        now = time.monotonic()
        for run_id, mail in mails:
            client = self._client_of(run_id) or self._gone.get(run_id, "")
            way = self._ways.get(client)
            if way is None or way.closed():
                continue  # nobody listens
            if len(way.buffer) > _MOST_WAITING or not self._allowance.takes(len(mail), now):
                self._dropped += 1
            else:
                by_client.setdefault(client, []).append(mail)
        for client, own in by_client.items():
            self._ways[client].send({"op": "event", "topic": LOGS, "event": own})
        if self._dropped and now - self._said_at > _SAY_SECONDS:
            logger.warning("log lines of runs were dropped: all tasks together log too much", records=self._dropped)
            self._dropped, self._said_at = 0, now
