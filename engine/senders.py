"""Senders: hand one notice to one target, once; whether and when again is the outbox's to say.

What they say of a failure has no address, no secret and nothing that the other side answered in it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

from engine.command_errors import NotDelivered, TargetError
from engine.errors import RetryableError, TerminalError
from engine.notices import Notice, body_of
from engine.secrets import Mask, Secret
from engine.settings import is_loopback
from engine.side_thread import SideThread
from engine.signatures import DELIVERY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from engine.targets import HookTarget, WebhookTarget

#: An answer's status line and headers; its body is not read.
_HEAD_BYTES = 16_384
#: Answers that will not be another one the next time.
_FINAL = frozenset({400, 405, 410, 411, 413, 414, 415, 422, 431, 501})
_MOST_RETRY_AFTER_SECONDS = 300.0


class Sender(Protocol):
    """One way to one target."""

    @property
    def concurrency(self) -> int:
        """How many notices may be under way at once."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether something of it still runs, perhaps for ever."""
        ...

    async def send(self, notice: Notice) -> None:
        """Hand it over. Raises NotDelivered; never takes longer than the target's time."""
        ...

    def close(self) -> None:
        """Free everything, waiting for nothing."""
        ...


class HookSender:
    """Calls a Python function: with the StateChange for ``on_state``, with the Notice for a rule."""

    concurrency = 1

    def __init__(self, target: HookTarget, mask: Mask) -> None:
        self._target, self._mask = target, mask
        self._thread = SideThread("engine-hook")

    async def send(self, notice: Notice) -> None:
        """Hand it over. Raises NotDelivered."""
        function, seconds = self._target.function, self._target.timeout_seconds
        argument: Any = notice if notice.rule is not None else notice.change
        try:
            await self._thread.run(lambda: function(argument), timeout_seconds=seconds)
        except TimeoutError:
            raise NotDelivered(f"not done within {seconds:g} s", False, None) from None
        except Exception as error:  # whatever a function of the user's raises: it is tried again, or given up, as its kind says
            after = getattr(error, "retry_after_seconds", None) if isinstance(error, RetryableError) else None
            text = f"{self._mask.hide(f'{type(error).__name__}: {error}')[:500]}{_line_of(error)}"
            # Without its cause, whose text and traceback nobody has masked.
            raise NotDelivered(text, isinstance(error, TerminalError), after) from None

    @property
    def is_busy(self) -> bool:
        """Whether a call is still under way."""
        return self._thread.is_busy

    def close(self) -> None:
        """A function that still runs is left to itself."""
        self._thread.close()


class WebhookSender:
    """Posts the JSON of a notice over HTTP/1.1, signed; follows nothing, reads no body, keeps no connection."""

    concurrency = 4
    is_busy = False

    def __init__(self, target: WebhookTarget, url: Secret, secret: Secret, clock: Callable[[], float] = time.time) -> None:
        self._target, self._secret, self._clock = target, secret, clock
        self._url: SplitResult = urlsplit(url.reveal())
        self._tls: ssl.SSLContext | None = None

    async def send(self, notice: Notice) -> None:
        """Hand it over. Raises NotDelivered."""
        seconds = self._target.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                status, headers = await self._post(notice)
        except TimeoutError:
            raise NotDelivered(f"no answer within {seconds:g} s", False, None) from None
        except ssl.SSLCertVerificationError:
            raise NotDelivered("its certificate is not one that this machine trusts", False, None) from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise NotDelivered(_trouble(error), False, None) from None
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            raise NotDelivered(f"it answered {status}: redirects are not followed", True, None)
        raise NotDelivered(f"it answered {status}", status in _FINAL, _retry_after(headers))

    def close(self) -> None:
        """Nothing is kept."""

    async def _post(self, notice: Notice) -> tuple[int, Mapping[str, str]]:
        url = self._url
        if url.scheme == "https" and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        port = url.port or (443 if url.scheme == "https" else 80)
        reader, writer = await asyncio.open_connection(url.hostname, port, ssl=self._tls, limit=_HEAD_BYTES)
        try:
            writer.write(self._request(notice))
            await writer.drain()
            status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
            while 100 <= status < 200:  # "Continue", or a hint: the answer is still to come.
                status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
            return status, headers
        finally:
            writer.transport.abort()  # Nothing is left to say, and close() would wait for the other side.

    def _request(self, notice: Notice) -> bytes:
        body, timestamp = body_of(notice), int(self._clock())
        path = f"{self._url.path or '/'}{f'?{self._url.query}' if self._url.query else ''}"
        headers = {
            "host": self._url.netloc,
            "user-agent": "kafka-dask-engine",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            DELIVERY_HEADER: notice.id,
            TIMESTAMP_HEADER: str(timestamp),
            SIGNATURE_HEADER: sign(self._secret.reveal(), timestamp, body),
        }
        if notice.change is not None and _is_traceparent(notice.change.traceparent):
            headers["traceparent"] = str(notice.change.traceparent)
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def check_webhook(target: WebhookTarget, url: Secret, *, allow_plaintext: bool) -> None:
    """Raises TargetError where nothing should be, or can be, posted to ``url``."""
    text = url.reveal()
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise TargetError(target.name, "its address is no URL", "Write https://host/path.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise TargetError(target.name, "its address is no http URL", "Write https://host/path.")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise TargetError(target.name, "its address has characters that no URL has", "Write them %-encoded.")
    if "@" in parts.netloc:
        raise TargetError(target.name, "its address has credentials", "Leave them out: the signature says who sends it.")
    if parts.scheme == "http" and not allow_plaintext and not is_loopback(host):
        remedy = "Use https, or say allow_plaintext = true where the network is your own."
        raise TargetError(target.name, "would send plain text to another host", remedy)


def _line_of(error: BaseException) -> str:
    """Where it was raised: a line of the user's own."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return f" ({frames[-1][0].f_code.co_filename}:{frames[-1][1]})" if frames else ""


def _head(data: bytes) -> tuple[int, Mapping[str, str]]:
    """Status and headers of an answer. Raises ValueError."""
    first, *lines = data.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not (status.isascii() and status.isdigit() and len(status) == 3):
        raise ValueError("no HTTP answer")
    pairs = (line.partition(":") for line in lines if ":" in line)
    return int(status), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; a date says nothing to us."""
    text = headers.get("retry-after", "")
    return min(float(text), _MOST_RETRY_AFTER_SECONDS) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _trouble(error: BaseException) -> str:
    """What kind of trouble it was: the error's own text may have the address in it."""
    if isinstance(error, ConnectionRefusedError):
        return "it refuses connections"
    if isinstance(error, EOFError | ConnectionError):
        return "it closed the connection without an answer"
    if isinstance(error, ssl.SSLError):
        return "it speaks no TLS that we do"
    if isinstance(error, OSError):
        return f"it cannot be reached ({type(error).__name__})"
    return "its answer is not HTTP, or too large"


def _is_traceparent(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isprintable() and len(text) <= 128
