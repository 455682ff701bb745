"""The outbox: log lines on their way out of this process; bounded on every side, and never in the way of whoever logs.

Nothing here waits, takes a lock or raises: an exception that ends a task may hit its thread anywhere, also in here. So counts
are good enough rather than exact where several threads log at once. What is too much is dropped, and the log of whoever said
it ends with how many lines those were.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from engine.run_logs import MAX_RECORD_BYTES, MAX_RECORD_LINES, Line, LogBatch, LogMail, encode_batch, line_of
from engine.trace_contexts import trace_id_of

#: What one attempt may log.
MAX_LINES, MAX_BYTES = 10_000, 1_048_576
#: What a process may log at once, and then each second.
BURST_BYTES, BYTES_PER_SECOND = 4 * 1_048_576, 512 * 1024
#: What of it may wait here, where the event loop that is to send it is busy.
MAX_UNSENT_BYTES = 8 * 1_048_576
#: What a line costs beside its message.
_LINE_BYTES = 100
_WARNING = 30


class Voice(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Who says something: an attempt of a task, or where that is None of a flow."""

    run_id: str
    flow: str
    attempt: int
    traceparent: str
    worker: str = ""
    task: str | None = None
    task_run_id: str | None = None


class Allowance:
    """So many bytes at once, and then so many a second."""

    __slots__ = ("_at", "_left", "_most", "_per_second")

    def __init__(self, most: float, per_second: float) -> None:
        self._most, self._per_second = most, per_second
        self._left, self._at = most, 0.0

    def takes(self, size: int, now: float) -> bool:
        """Whether ``size`` bytes are within it at the time ``now``; then they are taken off."""
        left = self._left = min(self._most, self._left + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if size > left:
            return False
        self._left = left - size
        return True


class Quota:
    """What one attempt has said, and how many lines of it were too much."""

    __slots__ = ("dropped", "left_bytes", "left_lines")

    def __init__(self) -> None:
        self.left_lines, self.left_bytes = MAX_LINES, MAX_BYTES
        self.dropped = 0


class RunLog:
    """Takes the lines of one voice."""

    __slots__ = ("_is_closed", "_outbox", "_quota", "_voice")

    def __init__(self, outbox: LogOutbox, voice: Voice, quota: Quota | None = None) -> None:
        self._outbox, self._voice = outbox, voice
        self._quota = Quota() if quota is None else quota
        self._is_closed = False

    def say(self, at: float, number: int, logger: str, text: Callable[[], str]) -> None:
        """Take a line of that level of standard logging, whose text is only made where there is room for it."""
        quota = self._quota
        if self._is_closed:
            return  # said by what an attempt has left behind
        if quota.left_lines <= 0 or quota.left_bytes <= 0:
            quota.dropped += 1
            return
        line = line_of(at, number, logger, text())
        size = size_of(line)
        if not self._outbox.put(self._voice, line, size):
            quota.dropped += 1
            return
        quota.left_lines -= 1
        quota.left_bytes -= size

    def close(self) -> None:
        """Nothing is said any more; the last line tells what was dropped. Twice does no harm."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._quota.dropped:
            limits = (
                f"{MAX_LINES:,} lines or {MAX_BYTES:,} bytes by an attempt, {BYTES_PER_SECOND:,} bytes a second by a process"
            )
            text = f"{self._quota.dropped:,} more lines were dropped, as too much was logged: no more than {limits}"
            line = line_of(time.time(), _WARNING, "engine", text)
            self._outbox.put(self._voice, line, size_of(line), is_certain=True)


class Holder(Protocol):
    """Who has an outbox."""

    @property
    def logs(self) -> LogOutbox:
        """The outbox."""
        ...


class Speaker:
    """The voice of the code that runs in a context. Its log is made when it says something first: most say nothing."""

    __slots__ = ("_holder", "_log", "_subject", "_voice_of", "is_muted")

    def __init__(self, holder: Holder, voice_of: Callable[[Any, Any], Voice], subject: Any) -> None:
        """``voice_of(holder, subject)`` makes the voice."""
        self._holder, self._voice_of, self._subject = holder, voice_of, subject
        self._log: RunLog | None = None
        #: Whether what it says was said before.
        self.is_muted = False

    @property
    def log(self) -> RunLog | None:
        """Where its lines go; None while they go nowhere."""
        if self.is_muted:
            return None
        if self._log is None:
            self._log = RunLog(self._holder.logs, self._voice_of(self._holder, self._subject))
        return self._log

    def close(self) -> None:
        """It has said all."""
        if self._log is not None:
            self._log.close()


class LogOutbox:
    """Lines of all voices of a process, until somebody takes them away."""

    def __init__(self) -> None:
        #: Called from any thread when there is something to be taken away.
        self.wake: Callable[[], object] = lambda: None
        self._lines: deque[tuple[Voice, Line, int]] = deque()
        self._unsent_bytes = 0
        self._allowance = Allowance(BURST_BYTES, BYTES_PER_SECOND)
        self._name = os.urandom(8).hex()
        self._count = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def put(self, voice: Voice, line: Line, size: int, *, is_certain: bool = False) -> bool:
        """Take a line; False where there is no room for it."""
        if not is_certain and (
            self._unsent_bytes + size > MAX_UNSENT_BYTES or not self._allowance.takes(size, time.monotonic())
        ):
            return False
        is_first = not self._lines
        self._unsent_bytes += size
        self._lines.append((voice, line, size))
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop that it wakes is closed: nobody wants lines any more
                self.wake()
        return True

    def take_all(self) -> list[LogMail]:
        """What is here now, away: a batch or more for each voice, in the order in which they began to speak."""
        self._unsent_bytes = 0
        batches: list[_Batch] = []
        filling: dict[int, _Batch] = {}
        for _ in range(len(self._lines)):  # and no more: somebody may log all the time
            voice, line, size = self._lines.popleft()
            batch = filling.get(id(voice))
            if batch is None or len(batch.lines) >= MAX_RECORD_LINES or batch.size + size > MAX_RECORD_BYTES:
                batch = filling[id(voice)] = _Batch(voice)
                batches.append(batch)
            batch.lines.append(line)
            batch.size += size
        mails: list[LogMail] = []
        for batch in batches:
            with contextlib.suppress(Exception):  # a name that cannot be encoded, say: no line may keep a report from leaving
                mails.append(self._mail(batch.voice, tuple(batch.lines)))
        return mails

    def _mail(self, voice: Voice, lines: tuple[Line, ...]) -> LogMail:
        batch = LogBatch(
            run_id=voice.run_id,
            flow=voice.flow,
            task=voice.task,
            task_run_id=voice.task_run_id,
            attempt=voice.attempt,
            worker=voice.worker,
            trace_id=trace_id_of(voice.traceparent),
            lines=lines,
        )
        name = f"{self._name}/{next(self._count)}"
        return LogMail(voice.run_id, name, time.time(), voice.traceparent, len(lines), encode_batch(batch))


class _Batch:
    __slots__ = ("lines", "size", "voice")

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self.lines: list[Line] = []
        self.size = 0


def size_of(line: Line) -> int:
    """What a line counts for."""
    message = line.message
    return _LINE_BYTES + (len(message) if message.isascii() else len(message.encode()))
