"""engine.handles: a result that is not there yet says so, and is waited for only where somebody waits for it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import WiringError
from engine.handles import Done, Handle, MapHandle, recorder, unmapped

HANDLE = Handle("price", "3", "r")
MAP = MapHandle("price", "3", "r", 2)
UNKNOWN = MapHandle("price", "3", "r", None)


@pytest.mark.parametrize(
    "look",
    [
        bool,
        len,
        iter,
        int,
        float,
        list,
        lambda handle: handle.field,
        lambda handle: handle[0],
        lambda handle: handle(),
        lambda handle: handle + 1,
        lambda handle: handle - 1,
        lambda handle: handle * 2,
        lambda handle: handle / 2,
        lambda handle: handle < 1,
        lambda handle: handle <= 1,
        lambda handle: handle > 1,
        lambda handle: handle >= 1,
        lambda handle: 1 in handle,
        lambda handle: [*handle],
    ],
)
def test_looking_at_a_value_that_is_not_there_yet_says_so(look: Callable[[Any], Any]) -> None:
    with pytest.raises(WiringError, match=r"price: .*a handle has no value yet\. Hand the handle to another task.*await it"):
        look(HANDLE)


def test_handles_can_be_shown_and_copied() -> None:
    assert repr(HANDLE) == "<handle of price, call 3>"
    assert repr(MAP) == "<handles of price, map 3, length 2>"
    assert repr(UNKNOWN) == "<handles of price, map 3, length unknown>"
    for copied in (copy.copy(HANDLE), pickle.loads(pickle.dumps(HANDLE))):
        assert (copied.task, copied.index, copied.run_id) == ("price", "3", "r")


def test_a_map_of_known_length_is_a_sequence_of_handles() -> None:
    assert len(MAP) == 2
    assert MAP
    assert not MapHandle("price", "3", "r", 0)
    assert [handle.index for handle in MAP] == ["3.0", "3.1"]
    assert (MAP[1].index, MAP[-1].index, MAP[0].task, MAP[0].run_id) == ("3.1", "3.1", "price", "r")
    with pytest.raises(IndexError):
        MAP[2]
    first, *rest = MAP
    assert (first.index, [handle.index for handle in rest]) == ("3.0", ["3.1"])


@pytest.mark.parametrize("look", [len, bool, list, lambda handle: handle[0], lambda handle: handle[-1]])
def test_a_map_whose_length_is_not_known_says_so(look: Callable[[Any], Any]) -> None:
    with pytest.raises(WiringError, match=r"the length of .* was asked for.*Map over it again"):
        look(UNKNOWN)


@pytest.mark.parametrize("handle", [HANDLE, MAP])
async def test_waiting_outside_of_any_run_is_refused_and_says_where_else(handle: Any) -> None:
    assert recorder.get() is None
    with pytest.raises(WiringError, match=r"waited for outside of any run.*engine\.attach\(run_id\)"):
        handle.result()
    with pytest.raises(WiringError, match=r"waited for outside of any run"):
        await handle


async def test_a_call_made_outside_any_run_has_its_value_already() -> None:
    done = Done([1])
    assert done.result() == [1]
    assert await done == [1]


def test_unmapped_keeps_what_it_is_given() -> None:
    table = [1, 2]
    assert unmapped(table).value is table
