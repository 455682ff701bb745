"""A Jaeger of one's own as a child process, on loopback: takes the traces of the stack and shows them; it fetches nothing."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.command_errors import JaegerMissing, StackError
from engine.dask_processes import get
from engine.processes import Children

#: Name of the process.
JAEGER = "jaeger"

_LOOPBACK = "127.0.0.1"
#: Where everybody looks for Jaeger's pages, and where programs send their traces.
_USUAL_PAGES_PORT = 16_686
_USUAL_TRACES_PORT = 4_318
#: It keeps them in memory; the oldest go first.
_MAX_TRACES = 10_000
#: One who looks does not want to wait for the five seconds that exporters share their requests for.
_EXPORT_MILLISECONDS = "500"


def find_jaeger(named: str) -> Path:
    """The program: that of the setting, or the one on PATH. Raises JaegerMissing, which says how to get one."""
    if named:
        path = Path(named).expanduser()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise JaegerMissing(f"the setting jaeger names {named}, which is no program")
        return path.resolve()
    found = shutil.which(JAEGER)
    if found is None:
        raise JaegerMissing("there is no program of that name on PATH")
    return Path(found).resolve()


class JaegerProcess:
    """Jaeger v2 with its store in memory; started again it listens where it was, without the traces that it had."""

    def __init__(
        self, children: Children, directory: Path, program: Path, start_seconds: float, report: Callable[[str], None]
    ) -> None:
        """``report`` says what happens, for a person to read."""
        self._children = children
        self._file = directory / "jaeger.json"
        self._program = program
        self._start_seconds = start_seconds
        self._report = report
        self._pages_port = self._traces_port = 0

    @property
    def url(self) -> str:
        """Where its pages and its query API are; empty before the start."""
        return f"http://{_LOOPBACK}:{self._pages_port}" if self._pages_port else ""

    @property
    def otlp(self) -> str:
        """Where it takes spans, OTLP over HTTP; empty before the start."""
        return f"http://{_LOOPBACK}:{self._traces_port}" if self._traces_port else ""

    async def start(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Start it, and return when it takes traces and answers. Raises StackError, with the end of its log.

        Answers the variables that make engine and workers send their traces there, and the dashboard link to them.
        """
        # It would trace itself, too, and when it stops wait for those who take that; nor is it meant by what is set for others.
        own = {name: text for name, text in environment.items() if not name.startswith("OTEL_")}
        own["OTEL_TRACES_SAMPLER"] = "always_off"
        if self._pages_port:
            await self._launch(own)
            self._report(f"Jaeger: back, without the traces that it had, at {self.url}")
        else:
            self._pages_port, self._traces_port = _port(_USUAL_PAGES_PORT), _port(_USUAL_TRACES_PORT)
            try:
                await self._launch(own)
            except StackError:  # somebody may have taken one of them since; whatever else it is comes again
                self._pages_port, self._traces_port = _port(0), _port(0)
                await self._launch(own)
            self._report(f"Jaeger: ready at {self.url}")
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.otlp,
            # It would win over the one above, where it is set for something else.
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self.otlp}/v1/traces",
            "OTEL_BSP_SCHEDULE_DELAY": environment.get("OTEL_BSP_SCHEDULE_DELAY", _EXPORT_MILLISECONDS),
            "ENGINE_TRACES": self.url,
        }

    async def _launch(self, environment: Mapping[str, str]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_bytes(msgspec.json.encode(_configuration(self._pages_port, self._traces_port)))
        child = await self._children.launch(JAEGER, (str(self._program), "--config", str(self._file)), environment)
        await child.until(self._is_ready, self._start_seconds)

    async def _is_ready(self) -> bool:
        # The receiver of traces, which starts last, answers a GET too, if only to refuse it.
        takes_traces = (await get(_LOOPBACK, self._traces_port, "/v1/traces"))[0] > 0
        return takes_traces and (await get(_LOOPBACK, self._pages_port, "/api/v3/services"))[0] == 200


def _configuration(pages_port: int, traces_port: int) -> dict[str, Any]:
    """As little as it needs: what is not named does not listen. JSON is YAML, too."""
    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}},
        },
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": _MAX_TRACES}}}},
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": f"{_LOOPBACK}:{pages_port}"},
                "grpc": {"endpoint": f"{_LOOPBACK}:0"},
            },
        },
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"{_LOOPBACK}:{traces_port}"}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }


def _port(usual: int) -> int:
    """The usual one, or one that is free."""
    for port in (usual, 0):
        try:
            with socket.create_server((_LOOPBACK, port)) as probe:
                found: int = probe.getsockname()[1]
        except OSError:
            continue  # Taken: another one will do.
        return found
    return usual  # Not even a free one is to be had: Jaeger's own error will say why.
