"""The flags that commands share, and the settings that they make."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from engine.settings import Settings, load

AppFlag = Annotated[str | None, Parameter(name="--app", help="Name of the application, the prefix of its topics.")]
KafkaFlag = Annotated[str | None, Parameter(name="--kafka", help="Bootstrap servers of Kafka, host:port,…")]
DaskFlag = Annotated[str | None, Parameter(name="--dask", help="Address of the Dask scheduler, tcp://host:port.")]
HttpFlag = Annotated[
    str | None, Parameter(name="--http", help="Where to listen for HTTP, host:port; port 0 takes a free one, '' none.")
]
HandlersFlag = Annotated[
    list[str] | None,
    Parameter(name="--handlers", negative=(), help="Modules, files or folders that declare flows."),
]
HistoryFlag = Annotated[str | None, Parameter(name="--history", help="The history database: a file, or postgresql://….")]
JsonFlag = Annotated[bool, Parameter(name="--json", negative=(), show_default=False, help="Print JSON, for programs.")]


def settings_of(*, handlers: Sequence[str] | None = None, **flags: Any) -> Settings:
    """The settings in force, given flags (None: not given). Raises SettingsError."""
    return load({**flags, "handlers": list(handlers) if handlers else None}, os.environ, Path.cwd())
