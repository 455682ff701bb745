"""Wiring: goes through flows in a thread of its own, so that what user code does there blocks no heartbeat.

Async flows live in that thread, too; they hold no thread while they wait.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import structlog

from engine.errors import FlowBlocked
from engine.failures import failure_of
from engine.flow_watch import FlowWatch
from engine.flows import Flow
from engine.log_catcher import catcher, speaker
from engine.log_outbox import LogOutbox, Speaker, Voice
from engine.logs import logger, run_fields
from engine.planning import Advance, Feed, Limits, Outcome
from engine.recording import Recording
from engine.runs import FlowRun
from engine.states import Failure, State

#: So much is said of where a task failed that nobody awaited.
_LOST_LINES = 12
#: The type of the failure of a run whose flow no loaded handler declares.
UNKNOWN_FLOW = "UnknownFlow"


class Start(msgspec.Struct, frozen=True):
    """A run whose flow is to be gone through."""

    run: FlowRun
    #: What an earlier owner has told of its calls.
    history: Sequence[Feed]
    #: Where its clock begins.
    at: float


class Wirer:
    """Goes through flows."""

    def __init__(self, flows: Mapping[str, Flow[..., Any]], limits: Limits, flow_timeout_seconds: float) -> None:
        self._flows = flows
        self._limits = limits
        self._watch = FlowWatch(flow_timeout_seconds)
        self._thread = ThreadPoolExecutor(1, "engine-wiring")
        #: Async flows that wait, by run, and what speaks for them. Only the thread touches them.
        self._recordings: dict[str, Recording] = {}
        self._speakers: dict[str, Speaker] = {}
        #: What flows log.
        self.logs = LogOutbox()
        catcher.begin(self)

    async def start(self, starts: Sequence[Start]) -> list[Advance]:
        """What each flow does first, or has done so far; one trip to the thread for all."""
        return await self._in_thread(lambda: [self._start(start) for start in starts])

    async def feed(self, feeds: Sequence[tuple[str, list[Feed]]]) -> list[Advance]:
        """What the flows of these runs do when they hear of these ends, each in order."""
        return await self._in_thread(lambda: [self._feed(run_id, heard) for run_id, heard in feeds])

    def forget(self, run_id: str) -> None:
        """The run is somebody else's now."""
        self._thread.submit(self._forget, run_id)

    def close(self) -> None:
        """Go through no more; a flow that blocks the thread is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        catcher.end(self)

    async def _in_thread(self, work: Callable[[], list[Advance]]) -> list[Advance]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _start(self, start: Start) -> Advance:
        run = start.run
        flow = self._flows.get(run.flow)
        if flow is None:
            known = ", ".join(sorted(self._flows)) or "none"
            text = f"no handler declares the flow {run.flow!r}; loaded: {known}"
            return Advance(outcome=Outcome(State.CRASHED, Failure(UNKNOWN_FLOW, text)))
        context = run.context
        recording = Recording(flow, run, context, start.at, self._limits)
        said = Speaker(self, _voice_of, run)
        # What is gone through once more was said by the owner before.
        said.is_muted = bool(start.history or run.called)
        advance = self._watched(run, said, functools.partial(recording.start, start.history))
        self._say_lost(recording, said)
        said.is_muted = False
        if advance.outcome is None:
            self._recordings[run.run_id], self._speakers[run.run_id] = recording, said
        else:
            said.close()
        return advance

    def _feed(self, run_id: str, feeds: list[Feed]) -> Advance:
        recording = self._recordings.get(run_id)
        if recording is None:
            return Advance()
        said = self._speakers[run_id]
        advance = self._watched(recording.run, said, functools.partial(recording.feed, feeds))
        self._say_lost(recording, said)
        if advance.outcome is not None:
            del self._recordings[run_id], self._speakers[run_id]
            said.close()
        return advance

    def _say_lost(self, recording: Recording, said: Speaker) -> None:
        """As asyncio would: nothing waits for it, so it fails nothing, but whoever looks at the run's log finds it.

        Who takes the run over goes through it from its beginning and comes by the same errors: the log of the run says nothing
        then, as of all that its flow logs on that way. The log of that engine says it once more.
        """
        lost, more = recording.take_lost()
        for error in lost:
            failure = failure_of(error)
            flow, run_id, told = recording.run.flow, recording.run.run_id, f"{failure.type}: {failure.message}"
            logger.warning("an asyncio task of a flow failed, and nobody awaited it", flow=flow, run_id=run_id, error=told)
            frames = "\n".join(failure.traceback.rstrip().splitlines()[-_LOST_LINES:])
            _warn(said, f"an asyncio task of the flow {flow} failed, and nobody awaited it: {told}\n{frames}")
        if more:
            _warn(said, f"so did {more:,} more of its asyncio tasks")

    def _forget(self, run_id: str) -> None:
        recording = self._recordings.pop(run_id, None)
        self._speakers.pop(run_id, None)
        if recording is not None:
            recording.close()

    def watch(self) -> None:
        """Look whether a flow keeps all others waiting: name it, and stop it in the end. Call it now and then."""
        self._watch.look()

    def _watched(self, run: FlowRun, said: Speaker, work: Callable[[], Advance]) -> Advance:
        """One step of a flow, which must not take long: every other flow waits for it."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**run_fields(run.run_id, run.flow, run.traceparent))
        token = speaker.set(said)
        try:
            return self._watch.run(run, work)
        except FlowBlocked as error:
            return Advance(outcome=Outcome(State.FAILED, failure_of(error)))
        finally:
            speaker.reset(token)


def _warn(said: Speaker, text: str) -> None:
    if said.log is not None:
        said.log.say(time.time(), logging.WARNING, "engine", lambda: text)


def _voice_of(wirer: Wirer, run: FlowRun) -> Voice:
    return Voice(run_id=run.run_id, flow=run.flow, attempt=max(1, run.attempt), traceparent=run.traceparent or "")
