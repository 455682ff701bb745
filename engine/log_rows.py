"""Log rows: what the history keeps of a record of the log topic, and the lines that it gives back; does no I/O.

A row is a record as it lies on the topic, found by its run's id. It hangs on no row of ``runs``: the topics are read side by
side, and lines may be there before their run is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from engine.run_logs import LEVELS, LogBatch, decode_batch
from engine.task_rows import name_of

#: Lines of one record that can be told apart: a line's ``seq`` is its record's place and its number there.
_LINE_BITS = 12
_RANKS = {level: rank for rank, level in enumerate(LEVELS)}
#: Records read in one go.
_PAGE = 64

#: (place, run id, seconds since the epoch, name of the task run, lines, size, content)
LogsRow = tuple[int, str, float, str | None, int, int, bytes]
#: Runs a query with its values and answers all rows.
Query = Callable[[str, Sequence[Any]], list[Any]]


class LogRow(msgspec.Struct, frozen=True, gc=False):
    """One log line of a run; ``name`` is that of the task run, None where the flow's own code has said it."""

    run_id: str
    #: Grows along the lines of a run, with gaps.
    seq: int
    at: float
    level: str
    logger: str
    name: str | None
    attempt: int
    message: str
    trace_id: str


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines of a run are wanted."""

    #: A task (``price``) or a task run (``price/0.3``).
    task: str | None = None
    #: The least level, one of ``engine.run_logs.LEVELS``.
    level: str | None = None
    #: The last ones rather than the first.
    latest: bool = False

    def takes(self, line: LogRow) -> bool:
        """Whether a line is of that task and level."""
        name = line.name or ""
        of_task = self.task is None or name == self.task or name.startswith(f"{self.task}/")
        # A level of another version is worth a look.
        return of_task and _RANKS.get(line.level, len(_RANKS)) >= _RANKS.get(self.level or "", 0)


#: All of them, the first ones first.
ALL_LINES = LogFilter()


def row_of(place: int, at: float, batch: LogBatch, content: bytes) -> LogsRow:
    """The row of a record at ``place`` (engine.history_schema)."""
    return place, batch.run_id, at, _name_of(batch), len(batch.lines), len(content), content


def lines_of(place: int, content: bytes) -> list[LogRow]:
    """The lines of a row."""
    batch = decode_batch(content)
    run_id, name, attempt, trace_id = batch.run_id, _name_of(batch), batch.attempt, batch.trace_id
    seqs = range(place << _LINE_BITS, (place + 1) << _LINE_BITS)
    return [
        LogRow(run_id, seq, line.at.timestamp(), line.level, line.logger, name, attempt, line.message, trace_id)
        for seq, line in zip(seqs, batch.lines, strict=False)
    ]


def select(query: Query, run_id: str, after: int | None, limit: int, wanted: LogFilter) -> list[LogRow]:
    """Lines of a run in their order: the first ``limit`` of those behind ``after``, or the latest."""
    latest = wanted.latest
    found: list[LogRow] = []
    first = -1 if after is None else after >> _LINE_BITS
    last = 1 << 62
    order, bound = ("DESC", "place < ?") if latest else ("ASC", "place >= ?")
    while len(found) < limit:
        at = last if latest else first
        rows = query(
            f"SELECT place, content FROM logs WHERE run_id = ? AND {bound} AND place >= ? ORDER BY place {order} LIMIT ?",  # noqa: S608
            [run_id, at, first, _PAGE],
        )
        for place, content in rows:
            lines = [line for line in lines_of(place, content) if after is None or line.seq > after]
            found += [line for line in (reversed(lines) if latest else lines) if wanted.takes(line)]
        if len(rows) < _PAGE:
            break
        last, first = (rows[-1][0], first) if latest else (last, rows[-1][0] + 1)
    found = found[:limit]
    return found[::-1] if latest else found


def _name_of(batch: LogBatch) -> str | None:
    return None if batch.task_run_id is None else name_of(batch.run_id, batch.task_run_id)
