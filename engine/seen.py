"""Ids seen inside a window of time, in few bytes each, and as blocks that a log can keep; pure.

An id is 16 bytes, evenly spread as digests are. It is remembered for the window, and for up to a third of it longer.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from struct import Struct

import msgspec

#: Generations in a window. What is too old goes a generation at a time; a lookup goes through all of them.
_GENERATIONS = 3
#: Each generation is spread over so many tables, so that none takes long to grow.
_TABLES_BITS = 7
_TABLES_SHIFT = 64 - _TABLES_BITS
#: Places of the smallest table.
_LEAST_PLACES = 8
#: Stands for a zero, which marks a free place.
_FULL = 2**64 - 1

_ID = Struct("<QQ")


class IdBlock(msgspec.Struct, frozen=True):
    """Ids in the order in which they were seen."""

    #: 16 bytes each.
    ids: bytes
    #: When, as whole seconds since the epoch, rounded up: (second, how many in a row).
    seconds: tuple[tuple[int, int], ...]

    @property
    def last_second(self) -> int:
        """The youngest."""
        return max((second for second, _ in self.seconds), default=0)


class Seen:
    """The ids of one window."""

    __slots__ = ("_generations", "_step", "window_seconds")

    def __init__(self, window_seconds: float) -> None:
        self.window_seconds = window_seconds
        self._step = max(1, math.ceil(window_seconds / _GENERATIONS))
        #: Youngest first, by number.
        self._generations: dict[int, _Generation] = {}

    def __len__(self) -> int:
        return sum(generation.count for generation in self._generations.values())

    def __contains__(self, id_: bytes) -> bool:
        low, high = _ID.unpack(id_)
        high = high or _FULL
        place = low << 1
        number = low >> _TABLES_SHIFT
        for generation in self._generations.values():
            table = generation.tables[number]
            mask = len(table) - 2
            at = place & mask
            while found := table[at + 1]:
                if found == high and table[at] == low:
                    return True
                at = (at + 2) & mask
        return False

    def add(self, id_: bytes, second: int) -> None:
        """Remember an id that is not in it. ``second`` is that of its time, rounded up."""
        number = second // self._step
        generation = self._generations.get(number)
        if generation is None:
            generation = self._begin(number)
        low, high = _ID.unpack(id_)
        generation.add(low, high or _FULL)

    def expect(self, seconds: Iterable[int], count: int) -> None:
        """So many ids of about each of these seconds are to be added: tables that have room need not grow on the way."""
        for number, blocks in Counter(second // self._step for second in seconds).items():
            (self._generations.get(number) or self._begin(number)).expect(blocks * count)

    def add_block(self, block: IdBlock) -> None:
        """Remember what a block holds."""
        ids = memoryview(block.ids)
        start = 0
        for second, count in block.seconds:
            number = second // self._step
            generation = self._generations.get(number) or self._begin(number)
            add = generation.add
            for low, high in _ID.iter_unpack(ids[start : start + 16 * count]):
                add(low, high or _FULL)
            start += 16 * count

    def forget(self, now: float) -> None:
        """Drop what has left the window for good."""
        oldest = now - self.window_seconds
        for number in [number for number in self._generations if (number + 1) * self._step <= oldest]:
            del self._generations[number]

    def is_over(self, second: int, now: float) -> bool:
        """Whether an id of this second has left the window."""
        return (second // self._step + 1) * self._step <= now - self.window_seconds

    def _begin(self, number: int) -> _Generation:
        generation = self._generations[number] = _Generation()
        # What is asked for again is most often young.
        self._generations = dict(sorted(self._generations.items(), reverse=True))
        return generation


class _Generation:
    """Open-addressing tables of pairs (low half, high half); a high half of zero marks a free place."""

    __slots__ = ("count", "counts", "tables")

    def __init__(self) -> None:
        self.tables: list[array[int]] = [_NONE] * (1 << _TABLES_BITS)
        self.counts = [0] * (1 << _TABLES_BITS)
        self.count = 0

    def expect(self, count: int) -> None:
        """Make the tables as large as so many ids, spread evenly, need."""
        places = _LEAST_PLACES
        while count * 5 > places * 3 * len(self.tables):  # see ``add``
            places *= 2
        self.tables = [table if len(table) >= 2 * places else _grown(table, places) for table in self.tables]

    def add(self, low: int, high: int) -> None:
        number = low >> _TABLES_SHIFT
        table = self.tables[number]
        count = self.counts[number] + 1
        if count * 10 > len(table) * 3:  # a place is two numbers: more than 0.6 of the places would be taken
            table = self.tables[number] = _grown(table)
        mask = len(table) - 2
        at = (low << 1) & mask
        while found := table[at + 1]:
            if found == high and table[at] == low:
                return
            at = (at + 2) & mask
        table[at], table[at + 1] = low, high
        self.counts[number] = count
        self.count += 1


#: The table of those that hold nothing yet: one free place.
_NONE: array[int] = array("Q", (0, 0))


def _grown(table: array[int], places: int = _LEAST_PLACES) -> array[int]:
    """A table of twice the places, and of so many at least, with what is in ``table``."""
    bigger: array[int] = array("Q", bytes(max(16 * places, 16 * len(table))))
    mask = len(bigger) - 2
    for old in range(0, len(table), 2):
        if high := table[old + 1]:
            low = table[old]
            at = (low << 1) & mask
            while bigger[at + 1]:
                at = (at + 2) & mask
            bigger[at], bigger[at + 1] = low, high
    return bigger


class Tail:
    """Ids in the order in which they were seen, that no block on the log holds yet."""

    __slots__ = ("_ids", "_seconds")

    def __init__(self) -> None:
        self._ids = bytearray()
        self._seconds: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._ids) // 16

    def add(self, id_: bytes, second: int) -> None:
        """Append an id."""
        self._ids += id_
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += 1
        else:
            self._seconds.append([second, 1])

    def add_block(self, block: IdBlock) -> None:
        """Append what a block holds."""
        self._ids += block.ids
        self._seconds += [[second, count] for second, count in block.seconds]

    def first(self, count: int) -> IdBlock:
        """The oldest ``count`` ids, or all where there are fewer."""
        return IdBlock(bytes(self._ids[: 16 * count]), tuple(_runs(self._seconds, min(count, len(self)))))

    def drop_first(self, block: IdBlock) -> None:
        """The log holds what ``first`` gave."""
        del self._ids[: len(block.ids)]
        left = len(block.ids) // 16
        whole = 0
        for second in self._seconds:
            if second[1] > left:
                second[1] -= left
                break
            left -= second[1]
            whole += 1
        del self._seconds[:whole]


def _runs(seconds: list[list[int]], count: int) -> Iterator[tuple[int, int]]:
    for second, many in seconds:
        if count <= 0:
            return
        yield second, min(many, count)
        count -= many
