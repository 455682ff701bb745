"""engine.dead_letters and engine.letter_lists: what is written is read, whatever a producer calls its headers."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.broker import Outgoing, Record
from engine.dead_letters import (
    Content,
    Details,
    Letter,
    Mark,
    Marked,
    Replay,
    read_letter,
    read_replay,
    replay_id_of,
    write_letter,
    write_mark,
    write_replay,
)
from engine.errors import EventError
from engine.events import Headers, Position
from engine.letter_lists import Filter, LetterList, Status

ORIGIN = Position("orders", 1, 7)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FULL = Details(
    reason="run-failed",
    error="ValueError: no",
    origin=ORIGIN,
    at="2026-01-01T00:00:00.000001+00:00",
    flow="fulfil",
    replay="r",
    run_id="ab",
    key="k",
    trace=TRACE,
)
OURS = [
    *("x-engine-reason", "x-engine-mark", "x-engine-replay", "x-engine-flow", "x-engine-origin", "x-engine-value"),
    *("x-engine-run", "x-engine-identity", "x-engine-letter", "x-engine-resumed"),
]
headers_of_others = st.lists(st.tuples(st.sampled_from([*OURS, "a", ""]), st.binary(max_size=6)), max_size=6).map(tuple)


def at(offset: int, written: Outgoing, partition: int = 0) -> Record:
    place = written.partition if written.partition is not None else partition
    return Record(written.topic, place, offset, written.key, written.value, tuple(written.headers), 1_000 + offset)


def letter_of(details: Details, headers: Headers = (), value: bytes | None = b"v") -> Outgoing:
    return write_letter("letters", details, b"key", value, headers, 1_000_000)


def mark_of(letter: Letter, marked: Marked, at: str = "1", replay: str | None = None) -> Outgoing:
    return write_mark("letters", Mark(marked, letter.id, letter.details.identity, at, replay))


def as_letter(record: Record) -> Letter:
    found = read_letter(record)
    assert isinstance(found, Letter)
    return found


@given(headers_of_others)
def test_headers_of_a_producer_stay_as_they_are_and_are_never_taken_for_ours(headers: Headers) -> None:
    bare = Details(reason="malformed-data")
    for details in (FULL, bare):
        letter = as_letter(at(3, letter_of(details, headers)))
        assert (letter.details, letter.headers, letter.id) == (details, headers, "0/3")
    asked = Replay(id="r", origin=ORIGIN, headers=headers)
    assert read_replay(tuple(write_replay("replays", asked, None, b"").headers)) == asked


@given(headers_of_others)
def test_no_record_that_is_neither_letter_nor_mark_stops_a_reader(headers: Headers) -> None:
    read_letter(Record("letters", 0, 0, None, None, headers, 0))
    with suppress(EventError):
        read_replay(headers)


@pytest.mark.parametrize(
    "origin", ["", "orders", "orders/1", "orders/x/1", "orders/1/²", "orders/1/-2", f"orders/1/{'9' * 40}"]
)
def test_a_replay_whose_origin_is_no_place_is_refused(origin: str) -> None:
    with pytest.raises(EventError, match="x-engine-origin"):
        read_replay((("x-engine-replay", b"r"), ("x-engine-origin", origin.encode())))


def test_a_value_that_does_not_fit_is_left_out_and_the_letter_says_so() -> None:
    written = write_letter("letters", FULL, None, b"v" * 100_000, (), 100_000)
    assert written.value is None
    assert as_letter(at(0, written)).details.content is Content.ABSENT


def test_copies_of_one_letter_share_an_identity_and_others_do_not() -> None:
    again = msgspec.structs.replace(FULL, at="later", error="ValueError: other words")
    assert again.identity == FULL.identity
    of_record = Details(reason="invalid-parameters", origin=ORIGIN, flow="a")
    others = [of_record, Details(reason="", origin=ORIGIN, flow="b"), Details(reason="", origin=ORIGIN, flow="a", replay="r")]
    assert len({FULL.identity, *(details.identity for details in others)}) == 4


def test_the_same_replay_has_the_same_id_and_any_other_another() -> None:
    ids = [
        replay_id_of("letter", 0, None, None),
        replay_id_of("letter", 1, None, None),
        replay_id_of("other", 0, None, None),
        replay_id_of("letter", 0, "flow", None),
        replay_id_of("letter", 0, None, b""),
    ]
    assert len(set(ids)) == 5
    assert ids[0] == replay_id_of("letter", 0, None, None)


class TestList:
    def test_marks_hide_each_copy_of_a_letter_also_one_that_comes_after_them(self) -> None:
        first = at(0, letter_of(FULL))
        records = [first, at(1, mark_of(as_letter(first), Marked.DROPPED)), at(0, letter_of(FULL), partition=1)]
        for order in (records, records[::-1]):
            made = LetterList()
            for record in order:
                made.add(record)
            entries = made.entries()
            assert {entry.status for entry in entries} == {Status.DROPPED, Status.REPEAT}

    def test_a_copy_whose_first_has_expired_is_still_known_to_be_dropped(self) -> None:
        first = as_letter(at(0, letter_of(FULL)))
        made = LetterList()
        made.add(at(1, mark_of(first, Marked.DROPPED)))
        made.add(at(2, letter_of(FULL)))
        assert [entry.status for entry in made.entries()] == [Status.DROPPED]

    def test_the_last_mark_counts_and_replays_are_counted_by_their_ids(self) -> None:
        record = at(0, letter_of(FULL))
        letter = as_letter(record)
        made = LetterList()
        made.add(record)
        made.add(at(1, mark_of(letter, Marked.DROPPED, "1")))
        made.add(at(2, mark_of(letter, Marked.REPLAYED, "2", "a")))
        made.add(at(3, mark_of(letter, Marked.REPLAYED, "3", "a")))
        [entry] = made.entries()
        assert (entry.status, entry.replays) == (Status.REPLAYED, 1)

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (Filter(), True),
            (Filter(reasons=("run-failed", "x")), True),
            (Filter(reasons=("x",)), False),
            (Filter(flows=("fulfil",), topics=("orders",)), True),
            (Filter(flows=("fulfil",), topics=("other",)), False),
            (Filter(since=datetime.fromtimestamp(1, UTC)), True),
            (Filter(since=datetime.fromtimestamp(2, UTC)), False),
            (Filter(until=datetime.fromtimestamp(1, UTC)), False),
        ],
    )
    def test_a_filter_wants_all_that_it_says(self, wanted: Filter, expected: bool) -> None:
        made = LetterList()
        made.add(at(0, letter_of(FULL)))
        [entry] = made.entries()
        assert wanted.admits(entry) is expected
