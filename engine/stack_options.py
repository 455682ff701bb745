"""What the embedded stack consists of, and what follows from that; starts nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from engine.command_errors import StackError
from engine.dask_processes import default_workers


class StackOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the stack consists of; the defaults are those of ``engine dev``."""

    app: str = "engine"
    #: Where data and logs live; None is a folder named after the app in the user's cache.
    directory: Path | None = None
    #: Bootstrap servers of a Kafka that runs already; None starts one.
    kafka: str | None = None
    #: Port of the Kafka that is started; None takes that of last time, or a free one.
    kafka_port: int | None = None
    #: Address of a Dask scheduler that runs already; None starts one, with workers.
    dask: str | None = None
    #: The program of Jaeger that takes the traces of all parts; None starts none.
    jaeger: Path | None = None
    #: Command of the engine, which learns its Kafka, Dask and HTTP address from ``ENGINE_*`` variables; None starts none.
    engine: tuple[str, ...] | None = None
    #: Commands that run beside the engine, by name; they learn Kafka and Dask as it does, and are started again when they end.
    #: One called "dashboard" listens at ``http`` and knows where the engine does, which then gets a free port on loopback.
    companions: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    #: Commands beside the engine that load the handlers, too: a reload starts them, or starts them anew.
    reloaded: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    #: Command that fails where the handlers cannot be loaded; it goes before each reload.
    check: tuple[str, ...] | None = None
    #: Where the engine serves HTTP, ``host:port``; port 0 takes a free one, an empty text switches it off.
    http: str = "127.0.0.1:8282"
    #: Files and folders whose Python files are watched; none switches reloading off.
    handler_paths: tuple[Path, ...] = ()
    #: Folders from which workers and engine import the handlers.
    import_paths: tuple[Path, ...] = ()
    workers: int = msgspec.field(default_factory=default_workers)
    threads_per_worker: int = 2
    #: As ``dask worker --memory-limit`` takes it; "0" is none.
    worker_memory_limit: str = "auto"
    #: More arguments for the commands of Dask, e.g. ``("--preload", "engine.reporter")``.
    scheduler_arguments: tuple[str, ...] = ()
    worker_arguments: tuple[str, ...] = ()
    #: Variables for scheduler, workers and engine, on top of those of this process.
    environment: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: Start with empty topics.
    fresh: bool = False
    #: Stop on Ctrl-C, SIGTERM and SIGHUP; a second one kills. Only in the main thread.
    signals: bool = True
    #: How long a part may take to be ready.
    start_seconds: float = 60.0
    #: How long the engine may take to stop before it is killed.
    grace_seconds: float = 15.0
    #: The same for scheduler and workers: once the engine has stopped nobody waits for what still runs there.
    dask_grace_seconds: float = 3.0
    #: The first wait before a part that died is started again; it doubles up to the limit while the part keeps dying.
    backoff_seconds: float = 0.5
    backoff_limit_seconds: float = 15.0

    @property
    def beside(self) -> dict[str, tuple[str, ...]]:
        """All commands that may run beside the engine."""
        return dict(self.companions) | dict(self.reloaded)

    def data_directory(self) -> Path:
        """Where data and logs live. Raises StackError where that cannot be told."""
        if self.directory is not None:
            return self.directory
        try:
            import platformdirs  # part of the stack extra
        except ImportError as error:
            raise StackError("stack", "platformdirs is not installed", "Run: pip install 'kafka-dask-engine[stack]'") from error
        return platformdirs.user_cache_path("kafka-dask-engine") / self.app

    def process_environment(self) -> dict[str, str]:
        """The variables of scheduler, workers and engine."""
        # Unbuffered, so that logs are there when one looks; without .pyc files, because those of two edits within a second
        # can look alike, and a reload would load the older one.
        defaults = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment = defaults | dict(os.environ) | dict(self.environment)
        paths = [str(path.resolve()) for path in self.import_paths]
        if paths:
            environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [environment.get("PYTHONPATH")])])
        return environment

    def watched(self) -> list[tuple[Path, str | None]]:
        """Folders to watch, with the one file in it that matters or None for all. Editors replace files, so folders it is."""
        return [(path, None) if path.is_dir() else (path.parent, path.name) for path in self.handler_paths]


def free_address(address: str) -> str:
    """``address`` with a real port that is free now. Raises StackError."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if "[" in host else socket.AF_INET
    try:
        with socket.create_server((host.strip("[]"), int(port)), family=family) as probe:
            return f"{host}:{probe.getsockname()[1]}"
    except (OSError, ValueError, OverflowError) as error:
        raise StackError("http", f"cannot listen at {address}: {error}", "Choose another address with --http.") from error
