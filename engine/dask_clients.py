"""Clients of Dask that are either connected or gone: opening leaves none half-open, closing ends in time; knows no runs."""

from __future__ import annotations

import contextlib
from typing import Any

from distributed import Client

#: A client that cannot say goodbye by then is dropped.
CLOSE_SECONDS = 2.0


async def open_client(address: str, **options: Any) -> Client:
    """An asynchronous client that is connected, and nobody's default. Raises what distributed raises."""
    client = Client(address, asynchronous=True, set_as_default=False, **options)
    try:
        return await client
    except BaseException:  # cancelled, too: it is raised on when nothing of ours is left
        await close_client(client)
        raise


async def close_client(client: Client) -> None:
    """Disconnect, whatever state the client is in. Never raises but when cancelled."""
    try:
        with contextlib.suppress(OSError, TimeoutError):  # the other side is away, or busy: it will see that we have gone
            await client.close(timeout=CLOSE_SECONDS)
    finally:
        # One that was reconnecting meanwhile, or was not done in time, would close itself when Python collects it, on a
        # loop that is no more.
        client.status = "closed"
