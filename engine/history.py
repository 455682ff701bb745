"""The history, read: runs with filters and pages, one run whole, events, dead letters, workers, flows, counts; writes nothing.

All of it blocks, for milliseconds: a server calls it from a thread. Lists go from the newest to the oldest; a cursor is text to
be handed back as it is, and stays good while rows come and go.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.declarations import Declaration, read_declaration
from engine.errors import EventError
from engine.events import Position, Reason
from engine.history_database import ReadDatabase, Version
from engine.history_opener import reading
from engine.history_queries import EVENTS_OF_LETTERS, EVENTS_OF_RUNS, LETTERS, LIES
from engine.history_rows import Change, EventRow, FlowRow, LetterLine, Page, RunFilter, WorkerRow
from engine.history_schema import MINUTE, RUN_KNOWN, LetterRow, Offsets, Progress, RunRow, TaskRow
from engine.letter_lists import Status
from engine.log_rows import ALL_LINES, LogFilter, LogRow, select
from engine.states import State

__all__ = ["History", "cursor_of", "Change", "EventRow", "FlowRow", "LetterLine", "Page", "RunFilter", "WorkerRow"]


class History:
    """Queries on one history database; a context manager, which closes it."""

    #: Dead letters that one page of the open ones goes through.
    LOOKED_AT = 10_000

    def __init__(self, database: ReadDatabase) -> None:
        self._db = database

    @classmethod
    def open(cls, place: str) -> History:
        """Open a database that a projector has made. Raises HistoryUnavailable, HistoryUnreadable."""
        return cls(reading(place))

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything."""
        self._db.close()

    def is_current(self) -> bool:
        """Whether this is still a connection to what lies at the place."""
        return self._db.is_current()

    def runs(self, wanted: RunFilter = RunFilter(), *, cursor: str | None = None, limit: int = 50) -> Page[RunRow]:  # noqa: B008  # frozen
        """Runs that a filter wants, without their payloads. Raises EventError for a cursor that is none."""
        tests: list[str] = []
        values: list[Any] = []
        for test, value in (
            ("scheduled_at >= ?", wanted.since),
            ("scheduled_at < ?", wanted.until),
            ("run_key = ?", wanted.key),
        ):
            if value is not None:
                tests.append(test)
                values.append(value)
        if cursor is not None:
            tests.append("(scheduled_at, place) < (?, ?)")
            values += _from_cursor(cursor)
        # A query for each pair, each along its own index, then the newest of all of them.
        flows: list[list[str]] = [[flow] for flow in wanted.flows] or [[]]
        states: list[list[str]] = [[state.value] for state in wanted.states] or [[]]
        found: list[RunRow] = []
        for flow, state in itertools.product(flows, states):
            where = [*tests, *(["flow = ?"] if flow else []), *(["state = ?"] if state else [])]
            query = f"SELECT {', '.join(RUN_KNOWN)} FROM runs{' WHERE ' if where else ''}{' AND '.join(where)}"  # noqa: S608
            query += " ORDER BY scheduled_at DESC, place DESC LIMIT ?"
            found += self._runs(query, [*values, *flow, *state, limit + 1])
        found.sort(key=lambda run: (run.scheduled_at, run.place), reverse=True)
        more = len(found) > limit
        found = found[:limit]
        return Page(found, cursor_of(found[-1]) if more and found else None)

    def run(self, run_id: str) -> RunRow | None:
        """One run with its payloads, by its whole id or a beginning of it that no other has; None where there is none."""
        top = run_id + "\U0010ffff"
        query = f"SELECT {', '.join(RunRow.__struct_fields__)} FROM runs WHERE run_id >= ? AND run_id < ? LIMIT 2"  # noqa: S608
        rows = [RunRow(*row) for row in self._all(query, [run_id, top])]
        exact = [row for row in rows if row.run_id == run_id]
        return exact[0] if exact else rows[0] if len(rows) == 1 else None

    def runs_like(self, beginning: str, *, limit: int = 50) -> list[RunRow]:
        """Runs whose ids begin so, without their payloads, in the order of their ids."""
        query = f"SELECT {', '.join(RUN_KNOWN)} FROM runs WHERE run_id >= ? AND run_id < ? ORDER BY run_id LIMIT ?"  # noqa: S608
        return self._runs(query, [beginning, beginning + "\U0010ffff", limit])

    def task_runs(self, run: RunRow, *, limit: int = 1_000, after: str = "", states: Sequence[State] = ()) -> list[TaskRow]:
        """Task runs of a run in the order of their names, behind ``after``; ``task_rows.attempts_of`` reads the attempts."""
        some = f" AND state IN ({', '.join('?' * len(states))})" if states else ""
        query = (
            f"SELECT {', '.join(TaskRow.__struct_fields__)} FROM task_runs"  # noqa: S608
            f" WHERE place = ? AND name > ?{some} ORDER BY name LIMIT ?"
        )
        return [TaskRow(*row) for row in self._all(query, [run.place, after, *states, limit])]

    def task_run(self, run: RunRow, name: str) -> TaskRow | None:
        """One task run by its name."""
        query = f"SELECT {', '.join(TaskRow.__struct_fields__)} FROM task_runs WHERE place = ? AND name = ?"  # noqa: S608
        return next((TaskRow(*row) for row in self._all(query, [run.place, name])), None)

    def task_names(self, run: RunRow, *, limit: int = 200) -> list[str]:
        """The names of the tasks of a run, in their order; costs a look-up for each, however many task runs there are."""
        names: list[str] = []
        query, behind = "SELECT task, name FROM task_runs WHERE place = ? AND name > ? ORDER BY name LIMIT 1", ""
        while len(names) < limit and (found := self._all(query, [run.place, behind])):
            [(task, name)] = found
            names.append(task)
            # The name of a task run is task/index: this is right behind all of them.
            behind = max(name, f"{task}0")
        return names

    def task_counts(self, run: RunRow) -> dict[str, dict[str, int]]:
        """How many runs of each task are in each state, the tasks in the order in which they were first scheduled."""
        counts: dict[str, dict[str, int]] = {}
        query = (
            "SELECT task, state, count(*), min(coalesce(scheduled_at, started_at)) AS first FROM task_runs"
            " WHERE place = ? GROUP BY task, state"
        )
        found = self._all(query, [run.place])
        firsts: dict[str, float] = {}
        for task, _, _, first in found:
            firsts[task] = min(firsts.get(task, float("inf")), float("inf") if first is None else first)
        for task, state, count, _ in sorted(found, key=lambda row: (firsts[row[0]], row[0], row[1])):
            counts.setdefault(task, {})[state] = count
        return counts

    def changes(self, run: RunRow, *, after: int = -1, limit: int = 1_000) -> list[Change]:
        """State changes of a run in their order, behind the seq ``after``."""
        query = (
            "SELECT seq, epoch, at, state, attempt, name, worker, text FROM changes"
            " WHERE place = ? AND seq > ? ORDER BY seq LIMIT ?"
        )
        return [Change(*row) for row in self._all(query, [run.place, after, limit])]

    def logs(self, run_id: str, *, after: int | None = None, limit: int = 1_000, wanted: LogFilter = ALL_LINES) -> list[LogRow]:
        """Log lines of a run in their order: the first ones behind the seq ``after``, or the latest (``wanted.latest``)."""
        return select(self._all, run_id, after, limit, wanted)

    def repeats(self, run_id: str) -> list[RunRow]:
        """The runs that repeat this one."""
        return self._runs(f"SELECT {', '.join(RUN_KNOWN)} FROM runs WHERE repeats = ? ORDER BY place", [run_id])  # noqa: S608

    def events(self, *, cursor: str | None = None, limit: int = 50) -> Page[EventRow]:
        """Events that made runs or dead letters, each once, at the time when it was last taken in."""
        before = _from_cursor(cursor) if cursor is not None else [float("inf"), 0]
        # Of those of one moment, which a cursor cannot part, all go on one page; a hundred more at most.
        most = limit + 100
        found = self._all(EVENTS_OF_RUNS, [before[0], most])
        is_cut = len(found) == most
        # Those before all of these runs are of a later page; and most of them may be of runs, which it takes a look to know.
        found += self._all(EVENTS_OF_LETTERS, [before[0], found[-1][0] if is_cut else float("-inf"), most])
        found.sort(key=lambda row: (-row[0], row[1:]))
        shown = found[:limit]
        while len(shown) < len(found) and found[len(shown)][0] == shown[-1][0]:
            shown.append(found[len(shown)])
        events = [self._event(at, Position(topic, partition, offset)) for at, topic, partition, offset in shown]
        return Page(events, f"{shown[-1][0]!r},0" if is_cut or len(shown) < len(found) else None)

    def event(self, position: Position) -> EventRow | None:
        """One event by where it lies; None where neither a run nor a dead letter speaks of it."""
        made = self._event(0.0, position)
        times = [run.scheduled_at for run in made.runs] or [letter.at for letter in made.letters]
        return msgspec.structs.replace(made, at=max(times)) if times else None

    def positions_of(self, event_id: str, source: str | None = None) -> list[Position]:
        """Where events of an id lie, of one source or of all; several where producers sent it more than once."""
        where = "event_id = ? AND event_topic IS NOT NULL" + ("" if source is None else " AND event_source = ?")
        query = f"SELECT DISTINCT event_topic, event_partition, event_offset FROM runs WHERE {where}"  # noqa: S608
        return [Position(*row) for row in self._all(query, [event_id] if source is None else [event_id, source])]

    def letters(
        self, *, all: bool = False, reasons: Sequence[str] = (), cursor: str | None = None, limit: int = 50
    ) -> Page[LetterLine]:
        """Dead letters of some reasons, or of any, the newest first: the open ones, or with ``all`` those dealt with, too.

        A page looks at so many of them at most (``LOOKED_AT``): one behind which there are more may be short, or empty.
        """
        before = _from_cursor(cursor) if cursor is not None else [float("inf"), 0]
        end = [0.0, 0]
        if reasons or not all:
            query = f"SELECT at, {LIES} FROM letters l WHERE (at, {LIES}) < (?, ?) ORDER BY 1 DESC, 2 DESC LIMIT 1 OFFSET ?"  # noqa: S608
            [end] = self._all(query, [*before, self.LOOKED_AT - 1]) or [end]
        query = f"{LETTERS} WHERE (l.at, {LIES}) < (?, ?) AND (l.at, {LIES}) >= (?, ?)"
        if not all:
            query += (
                " AND NOT EXISTS (SELECT 1 FROM marks m WHERE m.identity = l.identity) AND NOT EXISTS (SELECT 1 FROM letters e"
                " WHERE e.identity = l.identity AND (e.at, e.partition, e.place) < (l.at, l.partition, l.place))"
            )
        query += f" AND l.reason IN ({', '.join('?' * len(reasons))})" if reasons else ""
        rows = self._all(f"{query} ORDER BY l.at DESC, lies DESC LIMIT ?", [*before, *end, *reasons, limit + 1])
        lines = [_line(row) for row in rows[:limit]]
        if len(rows) > limit:
            return Page(lines, f"{lines[-1].row.at!r},{rows[limit - 1][-1]}")
        return Page(lines, f"{end[0]!r},{end[1]}" if end[0] else None)

    def letter(self, partition: int, offset: int) -> LetterLine | None:
        """One dead letter by where it lies; None where there is none."""
        rows = self._all(f"{LETTERS} WHERE l.partition = ? AND l.place = ?", [partition, offset])
        return _line(rows[0]) if rows else None

    def letter_places(self, identity: str) -> list[tuple[int, int]]:
        """Where all copies of one letter and all marks on them lie: partitions and offsets."""
        queries = (f"SELECT partition, place FROM {table} WHERE identity = ?" for table in ("letters", "marks"))  # noqa: S608
        return [place for query in queries for place in self._all(query, [identity])]

    def flows(self, *, last: int = 200) -> list[FlowRow]:
        """Each flow by its last runs."""
        return [self.flow(name, last=last) for name in self.flow_names()]

    def flow(self, flow: str, *, last: int = 200) -> FlowRow:
        """A flow by its last runs."""
        query = (
            # The + keeps SQLite from the index of all that have ended: that of the flow has all that is asked for.
            "SELECT state, ended_at - coalesce(started_at, scheduled_at) FROM runs"
            " WHERE flow = ? AND +ended_at IS NOT NULL ORDER BY scheduled_at DESC LIMIT ?"
        )
        ended: list[tuple[str, float]] = self._all(query, [flow, last])
        return FlowRow.of(flow, ended)

    def flow_names(self) -> list[str]:
        """The names of all flows that have runs."""
        names = self._all(
            "WITH RECURSIVE names (flow) AS (SELECT min(flow) FROM runs UNION ALL"
            " SELECT (SELECT min(flow) FROM runs WHERE flow > names.flow) FROM names WHERE flow IS NOT NULL)"
            " SELECT flow FROM names WHERE flow IS NOT NULL",
            [],
        )
        return [name for (name,) in names]

    def workers(self, since: float) -> list[WorkerRow]:
        """Workers seen since then, to the hour."""
        query = (
            "SELECT worker, CAST(sum(attempts) AS BIGINT), min(first_at), max(last_at) FROM worker_hours WHERE hour >= ?"
            " GROUP BY worker ORDER BY max(last_at) DESC"
        )
        return [WorkerRow(*row) for row in self._all(query, [since - since % 3_600])]

    def minutes(self, now: float, *, minutes: int = 60) -> list[tuple[int, str, int]]:
        """How many flow runs entered each state in each minute of the last hour: minute (seconds), state, count; gaps are 0."""
        begin = (int(now // MINUTE) - minutes + 1) * MINUTE
        query = (
            "SELECT minute, state, CAST(sum(count) AS BIGINT) FROM minutes WHERE minute >= ?"
            " GROUP BY minute, state ORDER BY minute, state"
        )
        return list(self._all(query, [begin]))

    def open_runs(self) -> tuple[dict[str, int], RunRow | None]:
        """How many runs are in each state that is not an end, and the oldest of them."""
        counts: dict[str, int] = {}
        oldest: list[RunRow | None] = []
        for state in (state for state in State if not state.is_end):
            counts[state.value] = self._all("SELECT count(*) FROM runs WHERE state = ?", [state])[0][0]
            oldest.append(self.oldest(state))
        return counts, min(filter(None, oldest), key=lambda run: run.scheduled_at, default=None)

    def oldest(self, state: State) -> RunRow | None:
        """The run that was scheduled first of those in a state."""
        query = f"SELECT {', '.join(RUN_KNOWN)} FROM runs WHERE state = ? ORDER BY scheduled_at LIMIT 1"  # noqa: S608
        return next(iter(self._runs(query, [state])), None)

    def version(self) -> Version:
        """Another one each time somebody else has written to the database."""
        return self._db.version()

    def offsets(self) -> dict[tuple[str, int], int]:
        """How far each partition was read: the next offset. Against the ends of the topics it is the projector's lag."""
        return {(topic, n): offset for topic, n, offset in self._all("SELECT topic, partition, next_offset FROM offsets", [])}

    def progress(self) -> Offsets:
        """The same with the epoch that each partition was in."""
        rows = self._all("SELECT topic, partition, next_offset, epoch FROM offsets", [])
        return {(topic, n): Progress(offset, epoch) for topic, n, offset, epoch in rows}

    def declarations(self) -> list[Declaration]:
        """The flows as running engines have declared them, in the order of their names."""
        return [read_declaration(found) for (found,) in self._all("SELECT declaration FROM flows ORDER BY name", [])]

    def _event(self, at: float, position: Position) -> EventRow:
        where = "WHERE event_topic = ? AND event_partition = ? AND event_offset = ? ORDER BY place LIMIT 100"
        given = [position.topic, position.partition, position.offset]
        runs = self._runs(f"SELECT {', '.join(RUN_KNOWN)} FROM runs {where}", given)  # noqa: S608
        query = f"SELECT {', '.join(LetterRow.__struct_fields__)} FROM letters {where}"  # noqa: S608
        letters = [LetterRow(*row) for row in self._all(query, given)]
        first: RunRow | LetterRow | None = runs[0] if runs else letters[0] if letters else None
        source, event_id, kind = (None,) * 3 if first is None else (first.event_source, first.event_id, first.event_type)
        return EventRow(at, position.topic, position.partition, position.offset, source, event_id, kind, runs, letters)

    def _runs(self, query: str, values: Sequence[Any]) -> list[RunRow]:
        return [RunRow(**dict(zip(RUN_KNOWN, row, strict=True))) for row in self._all(query, values)]

    def _all(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._db.all(query, values)
        except (UnicodeEncodeError, OverflowError):
            return []  # No row is like a text or a number that no database can hold.


def _line(row: Sequence[Any]) -> LetterLine:
    return LetterLine(LetterRow(*row[:-4]), Status.REPEAT if row[-2] else Status(row[-4] or Status.OPEN), row[-3])


def cursor_of(run: RunRow) -> str:
    """The cursor with which a list of runs goes on behind this one."""
    return f"{run.scheduled_at!r},{run.place}"


def _from_cursor(cursor: str) -> list[Any]:
    at, _, place = cursor.partition(",")
    try:
        return [float(at), int(place)]
    except ValueError as error:
        raise EventError(Reason.MALFORMED_DATA, f"{cursor[:100]!r} is no cursor of a list") from error
