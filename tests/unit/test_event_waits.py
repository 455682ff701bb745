"""engine.event_waits: which waits an event concerns, how they end, and what of a topic is at hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.event_waits import RecentEvents, Seen, Wait, WaitIndex, in_parts, look
from engine.events import Event, Position, RawEvent

TYPES = ["", "a", "a.b", "a.b.c", "a.*", "ab", "b", ".", "a..b"]


def seen(offset: int = 0, type: str = "a.b", source: str = "/s", at_ms: int = 10, data: bytes | None = None) -> Seen:
    position = Position("t", 0, offset)
    return Seen(Event(id=f"{offset}", source=source, type=type, position=position, data=data), position, at_ms)


def wait(
    wait_id: str = "w",
    type: str | None = None,
    source: str | None = None,
    where: Callable[[RawEvent], bool] | None = None,
    since_ms: int = 0,
    had: tuple[int, ...] = (),
) -> Wait:
    return Wait(wait_id, "t", type, source, where, since_ms, frozenset(Position("t", 0, offset) for offset in had))


def ends(index: WaitIndex, *events: Seen) -> dict[str, str]:
    """Which event, or error, ended which wait."""
    return {w.wait_id: a.id if isinstance(a, Event) else str(a) for w, a in look(index.offers(events), set())}


class TestIndex:
    @given(
        patterns=st.lists(
            st.tuples(st.sampled_from([None, *TYPES, "a.b.*", ".*", "*"]), st.sampled_from([None, "/s", "/x"])), max_size=20
        ),
        type=st.sampled_from(TYPES),
    )
    def test_an_event_meets_exactly_the_waits_whose_type_and_source_fit(
        self, patterns: list[tuple[str | None, str | None]], type: str
    ) -> None:
        """As a search through all waits would have it, and each once."""
        waits = [wait(f"{n}", pattern, source) for n, (pattern, source) in enumerate(patterns)]
        found = [w.wait_id for offer in WaitIndex(waits).offers([seen(type=type)]) for part in offer.waits for w in part]
        fits = {
            f"{n}"
            for n, (pattern, source) in enumerate(patterns)
            if source in (None, "/s")
            and (pattern is None or (type.startswith(pattern[:-1]) if pattern.endswith(".*") else pattern == type))
        }
        assert sorted(found) == sorted(fits)

    def test_what_is_removed_is_gone_and_the_rest_stays(self) -> None:
        index = WaitIndex([wait("a", had=(0,)), wait("b", had=(0,)), wait("c", "a.b")])
        for gone in list(index)[::2]:
            index.remove(gone)
            index.remove(gone)
        assert [w.wait_id for w in index] == ["b"]
        assert len(index) == 1
        assert ends(index, seen(0), seen(1)) == {"b": "1"}

    def test_an_older_wait_with_the_id_of_one_that_is_here_is_not_removed_for_it(self) -> None:
        index = WaitIndex([wait("a", since_ms=1)])
        index.remove(wait("a", since_ms=2))
        assert len(index) == 1

    def test_a_wait_that_comes_after_an_offer_was_made_has_no_part_in_it(self) -> None:
        index = WaitIndex([wait("a")])
        offers = index.offers([seen()])
        index.add(wait("b"))
        assert [w.wait_id for w, _ in look(offers, set())] == ["a"]
        assert ends(index, seen()) == {"a": "0", "b": "0"}


class TestLooking:
    def test_each_wait_ends_with_the_first_event_that_it_takes(self) -> None:
        index = WaitIndex(
            [wait("any"), wait("2", where=lambda e: e.id == "2"), wait("late", since_ms=15), wait("had", had=(0,))]
        )
        events = [seen(0), seen(1), seen(2), seen(3, at_ms=15)]
        assert ends(index, *events) == {"any": "0", "2": "2", "late": "3", "had": "1"}

    def test_a_wait_that_has_ended_is_not_asked_again(self) -> None:
        """Over several parts of a batch, too."""
        asked: list[str] = []
        index = WaitIndex([wait(where=lambda e: not asked.append(e.id))])  # type: ignore[func-returns-value]
        settled: set[str] = set()
        for part in in_parts(index.offers([seen(0), seen(1), seen(2)]), 1):
            look(part, settled)
        assert asked == ["0"]

    @pytest.mark.parametrize("raises", [ValueError("no"), SystemExit(3)])
    def test_a_where_that_raises_ends_its_wait_alone(self, raises: BaseException) -> None:
        def where(event: RawEvent) -> bool:
            raise raises

        found = ends(WaitIndex([wait("bad", where=where), wait("good")]), seen(7))
        assert found["good"] == "7"
        assert f"where raised {type(raises).__name__}: {raises} for the event at t/0/7" in found["bad"]

    def test_an_answer_that_is_neither_true_nor_false_ends_its_wait(self) -> None:
        class Odd:
            def __bool__(self) -> bool:
                raise TypeError("ambiguous")

        assert "ambiguous" in ends(WaitIndex([wait(where=lambda e: Odd())]), seen())["w"]  # type: ignore[arg-type,return-value]

    def test_parts_hold_about_as_many_calls_as_asked_for(self) -> None:
        index = WaitIndex([wait(f"{n}") for n in range(10)])
        offers = index.offers([seen(n) for n in range(7)])
        assert [len(part) for part in in_parts(offers, 25)] == [3, 3, 1]
        assert list(in_parts([], 25)) == []


class TestRecentEvents:
    def filled(self, *at_ms: int, max_count: int = 5, max_bytes: int = 1_000_000, origin: int = 0) -> RecentEvents:
        recent = RecentEvents(max_count, max_bytes)
        recent.open({0: origin})
        for offset, at in enumerate(at_ms, start=origin):
            recent.append(0, offset + 1, seen(offset, at_ms=at))
        return recent

    def offsets(self, recent: RecentEvents, cursor: int = 0, since_ms: int = 0, offset: int = 0) -> list[int]:
        return [found.position.offset for found in recent.after(cursor, since_ms, {0: offset}, 100)[0]]

    def test_the_last_ones_are_kept_within_both_limits(self) -> None:
        assert self.offsets(self.filled(1, 2, 3, 4, 5, 6, 7)) == [2, 3, 4, 5, 6]
        assert self.offsets(self.filled(1, 2, 3, max_bytes=2_500)) == [1, 2]
        assert self.offsets(self.filled(1, max_bytes=10)) == []

    def test_it_covers_only_what_it_is_known_to_cover(self) -> None:
        recent = self.filled(10, 11)
        assert not recent.covers(100)  # what lies before is not known
        recent.learn(9)
        recent.learn(30)
        assert recent.covers(9)
        assert not recent.covers(8)

    def test_what_is_let_go_moves_what_is_covered(self) -> None:
        """By the latest record let go, not the last: producers' clocks differ."""
        recent = self.filled(10, 50, 12, 13, 14, 15, 16)
        recent.learn(9)
        assert not recent.covers(50)
        assert recent.covers(51)
        assert recent.starts == {0: 2}
        assert recent.lacking({0: 1}) == [0]
        assert recent.lacking({0: 2}) == []

    @given(at_ms=st.lists(st.integers(0, 20), max_size=12), since_ms=st.integers(0, 20), cursor=st.integers(0, 12))
    def test_none_that_is_new_enough_is_left_out(self, at_ms: list[int], since_ms: int, cursor: int) -> None:
        found = self.offsets(self.filled(*at_ms, max_count=8), cursor, since_ms)
        kept = [n for n in range(len(at_ms)) if n >= max(cursor, len(at_ms) - 8)]
        assert found == sorted(found)
        assert {n for n in kept if at_ms[n] >= since_ms} <= set(found) <= set(kept)

    def test_it_is_read_in_parts_up_to_its_end(self) -> None:
        recent = self.filled(1, 2, 3, 4, 5)
        first, cursor = recent.after(0, 0, {0: 1}, 3)
        rest, cursor = recent.after(cursor, 0, {0: 1}, 3)
        assert [found.position.offset for found in [*first, *rest]] == [1, 2, 3, 4]
        assert cursor == recent.next
        assert recent.after(cursor, 0, {}, 3) == ([], recent.next)

    def test_a_topic_made_anew_begins_at_its_new_start(self) -> None:
        """Readers that look back do not wait for offsets of its former life."""
        recent = self.filled(*range(10, 14), origin=100)
        for offset in range(3):
            recent.append(0, offset + 1, seen(offset, at_ms=20 + offset))
        assert recent.ends == {0: 3}
        assert recent.lacking({0: 0}) == []
        for offset in range(3, 9):
            recent.append(0, offset + 1, seen(offset, at_ms=20 + offset))
        assert recent.starts == {0: 4}

    def test_a_record_that_is_no_event_only_moves_the_end(self) -> None:
        recent = self.filled(1)
        recent.append(0, 2, None)
        assert (len(recent), recent.ends) == (1, {0: 2})
