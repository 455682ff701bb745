"""The log writer: log lines of runs onto the log topic, by a producer of their own, off the way of state changes.

What does not fit into its memory, or what Kafka does not take in time, is dropped and said to be: nothing waits for lines. A
write is not repeated, because part of it may be there: each line is on the topic once at most.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from engine.broker import Outgoing, Sink
from engine.log_outbox import LogOutbox
from engine.logs import logger
from engine.run_logs import LogMail, headers_of
from engine.settings import Settings

#: What may wait for its write.
_MAX_WAITING_BYTES = 32 * 1_048_576
#: Of one write.
_MAX_WRITE_BYTES, _MAX_WRITE_RECORDS = 2 * 1_048_576, 500
#: Between two writes, so that lines share them.
_SPACING_SECONDS = 0.1
_DRAIN_SECONDS = 2.0
_SAY_SECONDS = 10.0


class LogWriter:
    """Writes what workers and flows have logged."""

    def __init__(self, settings: Settings, sink: Sink, outbox: LogOutbox) -> None:
        """``outbox`` has what flows of this process say."""
        self._app, self._topic = settings.app, settings.logs_topic
        self._sink, self._outbox = sink, outbox
        self._waiting: deque[LogMail] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._dropped = 0
        self._said_at = 0.0

    def take(self, mails: Sequence[LogMail]) -> None:
        """Queue lines; never waits."""
        for mail in mails:
            if self._waiting_bytes + len(mail.value) > _MAX_WAITING_BYTES:
                self._drop(mail.lines, "more is logged than Kafka takes")
                continue
            self._waiting_bytes += len(mail.value)
            self._waiting.append(mail)
        if self._waiting:
            self._idle.clear()
            self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        loop = asyncio.get_running_loop()
        self._outbox.wake = lambda: loop.call_soon_threadsafe(self._wake.set)
        if self._outbox:
            self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            self.take(self._outbox.take_all())
            while self._waiting:
                await self._write(self._next())
            self._idle.set()
            await asyncio.sleep(_SPACING_SECONDS)

    async def drain(self) -> None:
        """Wait until what is here is written, but not for long."""
        self.take(self._outbox.take_all())
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._idle.wait()

    def _next(self) -> list[LogMail]:
        mails: list[LogMail] = []
        size = 0
        while self._waiting and size < _MAX_WRITE_BYTES and len(mails) < _MAX_WRITE_RECORDS:
            mails.append(self._waiting.popleft())
            size += len(mails[-1].value)
        self._waiting_bytes -= size
        return mails

    async def _write(self, mails: list[LogMail]) -> None:
        records = [Outgoing(self._topic, mail.run_id.encode(), mail.value, headers_of(self._app, mail)) for mail in mails]
        try:
            await self._sink.write(records)
        except Exception as error:  # whatever it is: lines are lost, and the engine goes on
            self._drop(sum(mail.lines for mail in mails), str(error) or repr(error))

    def _drop(self, lines: int, why: str) -> None:
        self._dropped += lines
        if (now := time.monotonic()) - self._said_at >= _SAY_SECONDS:
            logger.warning("log lines of runs are lost", lines=self._dropped, error=why)
            self._dropped, self._said_at = 0, now
