"""engine.whereabouts: what is noted of a parcel is never what is not under way when another attempt begins."""

from __future__ import annotations

import math

import pytest

from engine.parcels import PackedRun, Parcel, Timed
from engine.whereabouts import Whereabouts, notes_of


class Notes:
    """The scheduler's side."""

    def __init__(self, notes: float) -> None:
        self.is_there = True
        self.told: list[tuple[str, ...]] = []
        self.whereabouts = Whereabouts(self.note, notes)

    def note(self) -> bool:
        self.told.append(tuple(timed.index for timed in self.whereabouts.at))
        return self.is_there


def timed(index: str) -> Timed:
    return Timed("run", index, "price", 1, 0.5)


def parcel_of(count: int, *, is_suspect: bool = False) -> Parcel:
    runs = tuple(PackedRun(f"run-{number}", b"{}", "", 1.0) for number in range(count))
    return Parcel("p", "f", "m:f", runs, 10, is_suspect=is_suspect)


def test_many_small_runs_wait_for_no_note_one_for_some_and_suspects_for_all() -> None:
    assert notes_of(parcel_of(2)) == 0
    assert 0 < notes_of(parcel_of(1)) < 10
    assert notes_of(parcel_of(2, is_suspect=True)) == notes_of(parcel_of(1, is_suspect=True)) == math.inf


def test_an_attempt_is_noted_before_it_begins_and_its_end_with_what_comes_next() -> None:
    notes = Notes(math.inf)
    for index in "01":
        notes.whereabouts.enter(timed(index))
        notes.whereabouts.leave(timed(index))
        assert notes.whereabouts.at == ()
    assert notes.told == [("0",), ("1",)]


def test_the_end_of_one_inside_another_is_noted_at_once() -> None:
    """Else it would be taken for what hangs if the other one does."""
    notes = Notes(math.inf)
    notes.whereabouts.enter(timed("0"))
    notes.whereabouts.enter(timed("0+0"))
    notes.whereabouts.leave(timed("0+0"))
    assert notes.told == [("0",), ("0", "0+0"), ("0",)]


@pytest.mark.parametrize("is_inside", [False, True])
def test_when_its_notes_are_used_up_the_last_one_says_that_nothing_is_known(is_inside: bool) -> None:
    notes = Notes(3)
    for number in range(5):
        notes.whereabouts.enter(timed(str(number)))
        if not is_inside:
            notes.whereabouts.leave(timed(str(number)))
    assert len(notes.told) == 3
    assert notes.told[-1] == ()
    assert notes.whereabouts.at == ()


def test_a_scheduler_that_does_not_note_is_not_asked_again() -> None:
    notes = Notes(math.inf)
    notes.is_there = False
    for index in "01":
        notes.whereabouts.enter(timed(index))
        assert notes.whereabouts.at == (), "who looks now and then has that noted"
        notes.whereabouts.leave(timed(index))
    assert notes.told == [("0",)]


def test_nothing_is_noted_of_a_parcel_that_has_no_notes() -> None:
    notes = Notes(0)
    notes.whereabouts.enter(timed("0"))
    notes.whereabouts.leave(timed("0"))
    assert (notes.told, notes.whereabouts.at) == ([], ())
