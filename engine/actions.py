"""Actions: all that a person does to runs, flows, events and dead letters; each is a record on a topic, and nothing else.

The command line, the HTTP API and the dashboard act through it alike. With a history database it finds a run by one record.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.broker import Broker, Outgoing, Sink
from engine.cancellations import CANCELLED, MAX_REASON, Cancellation, write_cancellation
from engine.command_errors import AlreadyEnded, NotFound
from engine.declaration_reader import DeclarationReader
from engine.declarations import Declaration
from engine.event_files import SOURCE, Template
from engine.events import Position, valid_traceparent
from engine.history_schema import RunRow, where_of
from engine.letter_desk import LetterDesk, Replayed
from engine.repeats import Kind, Story, check_repeatable, repeat
from engine.reruns import Plan
from engine.run_finder import Histories, RunFinder
from engine.settings import Settings
from engine.starts import parameters_of, start
from engine.states import State, StateChange, utc
from engine.telemetry import Tracer
from engine.trace_contexts import child_of, is_sampled
from engine.translator import write_scheduled

#: The source of what stands for the event of a run that was started by hand.
_STARTED = "/engine/flows/run"
#: Runs that are repeated with one write.
_BATCH = 200


class Repeated(msgspec.Struct, frozen=True):
    """A run that repeats another."""

    run_id: str
    repeats: str
    #: Of a rerun from a task: the calls whose stored results are taken, and those that run again.
    taken: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


class Actions:
    """``sink`` has started; it, the broker and the tracer stay the caller's. Close it all the same."""

    def __init__(
        self, settings: Settings, broker: Broker, sink: Sink, tracer: Tracer | None = None, histories: Histories | None = None
    ) -> None:
        """``histories`` gives an open history, whose context lets it go; without it whole topics are read."""
        self._settings, self._sink = settings, sink
        self._tracer = tracer or Tracer(None, None, None)
        self._finder = RunFinder(settings, broker, histories)
        self._declarations = DeclarationReader(settings, broker, histories)
        #: For lists of dead letters.
        self.desk = LetterDesk(settings, broker, sink, histories)

    async def close(self) -> None:
        """Free everything."""
        await self._finder.close()

    # --- Runs -----------------------------------------------------------------------------------------------------------

    async def cancel(self, run_id: str, reason: str = CANCELLED) -> None:
        """Ask the owner of a run to end it. Raises NotFound or AlreadyEnded."""
        story = await self._finder.find(run_id, needs_end=False)
        if story.partition is None:
            raise NotFound("run", run_id, self._remedy())
        if story.end is not None:
            raise AlreadyEnded(run_id, story.end)
        await self._sink.write([self._cancellation(run_id, story.key, story.partition, reason)])

    async def cancel_all(self, rows: Sequence[RunRow], reason: str = CANCELLED) -> None:
        """The same for many runs that the history knows. One that has ended meanwhile stays as it is."""
        records = [self._cancellation(row.run_id, row.run_key, where_of(row.place)[0], reason) for row in rows]
        for begin in range(0, len(records), _BATCH):
            await self._sink.write(records[begin : begin + _BATCH])

    async def repeat(self, run_id: str, kind: Kind, *, from_task: str | None = None, request_id: str | None = None) -> str:
        """Run what has ended once more, as a new run; answers its id. See ``rerun`` for ``from_task``.

        Raises NotFound or NotRepeatable.
        """
        return (await self.rerun(run_id, kind, from_task=from_task, request_id=request_id)).run_id

    async def rerun(
        self, run_id: str, kind: Kind = Kind.RERUN, *, from_task: str | None = None, request_id: str | None = None
    ) -> Repeated:
        """The same, and what becomes of each call: from ``from_task`` on, and where nothing is stored, they run again.

        ``request_id`` makes it the same run however often it is asked for. Raises NotFound or NotRepeatable.
        """
        story = await self._finder.find(run_id, with_calls=from_task is not None)
        plan: Plan | None = None
        if from_task is not None:
            scheduled = check_repeatable(run_id, story, kind)
            declared = await self._declarations.one(scheduled.flow)
            plan = story.calls.plan(run_id, from_task, is_async=declared is not None and declared.options.is_async)
        change = repeat(run_id, story, kind, request_id, time.time(), from_task=from_task or "", plan=plan)
        await self._schedule([(change, story)])
        return Repeated(change.run_id, run_id, *(() if plan is None else (plan.taken, plan.again)))

    async def repeat_all(self, rows: Sequence[tuple[RunRow, Mapping[str, bool]]], kind: Kind) -> list[Repeated]:
        """Repeat many runs that the history knows, given their repeats so far; those that cannot be are left out."""
        done: list[Repeated] = []
        for begin in range(0, len(rows), _BATCH):
            made: list[tuple[StateChange, Story]] = []
            for row, repeats in rows[begin : begin + _BATCH]:
                story = await self._finder.story_of(row, repeats)
                if story.scheduled is None or story.end is None or (kind is Kind.RETRY and story.end is State.COMPLETED):
                    continue  # its record has expired, or there is nothing to repeat
                made.append((repeat(row.run_id, story, kind, None, time.time()), story))
            await self._schedule(made)
            done += [Repeated(change.run_id, change.repeats or "") for change, _ in made]
        return done

    # --- Flows ----------------------------------------------------------------------------------------------------------

    async def start(
        self,
        flow: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        data: Any = msgspec.UNSET,
        key: str | None = None,
        request_id: str | None = None,
        declaration: Declaration | None = None,
    ) -> str:
        """Start a run by hand, with parameters by name or ``data`` as an event would bring it; answers its id.

        They are checked against ``declaration``, by default that of the running engine, which has the last word when it
        binds them. The same ``request_id`` makes the same run. Raises NotFound for a flow that no engine has declared, and
        ParametersError.
        """
        declared = declaration or await self._declarations.one(flow)
        if declared is None:
            remedy = "No engine has declared it: `engine flows ls` lists those that did. Does one run with its handler?"
            raise NotFound("flow", flow, remedy)
        request_id = request_id or uuid.uuid4().hex
        bound = parameters_of(declared, parameters or {}, data, request_id, _STARTED)
        change = start(self._settings.app, flow, bound, key, request_id, time.time())
        await self._schedule([(change, None)])
        return change.run_id

    async def declarations(self) -> dict[str, Declaration]:
        """All flows that engines have declared, by name."""
        return await self._declarations.all()

    # --- Events and dead letters -----------------------------------------------------------------------------------------

    async def send_event(
        self,
        topic: str,
        data: bytes,
        *,
        type: str = "",
        source: str = "",
        id: str | None = None,
        key: str | None = None,
        content_type: str = "application/json",
    ) -> Position:
        """Send one event; without a type it is a bare record. Answers where it lies. Raises TopicError, RecordTooLarge."""
        template = Template(topic=topic, type=type or None, source=source or SOURCE, key=key)
        record = template.of_data(data, id)
        if content_type != "application/json":
            kept = tuple(header for header in record.headers if header[0] != "content-type")
            record = msgspec.structs.replace(record, headers=(*kept, ("content-type", content_type.encode())))
        [position] = await self._sink.write([record])
        return position

    async def replay(
        self, ids: Sequence[str], *, value: bytes | None = None, flow: str | None = None, replay_id: str | None = None
    ) -> list[Replayed]:
        """Have dead letters taken in once more. Raises UsageError or NotFound."""
        entries = await self.desk.chosen(ids, with_past=replay_id is None)
        return await self.desk.replay(entries, flow=flow, value=value, replay_id=replay_id)

    async def drop(self, ids: Sequence[str]) -> None:
        """Mark dead letters as done with. Raises UsageError or NotFound."""
        await self.desk.drop(await self.desk.chosen(ids, with_past=False))

    # --- Small parts ----------------------------------------------------------------------------------------------------

    def _remedy(self) -> str:
        app = self._settings.app
        return f"Its changes may have expired, the history may have forgotten it, or it is of another app than {app} (--app)."

    def _cancellation(self, run_id: str, key: str | None, partition: int, reason: str) -> Outgoing:
        asked = Cancellation(run_id, utc(time.time()), reason[:MAX_REASON] or CANCELLED)
        value, headers = write_cancellation(self._settings.app, asked)
        # Beside the SCHEDULED, so that the owner of the run reads it.
        return Outgoing(self._settings.states_topic, (run_id if key is None else key).encode(), value, headers, partition)

    async def _schedule(self, changes: Sequence[tuple[StateChange, Story | None]]) -> None:
        """Each in a trace of its own with a link to the old one, and sampled where that was.

        So the engine's spans are there even where this process has no endpoint to send its own to.
        """
        settings, started_at = self._settings, time.time()
        sends: list[tuple[str, StateChange, str | None]] = []
        for change, story in changes:
            before = story.scheduled if story is not None else None
            old = valid_traceparent(before.traceparent if before is not None else None)
            context = self._tracer.begin(None, Position(settings.states_topic, 0, 0))
            if is_sampled(old):
                context = f"{context[:-2]}01"
            sends.append((child_of(context, change.run_id, 0, 0, "send"), change, old))
        await self._sink.write([write_scheduled(settings, change, send) for send, change, _ in sends])
        for send, change, old in sends:
            self._tracer.send(send, None, change, settings.states_topic, started_at, time.time(), old)
