"""engine.letter_finder: what a history has read is not read again, and nothing that became of a letter is missed for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.broker import Outgoing, Record, TopicSpec
from engine.command_errors import NotFound, UsageError
from engine.dead_letters import Details, Mark, Marked, write_letter, write_mark
from engine.events import Position
from engine.history import History
from engine.history_store import HistoryStore
from engine.letter_desk import LetterDesk
from engine.letter_finder import LetterFinder
from engine.letter_lists import Entry, Filter, Status
from engine.memory import MemoryBroker
from engine.projection import read_all
from engine.projector import Projector
from engine.settings import Settings
from tests.source_reads import noted_reads

TOPIC = Settings(app="app").dead_letters_topic
SAME = Details(reason="run-failed", run_id="ab", flow="fulfil", at="2026-01-01T00:00:00+00:00")
OTHER = Details(reason="malformed-data", origin=Position("orders", 0, 7), at="2026-01-01T00:00:00+00:00")


def letter(details: Details, partition: int, value: bytes = b"v" * 300) -> Outgoing:
    written = write_letter(TOPIC, details, b"k", value, (), 1_000_000)
    return Outgoing(TOPIC, b"k", value, written.headers, partition)


def mark(details: Details, letter_id: str, marked: Marked, at: str, replay: str | None = None) -> Outgoing:
    return write_mark(TOPIC, Mark(marked, letter_id, details.identity, f"2026-01-02T00:00:0{at}+00:00", replay))


#: An engine that died after a letter, another one that wrote it again elsewhere, and what somebody did with both copies.
STEPS = [
    letter(OTHER, 1),  # 1/0
    letter(SAME, 1),  # 1/1
    mark(SAME, "1/1", Marked.REPLAYED, "1", "first"),  # 1/2
    mark(SAME, "1/1", Marked.REPLAYED, "2", "first"),  # 1/3, by a request that was repeated
    letter(SAME, 0),  # 0/0
    mark(SAME, "0/0", Marked.REPLAYED, "3", "second"),  # 0/1
    mark(OTHER, "1/0", Marked.DROPPED, "4"),  # 1/4
    mark(SAME, "1/1", Marked.DROPPED, "5"),  # 1/5
    letter(SAME, 2),  # 2/0
]
IDS = ["0/0", "1/0", "1/1", "2/0"]


class Shop:
    """A log, and a history that takes it in when a test wants it."""

    def __init__(self, folder: Path, **options: float) -> None:
        self.settings = Settings(app="app", **options)  # type: ignore[arg-type]
        self.broker = MemoryBroker()
        self.path = str(folder / "history.db")
        self.sink = self.broker.sink()

    async def start(self, partitions: int = 3) -> Shop:
        names = [self.settings.states_topic, self.settings.logs_topic, self.settings.replays_topic]
        await self.broker.ensure_topics([TopicSpec(TOPIC, partitions), *(TopicSpec(name, 1) for name in names)])
        await self.sink.start()
        return self

    async def project(self) -> None:
        projector = Projector(self.settings, self.broker, HistoryStore(self.path, "app"))
        await projector.catch_up()
        await projector.close()

    def forget(self, older_than: float) -> None:
        store = HistoryStore(self.path, "app")
        store.open()
        store.forget(time.time(), time.time() - older_than, 1_000, 0.0)
        store.close()

    def open(self) -> History:
        return History.open(self.path)

    @property
    def desk(self) -> LetterDesk:
        return LetterDesk(self.settings, self.broker, self.sink, self.open)


def said(entries: Sequence[Entry]) -> list[tuple[str, Status, int, int | None]]:
    return [(entry.letter.id, entry.status, entry.replays, entry.size) for entry in entries]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """What sources have handed out: single records do not come from them."""
    return noted_reads(monkeypatch)


@pytest.mark.parametrize("known", [None, *range(len(STEPS) + 1)])
async def test_however_far_the_history_is_it_is_told_what_the_whole_topic_says(
    tmp_path: Path, known: int | None, read: list[Record]
) -> None:
    shop = await Shop(tmp_path).start()
    for number, step in enumerate(STEPS):
        if number == known:
            await shop.project()
        await shop.sink.write([step])
    if known == len(STEPS):
        await shop.project()
    by_id = {entry.letter.id: entry for entry in await LetterDesk(shop.settings, shop.broker, shop.sink).entries(Filter())}
    whole = [by_id[letter_id] for letter_id in IDS]
    assert {entry.replays for entry in whole} == {0, 2}
    assert {entry.status for entry in whole} == {Status.DROPPED, Status.REPEAT}
    finder = LetterFinder(shop.settings, shop.broker, None if known is None else shop.open)
    read.clear()
    assert said(await finder.find(IDS, with_past=True)) == said(whole)
    assert len(read) == len(STEPS) - (known or 0)
    for letter_id, expected in zip(IDS, whole, strict=True):
        assert said(await finder.find([letter_id, letter_id], with_past=True)) == said([expected])


async def test_a_letter_is_dropped_or_sent_with_an_id_of_the_caller_by_its_record_alone(
    tmp_path: Path, read: list[Record]
) -> None:
    shop = await Shop(tmp_path).start()
    await shop.sink.write(STEPS)
    desk = LetterDesk(shop.settings, shop.broker, shop.sink)
    await desk.drop(await desk.chosen(["1/0"], with_past=False))
    [done] = await desk.replay(await desk.chosen(["2/0"], with_past=False), replay_id="mine")
    assert done.replay == "mine"
    assert read == []
    now = {entry.letter.id: entry for entry in await desk.entries(Filter())}
    assert (now["1/0"].status, now["2/0"].replays) == (Status.DROPPED, 3)
    replays = shop.broker.topic(shop.settings.replays_topic).logs[0]
    assert [record.value for record in replays] == [b"v" * 300], "the whole value, of which lists keep a part"


async def test_each_replay_of_a_letter_has_an_id_of_its_own_whichever_copy_is_named(tmp_path: Path) -> None:
    shop = await Shop(tmp_path).start()
    await shop.sink.write([letter(SAME, 1), letter(SAME, 0)])
    ids: list[str] = []
    for number, letter_id in enumerate(["0/0", "1/0", "1/0", "0/0"]):
        [done] = await shop.desk.replay(await shop.desk.chosen([letter_id]))
        ids.append(done.replay)
        if number % 2:
            await shop.project()
    assert len(set(ids)) == 4


async def test_a_command_that_is_repeated_before_its_mark_was_written_is_the_same_replay(tmp_path: Path) -> None:
    shop = await Shop(tmp_path).start()
    await shop.sink.write(STEPS)
    await shop.project()
    entries = [await shop.desk.chosen(["0/0"]) for _ in range(2)]
    # The first has died before its mark: the second has seen none.
    first, second = [await shop.desk.replay(chosen) for chosen in entries]
    assert first[0].replay == second[0].replay
    [third] = await shop.desk.replay(await shop.desk.chosen(["0/0"]))
    assert third.replay != first[0].replay


async def test_what_the_history_has_forgotten_is_read_from_the_topic(tmp_path: Path) -> None:
    shop = await Shop(tmp_path).start()
    await shop.sink.write(STEPS)
    await shop.project()
    shop.forget(time.time() + 60)
    [entry] = await LetterFinder(shop.settings, shop.broker, shop.open).find(["1/1"], with_past=True)
    assert entry.replays == 2


async def test_a_history_that_forgets_sooner_than_repeats_are_dropped_is_not_asked(tmp_path: Path, read: list[Record]) -> None:
    shop = await Shop(tmp_path, history_retention_seconds=60.0).start()
    await shop.sink.write(STEPS)
    await shop.project()
    read.clear()
    await LetterFinder(shop.settings, shop.broker, shop.open).find(["1/1"], with_past=True)
    assert len(read) == len(STEPS)


async def test_a_history_that_is_gone_makes_nobody_wait_but_longer(tmp_path: Path) -> None:
    shop = await Shop(tmp_path).start()
    await shop.sink.write(STEPS)
    [entry] = await LetterFinder(shop.settings, shop.broker, shop.open).find(["0/0"], with_past=True)
    assert entry.replays == 2


async def test_what_the_history_takes_in_while_it_is_asked_is_not_missed(tmp_path: Path) -> None:
    shop = await Shop(tmp_path).start()
    await shop.sink.write(STEPS[:4])
    await shop.project()
    await shop.sink.write(STEPS[4:])
    rest = [record for log in shop.broker.topic(TOPIC).logs for record in log if record.partition != 1 or record.offset > 3]

    class Busy(History):
        """The projector writes after the first question."""

        def letter_places(self, identity: str) -> list[tuple[int, int]]:
            store = HistoryStore(shop.path, "app")
            store.open()
            store.write(read_all(rest, shop.settings.states_topic), store.offsets())
            store.close()
            return super().letter_places(identity)

    [entry] = await LetterFinder(shop.settings, shop.broker, lambda: Busy.open(shop.path)).find(["1/1"], with_past=True)
    assert entry.replays == 2


@pytest.mark.parametrize("letter_id", ["1/2", "0/99", "3/0", f"{'9' * 18}/0", f"0/{'9' * 18}"])
@pytest.mark.parametrize("with_past", [True, False])
async def test_where_no_letter_lies_none_is_found(tmp_path: Path, letter_id: str, with_past: bool) -> None:
    shop = await Shop(tmp_path).start()
    await shop.sink.write(STEPS)
    with pytest.raises(NotFound, match="dead-letters ls --all"):
        await LetterFinder(shop.settings, shop.broker).find(["0/0", letter_id], with_past=with_past)


@pytest.mark.parametrize("letter_id", ["", "0", "0/", "/1", "0/x", "0/-1", "0/²", f"0/{'9' * 5_000}"])
async def test_what_is_no_id_is_refused(tmp_path: Path, letter_id: str) -> None:
    shop = await Shop(tmp_path).start()
    with pytest.raises(UsageError, match="partition/offset"):
        await LetterFinder(shop.settings, shop.broker).find([letter_id], with_past=False)


async def test_many_are_found_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    shop = await Shop(tmp_path).start()
    many = [Details(reason="malformed-data", origin=Position("orders", 0, number)) for number in range(450)]
    await shop.sink.write([letter(details, number % 3) for number, details in enumerate(many)])
    ids = [f"{number % 3}/{number // 3}" for number in reversed(range(450))]
    found = await LetterFinder(shop.settings, shop.broker).find(ids, with_past=True)
    assert [entry.letter.id for entry in found] == ids
    assert [entry.letter.details.origin.offset for entry in found if entry.letter.details.origin] == [*reversed(range(450))]
