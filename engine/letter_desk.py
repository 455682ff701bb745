"""The letter desk: lists, shows, drops and replays the dead letters of an app; it writes marks and replays alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from engine.broker import Broker, Sink
from engine.command_errors import NotFound, UsageError
from engine.dead_letters import Content, Letter, Mark, Marked, Replay, read_letter, replay_id_of, write_mark, write_replay
from engine.letter_finder import LetterFinder
from engine.letter_lists import Entry, Filter, LetterList
from engine.origins import fetch
from engine.run_finder import Histories
from engine.settings import Settings
from engine.snapshots import snapshot
from engine.states import utc
from engine.stops import write_resumed

#: Letters that are fetched and replayed in one go.
_BATCH = 200


class Replayed(msgspec.Struct, frozen=True):
    """A letter that was replayed, and the id of the replay."""

    letter: str
    replay: str


class LetterDesk:
    """For one command. ``sink`` has started where anything is to be written."""

    def __init__(self, settings: Settings, broker: Broker, sink: Sink, histories: Histories | None = None) -> None:
        """``histories`` gives an open history, whose context lets it go; without it the whole topic is read more often."""
        self._settings = settings
        self._topic = settings.dead_letters_topic
        self._broker = broker
        self._sink = sink
        self._finder = LetterFinder(settings, broker, histories)

    async def entries(self, wanted: Filter, read: LetterList | None = None) -> list[Entry]:
        """The letters that a filter chooses, the oldest first; ``read`` has what was read before for the same filter.

        Raises KafkaUnavailable or TopicError.
        """
        found = LetterList() if read is None else read
        since_ms = 0 if wanted.since is None else int(wanted.since.timestamp() * 1000)
        async for record in snapshot(self._broker, self._topic, since_ms, starts=dict(found.nexts)):
            found.add(record)
        return [entry for entry in found.entries() if wanted.admits(entry)]

    async def chosen(self, letter_ids: Sequence[str], *, with_past: bool = True) -> list[Entry]:
        """The letters of these ids. Raises UsageError or NotFound.

        ``with_past`` is what it may take long to find out: what became of them, and how often they were replayed. Only a
        replay that is to get an id needs it.
        """
        return await self._finder.find(letter_ids, with_past=with_past)

    async def whole(self, entries: Sequence[Entry]) -> list[Letter]:
        """The letters with the whole of their values."""
        wanted: dict[tuple[str, int], set[int]] = {}
        for entry in entries:
            record = entry.letter.record
            if not entry.is_whole:
                wanted.setdefault((record.topic, record.partition), set()).add(record.offset)
        found = await fetch(self._broker, wanted) if wanted else {}
        letters: list[Letter] = []
        for entry in entries:
            whole = entry.letter.record if entry.is_whole else found.get(entry.letter.record.position)
            letter = None if whole is None else read_letter(whole)
            if not isinstance(letter, Letter):
                raise NotFound("dead letter", entry.letter.id, "It expired just now.")
            letters.append(letter)
        return letters

    async def drop(self, entries: Sequence[Entry]) -> None:
        """Mark letters as dropped. Twice does no harm."""
        at = utc(time.time()).isoformat()
        for start in range(0, len(entries), _BATCH):
            letters = [entry.letter for entry in entries[start : start + _BATCH]]
            marks = [Mark(Marked.DROPPED, letter.id, letter.details.identity, at) for letter in letters]
            await self._sink.write([write_mark(self._topic, mark) for mark in marks])

    async def replay(
        self, entries: Sequence[Entry], *, flow: str | None = None, value: bytes | None = None, replay_id: str | None = None
    ) -> list[Replayed]:
        """Send letters to be taken in once more, then mark them.

        The same command, repeated after a crash, sends the same replays: their ids follow from the letter, from how often it
        was replayed, from the flow and the edited value. Raises UsageError for a letter without the value it needs.
        """
        if value is None:
            for entry in entries:
                _check_value(entry)
        done: list[Replayed] = []
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            letters = await self.whole(batch)
            asked = [
                _replay(letter, replay_id or replay_id_of(letter.details.identity, entry.replays, flow, value), flow)
                for letter, entry in zip(letters, batch, strict=True)
            ]
            records = [
                write_replay(
                    self._settings.replays_topic, replay, letter.record.key, letter.record.value if value is None else value
                )
                for letter, replay in zip(letters, asked, strict=True)
            ]
            # First the replays, then the marks: a crash in between shows the letter still open, and replaying it again is
            # the same replay.
            await self._sink.write(records)
            at = utc(time.time()).isoformat()
            marks = [
                Mark(Marked.REPLAYED, letter.id, letter.details.identity, at, replay.id)
                for letter, replay in zip(letters, asked, strict=True)
            ]
            await self._sink.write([write_mark(self._topic, mark) for mark in marks])
            done += [Replayed(letter.id, replay.id) for letter, replay in zip(letters, asked, strict=True)]
        return done

    async def resume(self, topic: str) -> None:
        """Let the intake go on with a topic that ``dead_letter_limit`` has stopped; else nothing happens."""
        await self._sink.write([write_resumed(topic, self._topic)])


def _replay(letter: Letter, replay_id: str, flow: str | None) -> Replay:
    details = letter.details
    return Replay(
        id=replay_id,
        origin=details.origin,
        event_at=details.event_at,
        flow=flow or details.flow,
        letter=letter.id,
        repeats=details.run_id,
        key=details.key,
        trace=details.trace,
        # An edited value takes the place of one that was too large: that was an event's.
        content=Content.EVENT if details.content is Content.ABSENT else details.content,
        headers=letter.headers,
    )


def _check_value(entry: Entry) -> None:
    if entry.letter.details.content is Content.ABSENT:
        cause = f"its value was too large for a letter; it lies at {entry.letter.details.origin} while that topic keeps it"
        raise UsageError(entry.letter.id, cause, "Replay it with a smaller one: --value FILE.")
