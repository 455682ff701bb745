"""Wiring: runs flows' functions in a thread of its own, so that what user code does there blocks no heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from engine.errors import EventError
from engine.flows import Flow
from engine.graph import Graph, wire
from engine.logs import run_fields
from engine.runs import FlowRun
from engine.states import Failure
from engine.telemetry import run_context
from engine.worker import failure_of

#: The type of the failure of a run whose flow no loaded handler declares.
UNKNOWN_FLOW = "UnknownFlow"


class Wirer:
    """Turns runs into graphs."""

    def __init__(self, flows: Mapping[str, Flow[..., Any]], inline_result_bytes: int) -> None:
        self._flows = flows
        self._inline_result_bytes = inline_result_bytes
        self._thread = ThreadPoolExecutor(1, "engine-wiring")

    async def wire(self, runs: Sequence[FlowRun], now: float) -> list[Graph | Failure]:
        """The graph of each run, or why it has none; one trip to the thread for all."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._wire_all, runs, now)

    def close(self) -> None:
        """Wire no more; a flow that blocks the thread is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _wire_all(self, runs: Sequence[FlowRun], now: float) -> list[Graph | Failure]:
        return [self._wire(run, now) for run in runs]

    def _wire(self, run: FlowRun, now: float) -> Graph | Failure:
        flow = self._flows.get(run.flow)
        if flow is None:
            known = ", ".join(sorted(self._flows)) or "none"
            return Failure(UNKNOWN_FLOW, f"no handler declares the flow {run.flow!r}; loaded: {known}")
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**run_fields(run.run_id, run.flow, run.traceparent))
        context = run_context(run.traceparent or "", run.run_id)
        try:
            return wire(flow, run, traceparent=context, now=now, inline_result_bytes=self._inline_result_bytes)
        except EventError as error:
            return Failure("InvalidParameters", error.cause)
        except BaseException as error:  # user code, sys.exit included: the run ends FAILED with it
            return failure_of(error)
