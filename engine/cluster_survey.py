"""Asks a Dask cluster about itself: versions, clocks, and whether its workers can import modules; changes nothing there.

With the other rooms of the cluster the only importer of distributed.
"""

from __future__ import annotations

import asyncio
import importlib
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import msgspec
from distributed import Client

from engine.dask_clients import close_client, open_client
from engine.errors import DaskUnavailable

#: What must be alike wherever pickles and graphs go.
_PACKAGES = ("dask", "distributed", "msgspec", "kafka-dask-engine")


#: Importing the handlers for the first time may take a while.
ANSWER_SECONDS = 30.0


class WorkerAnswer(msgspec.Struct, frozen=True):
    """What one worker says of itself; only ``error`` where it could not answer."""

    #: The part and its version.
    versions: dict[str, str] = {}
    #: How far its clock is from ours at least, in seconds.
    skew_seconds: float = 0.0
    #: Modules that it cannot import, and why.
    refused: dict[str, str] = {}
    error: str = ""


class Survey(msgspec.Struct, frozen=True):
    """What a cluster says of itself."""

    #: None where the scheduler could not answer, because it has no engine installed.
    scheduler_versions: dict[str, str] | None
    #: By address.
    workers: dict[str, WorkerAnswer]


async def survey(address: str, modules: Sequence[str], timeout_seconds: float) -> Survey:
    """Ask scheduler and workers. Raises DaskUnavailable."""
    try:
        client = await open_client(address, timeout=timeout_seconds)
    except (OSError, TimeoutError, ValueError, ImportError) as error:
        raise DaskUnavailable(address, str(error)) from error
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await _ask(client, modules)
    except (OSError, TimeoutError) as error:
        raise DaskUnavailable(address, str(error) or "no answer in time") from error
    finally:
        await close_client(client)


def versions() -> dict[str, str]:
    """Of this process: Python and what must be alike on all sides."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"  # a checkout on the path, say
    return found


async def _ask(client: Client, modules: Sequence[str]) -> Survey:
    try:
        scheduler = await client.run_on_scheduler(versions)
    except Exception:  # whatever unpickling our function raised there
        scheduler = None
    began_at = time.time()
    answers = await client.run(_answer, list(modules), on_error="return")
    ended_at = time.time()
    workers: dict[str, WorkerAnswer] = {}
    for worker, answer in answers.items():
        if isinstance(answer, BaseException):
            workers[worker] = WorkerAnswer(error=f"{type(answer).__name__}: {answer}")
            continue
        found, now, refused = answer
        # Its answer was given between our question and now: only what lies outside is certain.
        workers[worker] = WorkerAnswer(found, max(0.0, began_at - now, now - ended_at), refused)
    return Survey(scheduler, workers)


def _answer(modules: Sequence[str]) -> tuple[dict[str, str], float, dict[str, str]]:
    """Runs on each worker."""
    now = time.time()
    refused: dict[str, str] = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a module may raise anything; what, is the answer
            refused[module] = f"{type(error).__name__}: {error}"
    return versions(), now, refused
