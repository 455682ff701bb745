"""The letter finder: letters by where they lie, and what became of them, by single records or from the whole topic.

What became of a letter is what marks say, of it or of another copy of it; copies and their marks may lie in any partition, and
a copy may be much older than another. So nothing less than the whole topic tells, but where a history has gone through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing

import msgspec

from engine.broker import Broker, Reader, Record
from engine.command_errors import NotFound, UsageError
from engine.dead_letters import Letter, read_letter
from engine.history_errors import HistoryUnavailable, HistoryUnreadable
from engine.letter_lists import Entry, LetterList, entry_of
from engine.logs import logger
from engine.run_finder import Histories
from engine.settings import Settings
from engine.snapshots import snapshot

#: Records that are fetched in one go.
_BATCH = 200
#: No offset has more digits.
_MOST_DIGITS = 18

#: Where a record lies: partition and offset.
_Place = tuple[int, int]


class _Seen(msgspec.Struct, frozen=True):
    """What the history says."""

    #: Where it has not read yet, by partition.
    nexts: dict[int, int]
    #: Copies of the letters and marks on them, before that.
    places: set[_Place]


class LetterFinder:
    """Finds dead letters of one app."""

    def __init__(self, settings: Settings, broker: Broker, histories: Histories | None = None) -> None:
        self._settings, self._broker, self._topic = settings, broker, settings.dead_letters_topic
        # A history forgets marks. Outside the window that is as good as if Kafka had: their replays run again.
        is_enough = settings.history_retention_seconds >= settings.dedup_window_seconds
        self._histories = histories if is_enough else None

    async def find(self, letter_ids: Sequence[str], *, with_past: bool) -> list[Entry]:
        """The letters of these ids, each once; without ``with_past`` each as if nothing had become of it yet.

        Raises UsageError, NotFound, KafkaUnavailable, or TopicError.
        """
        places = list(dict.fromkeys(_place(letter_id) for letter_id in letter_ids))
        reader = self._broker.reader()
        try:
            found: dict[_Place, Entry] = {}
            async for record in self._read(reader, places):
                letter = read_letter(record)
                if isinstance(letter, Letter):
                    found[record.partition, record.offset] = entry_of(letter)
            for partition, offset in places:
                if (partition, offset) not in found:
                    remedy = f"It may have expired, or it belongs to another app than {self._settings.app} (--app)."
                    raise NotFound(
                        "dead letter", f"{partition}/{offset}", f"{remedy} `engine dead-letters ls --all` lists them."
                    )
            entries = [found[place] for place in places]
            return await self._with_past(reader, entries) if with_past else entries
        finally:
            await reader.close()

    async def _with_past(self, reader: Reader, entries: Sequence[Entry]) -> list[Entry]:
        seen = await self._look(entries)
        told = LetterList({entry.letter.details.identity for entry in entries})
        if seen is not None:
            async for record in self._read(reader, seen.places):
                told.add(record)
        # After the look: what the history took in meanwhile is read here, too.
        async with aclosing(snapshot(self._broker, self._topic, starts=None if seen is None else seen.nexts)) as records:
            async for record in records:
                told.add(record)
        now = {entry.letter.id: entry for entry in told.entries()}
        for entry in entries:
            if entry.letter.id not in now:
                raise NotFound("dead letter", entry.letter.id, "It expired just now.")
        return [now[entry.letter.id] for entry in entries]

    async def _read(self, reader: Reader, places: Iterable[_Place]) -> AsyncIterator[Record]:
        wanted: dict[int, list[int]] = {}
        for partition, offset in sorted(places):
            wanted.setdefault(partition, []).append(offset)
        for partition, offsets in wanted.items():
            for begin in range(0, len(offsets), _BATCH):
                found = await reader.read((self._topic, partition), offsets[begin : begin + _BATCH])
                for record in found.values():
                    yield record

    async def _look(self, entries: Sequence[Entry]) -> _Seen | None:
        """None where the history does not know all that it has read of these letters."""
        histories = self._histories
        if histories is None:
            return None

        def look() -> tuple[Mapping[int, int], dict[str, set[_Place]]]:
            with histories() as history:
                # First how far it is: what it takes in after this we shall read ourselves.
                nexts = {n: known.next_offset for (topic, n), known in history.progress().items() if topic == self._topic}
                identities = {entry.letter.details.identity for entry in entries}
                return nexts, {identity: set(history.letter_places(identity)) for identity in identities}

        try:
            nexts, told = await asyncio.to_thread(look)
        except (HistoryUnavailable, HistoryUnreadable) as error:
            # The topic has it all; only it takes longer.
            logger.warning("without the history the whole dead-letter topic is read", error=str(error))
            return None
        places: set[_Place] = set()
        for entry in entries:
            record = entry.letter.record
            known = told[entry.letter.details.identity]
            # Marks lie behind their letters, and it forgets by age: while it has a letter it has the marks on it, too.
            if record.offset < nexts.get(record.partition, 0) and (record.partition, record.offset) not in known:
                return None
            places |= {(n, offset) for n, offset in known if offset < nexts.get(n, 0)}
        return _Seen(dict(nexts), places)


def _place(letter_id: str) -> _Place:
    partition, separator, offset = letter_id.partition("/")
    if not (separator and _is_number(partition) and _is_number(offset)):
        raise UsageError(letter_id[:100], "is not the id of a dead letter", "It is partition/offset, e.g. 0/17.")
    return int(partition), int(offset)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
