"""Recording: goes through a flow's function for one run and takes down what it calls; no I/O, no clock.

A ``def`` flow is gone through at once; an ``async`` flow goes on whenever it is fed what one of its calls has come to, in
the order in which that is on the state topic. Fed the same, it calls the same: that is how a run is taken up again.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from engine.arguments import Dumped, ElementOf, Input, ItemOf, dump
from engine.errors import EventTimeout, FlowChanged, TaskCrashed, TaskFailed, TooManyTasks, WiringError
from engine.events import Event
from engine.executor import Call
from engine.failures import failure_of, state_of
from engine.flow_loop import FlowLoop
from engine.flows import Flow
from engine.handles import Handle, MapHandle, Unmapped, element_index, recorder
from engine.planning import (
    SLEEP,
    WAIT,
    Advance,
    Feed,
    Limits,
    Outcome,
    PlannedCall,
    PlannedEnd,
    PlannedMap,
    PlannedSleep,
    PlannedWait,
)
from engine.retries import Verdict, judge
from engine.runs import FlowRun
from engine.states import State, encode, utc
from engine.tasks import Task

#: What is the same in every call of a map travels by itself where it is larger.
_SHARED_BYTES = 32_768


class Recording:
    """One run of a flow."""

    takes_calls = True

    def __init__(self, flow: Flow[..., Any], run: FlowRun, traceparent: str, now: float, limits: Limits) -> None:
        self.run = run
        self._flow, self._run_id, self._traceparent, self._limits = flow, run.run_id, traceparent, limits
        self._parameters = run.parameters
        self._expected: Mapping[str, str] = dict(run.called)
        #: Where the clock of the flow stands: the time of what it heard last.
        self._at = now
        self._called: dict[str, str] = {}
        self._types: dict[str, Any] = {}
        self._tasks_made = 0
        self._advance = Advance()
        self._chance = random.Random(run.run_id)  # noqa: S311 - for flows, not for secrets
        self._is_first = True
        # What follows is for async flows alone.
        self._loop = FlowLoop(flow.name, lambda: self._at, self._set_timer)  # type: ignore[abstract]
        self._main: asyncio.Task[Any] | None = None
        self._queue: deque[Feed] = deque()
        self._fed: dict[str, Feed] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._timers: dict[str, Callable[[], None]] = {}
        self._values: dict[str, Any] = {}
        self._columns: dict[str, tuple[Handle | MapHandle, ...]] = {}
        self._fetching = False

    def start(self, history: Sequence[Feed] = ()) -> Advance:
        """Go through the flow from its beginning, with what is known of its calls already."""
        self._queue.extend(history)
        token = recorder.set(self)
        try:
            arguments = self._flow.arguments(self._parameters)
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

    def close(self) -> None:
        """Let go of a flow that will not be gone on with."""
        if self._main is not None and not self._main.done():
            self._loop.close_all()

    # --- What flows call ---------------------------------------------------------------------------------------------

    def call(self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle:
        """See engine.handles.Recorder. Raises WiringError, TooManyTasks."""
        index = self._next(task.name)
        self._count(1)
        dumped = dump((args, kwargs), task.name, self._run_id)
        self._types[index] = task
        self._advance.planned.append(PlannedCall(self._new_call(index, task, dumped.data), dumped.inputs))
        return Handle(task.name, index, self._run_id)

    def map(self, task: Task[..., Any], columns: Sequence[Any], fixed: dict[str, Any]) -> MapHandle:
        """See engine.handles.Recorder. Raises WiringError, TooManyTasks."""
        columns = [self._share(column) for column in columns]
        fixed = {name: self._share(Unmapped(value)).value for name, value in fixed.items()}
        index = self._next(task.name)
        known = [column for column in columns if not isinstance(column, MapHandle | Handle | Unmapped)]
        later = tuple(column for column in columns if isinstance(column, MapHandle | Handle))
        length = len(known[0]) if known else None
        rows: tuple[Dumped, ...] | Dumped
        if known:
            self._count(len(known[0]))
            rows = tuple(self._row(task, columns, fixed, place) for place in range(len(known[0])))
        else:
            rows = self._row(task, columns, fixed, 0)
        task.check([None] * len(columns), fixed)
        self._types[index] = task
        self._columns[index] = later
        self._walk(later)
        self._advance.planned.append(PlannedMap(self._new_call(index, task, b""), rows, length, later))
        if later:
            measured = [column.length for column in later if isinstance(column, MapHandle)]
            all_known = len(measured) == len(later) and None not in measured
            length = (length if length is not None else measured[0]) if all_known else None
        return MapHandle(task.name, index, self._run_id, length)

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
        task = self._types[index.partition(".")[0]]
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

    def _set_timer(self, when: float, ring: Callable[[], None]) -> Callable[[], None]:
        index = self._next(SLEEP)
        self._timers[index] = ring
        self._advance.planned.append(PlannedSleep(index, when))

        def forget() -> None:
            if self._timers.pop(index, None) is not None:
                self._advance.planned.append(PlannedEnd(index))

        return forget

    # --- The parts of a call -------------------------------------------------------------------------------------------

    def _next(self, task: str) -> str:
        index = str(len(self._called))
        self._called[index] = task
        if (expected := self._expected.get(index)) is not None and expected != task:
            raise FlowChanged(self._flow.name, _sequence(self._expected), _sequence(self._called))
        return index

    def _check_whole(self) -> None:
        """All that was called before must have been called again, once all is fed that was known."""
        expected, self._expected = self._expected, {}
        if not set(expected) <= set(self._called):
            raise FlowChanged(self._flow.name, _sequence(expected), _sequence(self._called))

    def _count(self, more: int) -> None:
        self._tasks_made += more
        if self._tasks_made > self._limits.max_tasks:
            raise TooManyTasks(self._run_id, self._limits.max_tasks)

    def _check_async(self, task: str, what: str) -> None:
        if not self._flow.is_async:
            cause = f"a flow that is a plain function cannot {what}"
            raise WiringError(task, cause, "Declare the flow with async def.")

    def _share(self, column: Any) -> Any:
        """A large constant becomes the result of a step of its own, so that it does not travel with every call."""
        if not isinstance(column, Unmapped):
            return column
        dumped = dump(((column.value,), {}), "map", self._run_id)
        if len(dumped.data) <= _SHARED_BYTES or dumped.inputs:
            return column
        index = self._next("")
        self._advance.planned.append(PlannedCall(self._new_call(index, None, dumped.data), ()))
        return Unmapped(Handle("", index, self._run_id))

    def _walk(self, columns: Sequence[Handle | MapHandle]) -> None:
        """Have the length of these results reported; what an async flow has called before reports it anyway."""
        walked = {column.index for column in columns if isinstance(column, Handle)}
        for place, one in enumerate(self._advance.planned):
            if isinstance(one, PlannedCall) and one.call.index in walked:
                call = msgspec.structs.replace(one.call, is_walked=True)
                self._advance.planned[place] = msgspec.structs.replace(one, call=call)

    def _row(self, task: Task[..., Any], columns: Sequence[Any], fixed: dict[str, Any], place: int) -> Dumped:
        args: list[Any] = []
        for column in columns:
            if isinstance(column, MapHandle):
                args.append(ElementOf(column))
            elif isinstance(column, Handle):
                args.append(ItemOf(column))
            else:
                args.append(column.value if isinstance(column, Unmapped) else column[place])
        return dump((tuple(args), fixed), task.name, self._run_id)

    def _new_call(self, index: str, task: Task[..., Any] | None, arguments: bytes, *, is_final: bool = False) -> Call:
        return Call(
            index=index,
            task=task.name if task is not None else "",
            function=task.reference if task is not None else "engine.arguments:collected",
            flow=self._flow.name,
            run_id=self._run_id,
            arguments=arguments,
            dependencies=(),
            places=(),
            attempt=1,
            depth=0,
            is_async=task is not None and task.is_async,
            # What an async flow may look at has to come back with the report.
            returns=is_final or (self._flow.is_async and task is not None),
            is_final=is_final,
            inline_result_bytes=self._limits.inline_result_bytes,
            timeout_seconds=task.timeout_seconds if task is not None else None,
            traceparent=self._traceparent,
            scheduled_at=self._at,
            is_taken=self._flow.is_async or task is None,
            persist=task is not None and task.persist,
            store=self._limits.store if is_final or (task is not None and task.persist) else "",
        )

    # --- How it ends ---------------------------------------------------------------------------------------------------

    def _finish(self, returned: Any) -> None:
        # A composite takes the values of its parts; a single handle is the result itself.
        if inspect.isawaitable(returned) and not isinstance(returned, Handle | MapHandle):
            raise WiringError(self._flow.name, "the flow has returned something to await", "Await it in an async flow.")
        dumped = dump(((returned,), {}), "result", self._run_id)
        planned = self._advance.planned
        self._mark_taken(dumped)
        if isinstance(returned, Handle) and not self._flow.is_async:
            for place, one in enumerate(planned):
                if isinstance(one, PlannedCall) and one.call.index == returned.index:
                    planned[place] = msgspec.structs.replace(
                        one, call=msgspec.structs.replace(one.call, returns=True, is_final=True)
                    )
                    self._advance.outcome = Outcome(State.COMPLETED)
                    return
        result = None if dumped.inputs else self._inline(returned)
        if result is None:
            planned.append(PlannedCall(self._new_call("result", None, dumped.data, is_final=True), dumped.inputs))
        self._advance.outcome = Outcome(State.COMPLETED, result=result)

    def _mark_taken(self, returned: Dumped) -> None:
        """Tell the calls whose value others take; in an async flow nobody knows, so there all are told."""
        if self._flow.is_async:
            return
        planned = self._advance.planned
        taken = {index_taken(one) for one in returned.inputs} if len(returned.inputs) > 1 else set()
        for one in planned:
            if isinstance(one, PlannedCall):
                taken.update(index_taken(needed) for needed in one.inputs)
            elif isinstance(one, PlannedMap):
                rows = one.rows if isinstance(one.rows, tuple) else (one.rows,)
                taken.update(index_taken(needed) for row in rows for needed in row.inputs)
        for place, one in enumerate(planned):
            if isinstance(one, PlannedCall | PlannedMap) and one.call.index in taken:
                planned[place] = msgspec.structs.replace(one, call=msgspec.structs.replace(one.call, is_taken=True))

    def _fail(self, error: BaseException) -> None:
        self._main = None
        if not self._flow.is_async or isinstance(error, TooManyTasks):
            self._advance.planned.clear()  # nothing of it has begun, and nothing will
        if isinstance(error, FlowChanged):
            self._advance.outcome = Outcome(State.CRASHED, failure_of(error), verdict=Verdict(is_final=True))
        else:
            verdict = None if isinstance(error, TaskFailed | TaskCrashed) else judge(self._flow.retry, error)
            self._advance.outcome = Outcome(state_of(error), failure_of(error, _OWN_FILES), verdict=verdict)

    def _inline(self, value: Any) -> bytes | None:
        """A plain value as it travels in COMPLETED; None where it must stay on the cluster, as a task's would."""
        try:
            result = encode(value)
        except Exception:  # whatever it is, the call that keeps it there will say why it did not travel
            return None
        return result if len(result) <= self._limits.inline_result_bytes else None

    def _taken(self) -> Advance:
        taken, self._advance = self._advance, Advance()
        return taken


def index_taken(taken: Input) -> str:
    """The index of the call or map that an input is of."""
    handle = taken.handle if isinstance(taken, ElementOf | ItemOf) else taken
    return handle.index.partition(".")[0]


def _sequence(calls: Mapping[str, str]) -> str:
    """Calls in order, as an error shows them."""
    told = [f"{task}/{index}" for index, task in sorted(calls.items(), key=lambda call: int(call[0]))]
    shown = ", ".join(told[:40])
    return f"{shown} and {len(told) - 40} more" if len(told) > 40 else shown or "nothing"


_OWN_FILES = (__file__, *(module.__file__ for module in (asyncio.tasks, asyncio.events) if module.__file__))
