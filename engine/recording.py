"""Recording: goes through a flow's function for one run and takes down what it calls; no I/O, no clock.

A ``def`` flow is gone through at once; an ``async`` flow goes on whenever it is fed what one of its calls has come to, in
the order in which that is on the state topic. Fed the same, it calls the same: that is how a run is taken up again.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from engine.errors import EventError, EventTimeout, FlowChanged, TaskCrashed, TaskFailed, TooManyTasks, WiringError
from engine.events import Event
from engine.failures import failure_of, state_of
from engine.flow_calls import FlowCalls
from engine.flow_loop import FlowLoop
from engine.flows import Flow
from engine.handles import Handle, MapHandle, element_index, recorder
from engine.planning import (
    SLEEP,
    WAIT,
    Advance,
    Feed,
    Limits,
    Outcome,
    PlannedEnd,
    PlannedSleep,
    PlannedWait,
)
from engine.retries import Verdict, judge
from engine.runs import FlowRun
from engine.states import Failure, State, utc


class Recording(FlowCalls):
    """One run of a flow."""

    def __init__(self, flow: Flow[..., Any], run: FlowRun, traceparent: str, now: float, limits: Limits) -> None:
        super().__init__(flow, run, traceparent, now, limits)
        #: Made when the flow asks first: it costs more than all else here, and few flows do.
        self._chance: random.Random | None = None
        self._is_first = True
        #: What follows is for async flows alone.
        self._loop = FlowLoop(flow.name, lambda: self._at, self._set_timer)  # type: ignore[abstract]
        self._main: asyncio.Task[Any] | None = None
        self._queue: deque[Feed] = deque()
        self._fed: dict[str, Feed] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._timers: dict[str, Callable[[], None]] = {}
        self._values: dict[str, Any] = {}
        self._fetching = False

    def start(self, history: Sequence[Feed] = ()) -> Advance:
        """Go through the flow from its beginning, with what is known of its calls already."""
        self._queue.extend(history)
        token = recorder.set(self)
        try:
            arguments = self._flow.arguments(self.run.parameters)
            if not self._flow.is_async:
                self._finish(self._flow.function(**arguments))
                self._check_whole()
            else:
                self._main = self._loop.create_task(self._flow.function(**arguments))
                self._go_on()
        except BaseException as error:  # user code, sys.exit included: the run ends with it
            self._fail(error)
        finally:
            recorder.reset(token)
        return self._taken()

    def feed(self, feeds: Sequence[Feed]) -> Advance:
        """Go on with an async flow."""
        for feed in feeds:
            if feed.fetched is not msgspec.UNSET:
                self._queue.appendleft(feed)  # it was waited for before all else
                self._fetching = False
            else:
                self._queue.append(feed)
        token = recorder.set(self)
        try:
            self._go_on()
        except BaseException as error:  # as above
            self._fail(error)
        finally:
            recorder.reset(token)
        return self._taken()

    def take_lost(self) -> tuple[list[BaseException], int]:
        """The errors of asyncio tasks that the flow has dropped, since this was asked last, and how many more there were."""
        return self._loop.take_lost()

    def close(self) -> None:
        """Let go of a flow that will not be gone on with."""
        if self._main is not None and not self._main.done():
            self._loop.close_all()

    # --- What flows call ---------------------------------------------------------------------------------------------

    def wait(self, handle: Handle | MapHandle) -> Awaitable[Any]:
        """See engine.handles.Recorder. Raises WiringError in a plain flow, and for a handle of another run."""
        self._check_async(handle.task, "await it")
        if handle.run_id != self._run_id:
            cause = f"{handle!r} of another run was awaited"
            raise WiringError(handle.task, cause, "From another run use engine.attach(run_id).")
        return self._value(handle.index) if isinstance(handle, Handle) else self._all_values(handle)

    def result(self, handle: Handle | MapHandle) -> Any:
        """See engine.handles.Recorder."""
        remedy = "Await it." if self._flow.is_async else "Hand the handle to another task and look at the value there."
        raise WiringError(handle.task, "result() was asked for inside a flow, which must not wait", remedy)

    def now(self) -> datetime:
        """See engine.durable."""
        if self._is_first:
            self._advance.is_decided = True  # that the run began then is not on the state topic yet
        return utc(self._at)

    def random(self) -> float:
        """See engine.durable. Its series follows from the run's id: nothing has to be written down."""
        if self._chance is None:
            self._chance = random.Random(self._run_id)  # noqa: S311 - for flows, not for secrets
        return self._chance.random()

    async def sleep(self, until: float) -> None:
        """See engine.durable."""
        index = self._next(SLEEP)
        self._advance.planned.append(PlannedSleep(index, until))
        try:
            await self._outcome(index)
        except asyncio.CancelledError:
            self._advance.planned.append(PlannedEnd(index))
            raise

    async def wait_for_event(
        self,
        topic: str,
        type: str | None,
        source: str | None,
        where: Callable[[Event[Any]], object] | None,
        data: Any,
        timeout_seconds: float | None,
    ) -> Event[Any]:
        """See engine.durable."""
        index = self._next(WAIT)
        self._advance.planned.append(PlannedWait(index, topic, type, source, where, data, timeout_seconds, self._at))
        try:
            feed = await self._outcome(index)
        except asyncio.CancelledError:
            self._advance.planned.append(PlannedEnd(index))
            raise
        if feed.state is State.CANCELLED:
            raise EventTimeout(topic, timeout_seconds or 0.0)
        self._raise_failure(feed)
        found: Event[Any] = msgspec.json.decode(feed.value or b"", type=Event[data])
        return found

    # --- How an async flow goes on -------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Feed one thing after the other, letting the flow come to rest each time; a fetch holds the rest back."""
        self._loop.advance()
        while self._queue and not self._fetching and self._main is not None and not self._main.done():
            feed = self._queue.popleft()
            self._is_first = False
            self._at = max(self._at, feed.at)
            self._fed[feed.index] = feed
            if (ring := self._timers.pop(feed.index, None)) is not None:
                ring()
            for waiter in self._waiters.pop(feed.index, ()):
                if not waiter.done():
                    waiter.set_result(None)
            self._loop.advance()
        if self._main is not None and self._main.done():
            main, self._main = self._main, None
            if not main.cancelled():
                main.exception()  # somebody looks at that one
            self._loop.close_all()
            self._finish(main.result())
        if not self._queue and not self._fetching:
            self._check_whole()

    async def _outcome(self, index: str) -> Feed:
        while (feed := self._fed.get(index)) is None:
            waiter = self._loop.create_future()
            self._waiters.setdefault(index, []).append(waiter)
            await waiter
        return feed

    async def _value(self, index: str) -> Any:
        feed = await self._outcome(index)
        self._raise_failure(feed)
        if index in self._values:
            return self._values[index]
        while feed.value is None and feed.fetched is msgspec.UNSET:
            # One at a time, and before anything else is fed: else the order of what the flow hears would be chance.
            if not self._fetching:
                self._fetching = True
                self._advance.fetch = index
            if self._fed.get(index) is feed:
                del self._fed[index]
            feed = await self._outcome(index)
            self._raise_failure(feed)
        value = self._values[index] = feed.fetched if feed.value is None else self._decoded(index, feed.value)
        return value

    async def _all_values(self, handle: MapHandle) -> list[Any]:
        length = await self._measured(handle.index) if handle.length is None else handle.length
        return [await self._value(element_index(handle.index, place)) for place in range(length)]

    async def _measured(self, map_index: str) -> int:
        """How many elements a map has that the flow made without knowing. Raises what keeps it from being known."""
        lengths: set[int] = set()
        for column in self._columns[map_index]:
            if isinstance(column, MapHandle):
                lengths.add(await self._measured(column.index) if column.length is None else column.length)
                continue
            feed = await self._outcome(column.index)
            self._raise_failure(feed)
            if feed.length is None:
                self._advance.handled.append(map_index)
                raise WiringError(column.task, "a map walks over its result, which has no length", "Return a list.")
            lengths.add(feed.length)
        if len(lengths) != 1:
            self._advance.handled.append(map_index)
            cause = f"map over columns of unequal length {sorted(lengths)}"
            raise WiringError(self._called[map_index], cause, "Make them equally long.")
        return lengths.pop()

    def _decoded(self, index: str, value: bytes) -> Any:
        task = self._tasks[index.partition(".")[0]]
        try:
            return msgspec.json.decode(value, type=task.result_type)
        except (msgspec.ValidationError, TypeError):  # the annotation does not say what came: then as plain JSON
            return msgspec.json.decode(value)

    def _raise_failure(self, feed: Feed) -> None:
        if feed.failure is None:
            return
        self._advance.handled += [feed.index, *([feed.cause] if feed.cause else [])]
        kind = TaskCrashed if feed.state is State.CRASHED else TaskFailed
        raise kind(feed.failure.type, feed.failure.message, feed.failure.traceback)

    def _check_async(self, task: str, what: str) -> None:
        if not self._flow.is_async:
            cause = f"a flow that is a plain function cannot {what}"
            raise WiringError(task, cause, "Declare the flow with async def.")

    def _set_timer(self, when: float, ring: Callable[[], None]) -> Callable[[], None]:
        index = self._next(SLEEP)
        self._timers[index] = ring
        self._advance.planned.append(PlannedSleep(index, when))

        def forget() -> None:
            if self._timers.pop(index, None) is not None:
                self._advance.planned.append(PlannedEnd(index))

        return forget

    def _fail(self, error: BaseException) -> None:
        self._main = None
        if not self._flow.is_async or isinstance(error, TooManyTasks):
            self._advance.planned.clear()  # nothing of it has begun, and nothing will
        if isinstance(error, EventError):  # the parameters do not fit: the flow has changed since they were bound
            failure = Failure("InvalidParameters", error.cause)
            self._advance.outcome = Outcome(State.FAILED, failure, verdict=Verdict(is_final=True))
        elif isinstance(error, FlowChanged):
            self._advance.outcome = Outcome(State.CRASHED, failure_of(error), verdict=Verdict(is_final=True))
        else:
            verdict = None if isinstance(error, TaskFailed | TaskCrashed) else judge(self._flow.retry, error)
            self._advance.outcome = Outcome(state_of(error), failure_of(error, _OWN_FILES), verdict=verdict)


_OWN_FILES = (__file__, *(module.__file__ for module in (asyncio.tasks, asyncio.events) if module.__file__))
