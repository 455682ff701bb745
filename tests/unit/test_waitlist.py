"""engine.waitlist: which runs may begin, and in which order."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ledger import Ledger
from engine.runs import FlowRun
from engine.states import State, StateChange, utc
from engine.waitlist import Waitlist


def ledger(partition: int = 0) -> Ledger:
    return Ledger(partition, 0, 60.0)


def run(number: int, key: str | None = None, flow: str = "fulfil") -> FlowRun:
    scheduled = StateChange(
        run_id=f"{number:032x}", flow=flow, state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1.5), key=key
    )
    return FlowRun(scheduled, number)


def test_runs_without_a_key_begin_in_order_as_many_as_asked_for() -> None:
    waitlist, owner = Waitlist(), ledger()
    runs = [run(n) for n in range(5)]
    for one in runs:
        waitlist.add(owner, one)
    assert (len(waitlist), waitlist.ready) == (5, 5)
    assert waitlist.take(2) == [(owner, runs[0]), (owner, runs[1])]
    assert waitlist.take(9) == [(owner, one) for one in runs[2:]]
    assert waitlist.take(1) == []
    waitlist.end(owner, runs[0])
    assert len(waitlist) == 0


def test_runs_of_one_key_begin_when_the_one_before_has_ended() -> None:
    waitlist, owner = Waitlist(), ledger()
    first, second, third = (run(n, "Ada") for n in range(3))
    for one in (first, second, third):
        waitlist.add(owner, one)
    assert (len(waitlist), waitlist.ready) == (3, 1)
    assert waitlist.take(9) == [(owner, first)]
    assert waitlist.take(9) == []
    waitlist.end(owner, first)
    assert waitlist.take(9) == [(owner, second)]
    waitlist.end(owner, second)
    waitlist.take(9)
    waitlist.end(owner, third)
    assert len(waitlist) == 0


def test_a_key_is_free_when_its_last_run_has_ended() -> None:
    waitlist, owner = Waitlist(), ledger()
    first, second = run(1, "Ada"), run(2, "Ada")
    waitlist.add(owner, first)
    waitlist.take(1)
    waitlist.end(owner, first)
    waitlist.add(owner, second)
    assert waitlist.take(1) == [(owner, second)]


@pytest.mark.parametrize(
    ("other", "partition"), [(run(2, "Bob"), 0), (run(2, "Ada", "another"), 0), (run(2, "Ada"), 1), (run(2), 0)]
)
def test_what_has_another_key_flow_or_partition_does_not_wait(other: FlowRun, partition: int) -> None:
    waitlist = Waitlist()
    waitlist.add(ledger(), run(1, "Ada"))
    waitlist.add(ledger(partition), other)
    assert waitlist.ready == 2


def test_the_empty_key_is_a_key() -> None:
    waitlist, owner = Waitlist(), ledger()
    waitlist.add(owner, run(1, ""))
    waitlist.add(owner, run(2, ""))
    assert waitlist.ready == 1


def test_a_lost_partition_takes_its_runs_and_keys_with_it() -> None:
    waitlist, lost, kept = Waitlist(), ledger(0), ledger(1)
    begun, behind, unkeyed, stays = run(1, "Ada"), run(2, "Ada"), run(3), run(4, "Ada")
    for owner, one in ((lost, begun), (lost, behind), (lost, unkeyed), (kept, stays)):
        waitlist.add(owner, one)
    assert waitlist.take(1) == [(lost, begun)]
    waitlist.drop(0)
    assert (len(waitlist), waitlist.take(9)) == (1, [(kept, stays)])
    # What was begun ends later all the same, and disturbs neither a count nor the partition's next life.
    waitlist.end(lost, begun)
    assert len(waitlist) == 0
    again = ledger(0)
    waitlist.add(again, run(2, "Ada"))
    assert waitlist.ready == 1


def test_flows_take_turns_whoever_came_first() -> None:
    waitlist, owner = Waitlist(), ledger()
    for n in range(5):
        waitlist.add(owner, run(n, flow="slow"))
    waitlist.add(owner, run(10, flow="quick"))
    assert [one.flow for _, one in waitlist.take(3)] == ["slow", "quick", "slow"]


def test_a_flow_at_its_limit_is_passed_over_until_one_of_its_runs_ends() -> None:
    waitlist, owner = Waitlist(10, {"slow": 2}), ledger()
    runs = [run(n, flow="slow") for n in range(4)]
    for one in [*runs, run(10, flow="quick")]:
        waitlist.add(owner, one)
    assert waitlist.ready == 3
    assert [one.flow for _, one in waitlist.take(9)] == ["slow", "quick", "slow"]
    assert not waitlist.has_ready
    waitlist.end(owner, runs[0])
    assert waitlist.take(9) == [(owner, runs[2])]
    waitlist.end(owner, runs[0])
    assert not waitlist.has_ready, "an end that is told twice makes no room"


def test_a_run_that_only_waits_makes_room_and_takes_it_back() -> None:
    waitlist, owner = Waitlist(1), ledger()
    first, second, third = (run(n) for n in range(3))
    for one in (first, second, third):
        waitlist.add(owner, one)
    waitlist.take(9)
    assert waitlist.park(first)
    assert not waitlist.park(first)
    assert (waitlist.parked, waitlist.take(9)) == (1, [(owner, second)])
    waitlist.unpark(first)
    waitlist.end(owner, second)
    assert not waitlist.has_ready
    waitlist.end(owner, first)
    assert waitlist.take(9) == [(owner, third)]


def test_a_lost_partition_frees_its_flows_limit() -> None:
    waitlist, kept = Waitlist(1), ledger(1)
    waitlist.add(ledger(0), run(1))
    waitlist.add(kept, run(2))
    waitlist.take(9)
    waitlist.drop(0)
    assert waitlist.weight("fulfil") == 1
    assert [one.run_id for _, one in waitlist.take(9)] == [run(2).run_id]


class Model:
    """The rule, said as plainly as possible: a run may begin when no earlier one of its key is still open."""

    def __init__(self) -> None:
        self.waiting: deque[FlowRun] = deque()
        self.begun: list[FlowRun] = []

    def may_begin(self) -> set[str]:
        taken = {one.key for one in self.begun if one.key is not None}
        found: set[str] = set()
        for one in self.waiting:
            if one.key is None or one.key not in taken:
                found.add(one.run_id)
            if one.key is not None:
                taken.add(one.key)
        return found


@given(st.lists(st.sampled_from(["Ada", "Bob", None, "end"]), max_size=60))
def test_whatever_comes_no_two_of_a_key_are_open_and_nobody_waits_for_nothing(steps: list[str | None]) -> None:
    waitlist, owner, model = Waitlist(), ledger(), Model()
    for number, step in enumerate(steps):
        if step == "end":
            if model.begun:
                waitlist.end(owner, model.begun.pop(0))
        else:
            model.waiting.append(one := run(number, step))
            waitlist.add(owner, one)
        assert len(waitlist) == len(model.waiting)
        assert waitlist.ready == len(model.may_begin())
        may = model.may_begin()
        for _, taken in waitlist.take(1 + number % 2):
            assert taken.run_id in may
            model.waiting.remove(taken)
            model.begun.append(taken)


def test_a_run_that_is_withdrawn_never_begins_and_its_key_passes_on() -> None:
    waitlist, owner = Waitlist(), ledger()
    first, second, third, free = run(1, "k"), run(2, "k"), run(3, "k"), run(4)
    for one in (first, second, third, free):
        waitlist.add(owner, one)
    assert waitlist.withdraw(owner, second), "behind its key"
    assert waitlist.withdraw(owner, first), "in front of it"
    assert not waitlist.withdraw(owner, first)
    assert len(waitlist) == 2
    assert {entry[1] for entry in waitlist.take(9)} == {third, free}
    assert not waitlist.withdraw(owner, third), "it has begun"
    waitlist.end(owner, third)
    waitlist.add(owner, run(5, "k"))
    assert waitlist.ready == 1


def test_a_flow_whose_last_ready_run_is_withdrawn_has_no_turn() -> None:
    waitlist, owner = Waitlist(), ledger()
    alone = run(1)
    waitlist.add(owner, alone)
    assert waitlist.withdraw(owner, alone)
    assert not waitlist.has_ready
    assert waitlist.take(1) == []
