"""Asks an engine over HTTP whether it is ready, and for its metrics; a request at a time, nothing is kept open."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

import msgspec

from engine.errors import EngineError
from engine.vital_signs import EngineVital

#: No answer that we ask for is longer.
_LIMIT_BYTES = 4 * 1024 * 1024
_PORTS = {"http": 80, "https": 443}


class EngineSilent(EngineError):
    """Raised when an engine's HTTP endpoint cannot be reached, or answers what no engine does; it is asked again later."""

    def __init__(self, address: str, cause: str) -> None:
        super().__init__(address, cause)
        self.address, self.cause = address, cause

    def __str__(self) -> str:
        return f"the engine at {self.address} does not answer: {self.cause}. Is it running, and is its address right (engines)?"


class _Readyz(msgspec.Struct):
    ready: bool
    #: A dashboard tells them only those who may look.
    parts: dict[str, str] = {}


async def ask_engine(address: str) -> EngineVital:
    """``GET /readyz`` of an engine at ``host:port`` or a URL. Raises EngineSilent; has no patience of its own."""
    _, body = await get(address, "/readyz")
    try:
        found = msgspec.json.decode(body, type=_Readyz)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EngineSilent(address, f"its /readyz is none of an engine: {error}") from error
    return EngineVital(address, found.ready, found.parts)


async def look_at_engine(address: str, seconds: float) -> EngineVital:
    """The same with so much patience, and why there is no answer where there is none."""
    try:
        async with asyncio.timeout(seconds):
            return await ask_engine(address)
    except TimeoutError:
        return EngineVital(address, None, {}, f"no answer within {seconds:g} s")
    except EngineSilent as error:
        return EngineVital(address, None, {}, str(error))
    except Exception as error:  # whatever a library raises: what else is looked at is good all the same
        return EngineVital(address, None, {}, f"{type(error).__name__}: {error}")


async def get(address: str, path: str) -> tuple[int, bytes]:
    """Status and body of a GET, without a proxy whatever the environment says. Raises EngineSilent."""
    url = urlsplit(address if "://" in address else f"http://{address}")
    try:
        if url.scheme not in _PORTS or not url.hostname:
            raise EngineSilent(address, "that is no address: write host:port, http://… or https://…")
        context = ssl.create_default_context() if url.scheme == "https" else None
        reader, writer = await asyncio.open_connection(url.hostname, url.port or _PORTS[url.scheme], ssl=context)
    except (OSError, ValueError) as error:
        raise EngineSilent(address, str(error) or type(error).__name__) from error
    try:
        # HTTP/1.0: the answer comes in one piece and ends with the connection.
        writer.write(f"GET {url.path.rstrip('/')}{path} HTTP/1.0\r\nHost: {url.netloc}\r\nAccept: */*\r\n\r\n".encode("ascii"))
        answer = bytearray()
        while more := await reader.read(65_536):
            answer += more
            if len(answer) > _LIMIT_BYTES:
                raise EngineSilent(address, f"its answer is longer than {_LIMIT_BYTES:,} bytes")
    except (OSError, UnicodeEncodeError) as error:
        raise EngineSilent(address, str(error) or type(error).__name__) from error
    finally:
        writer.transport.abort()
    head, separator, body = bytes(answer).partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not separator or not words[0].startswith(b"HTTP/") or len(words) < 2 or not words[1].isdigit():
        raise EngineSilent(address, "its answer is no HTTP")
    return int(words[1]), body
