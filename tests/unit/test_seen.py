"""engine.seen: ids are remembered for the window, in few bytes, and survive the way over a log."""

from __future__ import annotations

import hashlib
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from engine.seen import IdBlock, Seen, Tail

WINDOW_SECONDS = 90.0
#: Small ones share all but a few bits; zero is what marks a free place.
ids = st.one_of(st.integers(0, 20).map(lambda n: n.to_bytes(16, "little")), st.binary(min_size=16, max_size=16))


def digest(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


@given(st.lists(st.tuples(ids, st.integers(0, 80))), st.lists(ids))
def test_it_holds_what_was_added_and_nothing_else(added: list[tuple[bytes, int]], others: list[bytes]) -> None:
    seen = Seen(WINDOW_SECONDS)
    for id_, second in added:
        if id_ not in seen:
            seen.add(id_, second)
    known = {id_ for id_, _ in added}
    assert len(seen) == len(known)
    assert all(id_ in seen for id_ in known)
    assert all((id_ in seen) == (id_ in known) for id_ in others)


def test_an_id_is_remembered_for_the_window_and_no_longer_than_a_third_more() -> None:
    for second in range(100, 200):
        seen = Seen(WINDOW_SECONDS)
        seen.add(digest(1), second)
        seen.forget(second + WINDOW_SECONDS)
        assert digest(1) in seen
        assert not seen.is_over(second, second + WINDOW_SECONDS)
        seen.forget(second + WINDOW_SECONDS * 4 / 3)
        assert digest(1) not in seen
        assert seen.is_over(second, second + WINDOW_SECONDS * 4 / 3)


def test_forgetting_what_is_old_leaves_what_is_young() -> None:
    seen = Seen(WINDOW_SECONDS)
    for number in range(3_000):
        seen.add(digest(number), number // 10)
    seen.forget(300.0)
    assert all(digest(number) in seen for number in range(2_100, 3_000))
    assert len(seen) <= 900 * 4 / 3


def test_an_id_takes_no_more_than_64_bytes() -> None:
    """However many there are, just before and just after tables have grown; the times of a day, evenly."""
    for count in (30_000, 60_000, 100_000):
        tracemalloc.start()
        seen = Seen(86_400.0)
        for number in range(count):
            seen.add(digest(number), number * 86_400 // count)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert size / count <= 64, f"{size / count:.1f} bytes for each of {count} ids"


@given(st.lists(st.tuples(ids, st.integers(0, 5))), st.integers(0, 30))
def test_the_tail_gives_its_oldest_as_a_block_and_keeps_the_others(added: list[tuple[bytes, int]], count: int) -> None:
    tail = Tail()
    for id_, second in added:
        tail.add(id_, second)
    whole = tail.first(len(tail))
    block = tail.first(count)
    tail.drop_first(block)
    rest = tail.first(len(tail))
    assert unfolded(whole) == added
    assert unfolded(block) + unfolded(rest) == added
    assert len(tail) == max(0, len(added) - count)
    again = Tail()
    again.add_block(block)
    again.add_block(rest)
    assert unfolded(again.first(len(again))) == added


@given(st.lists(st.tuples(ids, st.integers(0, 80)), unique_by=lambda pair: pair[0]), st.integers(0, 400))
def test_a_block_brings_back_what_was_seen_and_when(added: list[tuple[bytes, int]], expected: int) -> None:
    """However many were expected, and though some were there before."""
    tail, once = Tail(), Seen(WINDOW_SECONDS)
    for id_, second in added:
        tail.add(id_, second)
        once.add(id_, second)
    again = Seen(WINDOW_SECONDS)
    first = tail.first(len(tail) // 2)
    again.add_block(first)
    again.expect([0, 40, 80], expected)
    tail.drop_first(first)
    again.add_block(tail.first(len(tail)))
    assert len(again) == len(added)
    for now in (0.0, 100.0, 130.0, 170.0):
        once.forget(now)
        again.forget(now)
        assert [id_ in again for id_, _ in added] == [id_ in once for id_, _ in added]


def unfolded(block: IdBlock) -> list[tuple[bytes, int]]:
    seconds = [second for second, count in block.seconds for _ in range(count)]
    return [(block.ids[16 * n : 16 * n + 16], second) for n, second in enumerate(seconds)]
