"""engine.letter_desk: a list that is looked at again has what has come since, and what became of each."""

from __future__ import annotations

from engine.broker import TopicSpec
from engine.dead_letters import Details, Mark, Marked, write_letter, write_mark
from engine.events import Position
from engine.letter_desk import LetterDesk
from engine.letter_lists import Filter, LetterList, Status
from engine.memory import MemoryBroker
from engine.settings import Settings


async def test_a_list_is_read_on_from_where_it_was() -> None:
    settings, broker = Settings(app="app"), MemoryBroker()
    topic = settings.dead_letters_topic
    await broker.ensure_topics([TopicSpec(topic, 2)])
    sink = broker.sink()
    await sink.start()
    desk, read = LetterDesk(settings, broker, sink), LetterList()

    async def write(offset: int, key: bytes) -> Details:
        details = Details(reason="malformed-data", origin=Position("orders", 0, offset))
        await sink.write([write_letter(topic, details, key, b"{", (), 1_000_000)])
        return details

    async def listed() -> list[tuple[str, Status, int]]:
        return [(one.letter.id, one.status, one.replays) for one in await desk.entries(Filter(), read)]

    assert await listed() == []
    first = await write(0, b"a")
    [(letter_id, status, _)] = await listed()
    assert status is Status.OPEN
    for number in range(1, 8):  # in both partitions
        await write(number, b"%d" % number)
    await sink.write([write_mark(topic, Mark(Marked.REPLAYED, letter_id, first.identity, "2026-01-01", "replay-1"))])
    assert sorted(await listed()) == sorted(
        (one.letter.id, one.status, one.replays) for one in await desk.entries(Filter(), LetterList())
    )
    assert {one[0].partition("/")[0] for one in await listed()} == {"0", "1"}
    assert (letter_id, Status.REPLAYED, 1) in await listed()
    assert len(await listed()) == 8
    await sink.close()
