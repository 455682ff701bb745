"""History queries: the longer ones in SQL that SQLite and PostgreSQL both read, and by an index; pure, runs none of them."""

from __future__ import annotations

from engine.history_schema import LetterRow

_EVENT = ("event_topic", "event_partition", "event_offset")
_PLACE = ", ".join(_EVENT)


def _same(one: str, other: str) -> str:
    return " AND ".join(f"{one}.{name} = {other}.{name}" for name in _EVENT)


#: Where events lie of which runs were made before a time, at the last of such times; at most so many. PostgreSQL would join all
#: of a table to give some: with an offset it looks each one up, along the index of times.
EVENTS_OF_RUNS = (
    f"SELECT scheduled_at, {_PLACE} FROM runs r WHERE event_topic IS NOT NULL AND scheduled_at < ?"  # noqa: S608
    f" AND NOT EXISTS (SELECT 1 FROM runs o WHERE {_same('o', 'r')}"
    " AND (o.scheduled_at, o.place) > (r.scheduled_at, r.place) LIMIT 1 OFFSET 0) ORDER BY scheduled_at DESC LIMIT ?"
)
#: The same of those of which letters alone were made, before a time, and not before another.
EVENTS_OF_LETTERS = (
    f"SELECT at, {_PLACE} FROM letters l WHERE event_topic IS NOT NULL AND at < ? AND at >= ?"  # noqa: S608
    f" AND NOT EXISTS (SELECT 1 FROM runs r WHERE {_same('r', 'l')} LIMIT 1 OFFSET 0)"
    f" AND NOT EXISTS (SELECT 1 FROM letters o WHERE {_same('o', 'l')}"
    " AND (o.at, o.partition, o.place) > (l.at, l.partition, l.place) LIMIT 1 OFFSET 0) ORDER BY at DESC LIMIT ?"
)

#: The place of a letter in the list: its partition and its offset, of 48 bits.
LIES = f"l.partition * {1 << 48} + l.place"
#: Letters, then how the last mark has it, how often it was replayed, whether it is a copy, and its place in the list.
LETTERS = (
    f"SELECT {', '.join(f'l.{name}' for name in LetterRow.__struct_fields__)},"  # noqa: S608
    " (SELECT marked FROM marks m WHERE m.identity = l.identity ORDER BY m.at DESC, m.place DESC LIMIT 1),"
    " (SELECT count(DISTINCT replay) FROM marks m WHERE m.identity = l.identity AND m.marked = 'replayed'),"
    " EXISTS (SELECT 1 FROM letters e WHERE e.identity = l.identity"
    f" AND (e.at, e.partition, e.place) < (l.at, l.partition, l.place)), {LIES} AS lies"
    " FROM letters l"
)
