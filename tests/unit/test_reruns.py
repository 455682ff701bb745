"""engine.reruns: which calls of a run are made again from a task, and whose stored results are taken."""

from __future__ import annotations

import msgspec
import pytest

from engine import task
from engine.command_errors import NotFound
from engine.executor import TAKEN, Call
from engine.planning import PlannedCall
from engine.reruns import Calls
from engine.runs import FlowRun, stored_places
from engine.states import Reuse, State, StateChange, encode, utc
from tests.unit.recorded import Gone, scheduled

S = State
RUN = "ab" * 16


class Story:
    """The changes of a run, written down shortly."""

    def __init__(self) -> None:
        self.calls = Calls()
        self._seq = -1
        self.flow(S.SCHEDULED, 0)
        self.flow(S.RUNNING)

    def flow(self, state: State, attempt: int = 1, **more: object) -> None:
        self._put(state, attempt=attempt, **more)

    def scheduled(self, *names: str, parents: tuple[str, ...] = (), by: str | None = None) -> None:
        for name in names:
            by_id = None if by is None else f"{RUN}/{by}"
            self._task(name, S.SCHEDULED, parents=tuple(f"{RUN}/{parent}" for parent in parents), spawned_by=by_id)

    def completed(self, *names: str, stored: bool = True, **more: object) -> None:
        for name in names:
            self._task(name, S.COMPLETED, result_ref="file:///x" if stored else None, **more)

    def _task(self, name: str, state: State, **more: object) -> None:
        self._put(state, attempt=1, task=name.split("/")[0], task_run_id=f"{RUN}/{name}", **more)

    def _put(self, state: State, **more: object) -> None:
        self._seq += 1
        values = {"run_id": RUN, "flow": "f", "epoch": 0, "at": utc(float(self._seq)), "seq": self._seq} | more
        self.calls.take(StateChange(state=state, **values))  # type: ignore[arg-type]


def a_chain() -> Story:
    story = Story()
    story.scheduled("load/0")
    story.scheduled("clean/1", parents=("load/0",))
    story.scheduled("send/2", parents=("clean/1",))
    story.scheduled("other/3")
    story.completed("load/0", "clean/1", "send/2", "other/3")
    story.flow(S.COMPLETED)
    return story


def test_the_task_and_what_comes_behind_it_run_again() -> None:
    plan = a_chain().calls.plan(RUN, "clean")
    assert (plan.taken, plan.again) == (("load/0", "other/3"), ("clean/1", "send/2"))
    assert plan.reuse is not None
    assert (plan.reuse.run_id, plan.reuse.calls, plan.reuse.attempts, plan.reuse.is_plain) == (RUN, plan.taken, 1, True)


def test_what_has_stored_nothing_runs_again() -> None:
    story = Story()
    story.scheduled("load/0", "clean/1", "send/2")
    story.completed("load/0", stored=False)
    story.completed("clean/1", stored=False, reason=TAKEN)
    plan = story.calls.plan(RUN, "send")
    assert (plan.taken, plan.again) == (("clean/1",), ("load/0", "send/2"))
    nothing = Story()
    nothing.scheduled("load/0", "send/1")
    assert nothing.calls.plan(RUN, "send").reuse is None


def test_a_map_is_one_call_and_its_takers_come_behind_it() -> None:
    story = Story()
    story.scheduled("price/0.0", "price/0.1", "weigh/1.0")
    story.scheduled("total/2", parents=("price/0",))
    story.completed("price/0.0", "weigh/1.0", "total/2")
    assert story.calls.plan(RUN, "price").taken == ("weigh/1",)
    assert story.calls.plan(RUN, "total").taken == ("price/0", "weigh/1")


def test_one_call_of_a_task_may_be_named() -> None:
    story = Story()
    story.scheduled("load/0", "load/1")
    story.completed("load/0", "load/1")
    assert story.calls.plan(RUN, "load/1").taken == ("load/0",)
    assert story.calls.plan(RUN, "load").taken == ()


def test_a_task_that_a_task_has_started_takes_the_call_above_with_it() -> None:
    story = Story()
    story.scheduled("walk/0", "load/1")
    story.scheduled("visit/00ff00ff00ff00ff", by="walk/0")
    story.scheduled("sum/2", parents=("walk/0",))
    story.completed("visit/00ff00ff00ff00ff", "walk/0", "load/1", "sum/2")
    plan = story.calls.plan(RUN, "visit")
    assert (plan.taken, plan.again) == (("load/1",), ("walk/0", "sum/2"))


def test_an_async_flow_may_call_by_what_it_has_heard() -> None:
    story = Story()
    story.scheduled("look/0")
    story.completed("look/0", result=msgspec.Raw(b"1"))
    story.scheduled("buy/1")
    story.completed("buy/1")
    plan = story.calls.plan(RUN, "look")
    assert plan.taken == ()
    assert story.calls.plan(RUN, "buy").reuse is not None
    assert not story.calls.plan(RUN, "buy").reuse.is_plain  # type: ignore[union-attr]


def test_of_a_plain_flow_elements_that_come_late_are_no_sign() -> None:
    story = Story()
    story.scheduled("first/0", "second/1")
    story.completed("first/0", "second/1")
    story.scheduled("each/2.0", parents=("second/1",))
    story.completed("each/2.0")
    assert story.calls.plan(RUN, "first").taken == ("second/1", "each/2")
    assert story.calls.plan(RUN, "first", is_async=True).taken == ("second/1",)


def test_attempts_of_the_flow_are_told_to_whoever_looks_for_results() -> None:
    story = Story()
    story.scheduled("load/0", "send/1")
    story.completed("load/0")
    story.flow(S.RETRYING)
    story.flow(S.RUNNING, 2)
    story.scheduled("send/1~2")
    story.completed("send/1~2")
    plan = story.calls.plan(RUN, "load/0")
    assert (plan.taken, plan.reuse and plan.reuse.attempts, plan.reuse and plan.reuse.is_plain) == (("send/1",), 2, True)


def test_an_unknown_task_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"no task 'brew'\. Tasks of run .*: clean, load, other, send\."):
        a_chain().calls.plan(RUN, "brew")


def test_the_tasks_of_a_packed_run_can_be_named_and_have_stored_nothing() -> None:
    story = Story()
    entries = [{"task": "load", "index": "0", "state": "COMPLETED", "attempt": 1}]
    story.flow(S.COMPLETED, tasks=msgspec.Raw(encode(entries)))
    plan = story.calls.plan(RUN, "load")
    assert (plan.again, plan.reuse) == (("load/0",), None)


@task(persist=True)
def load() -> int:
    return 1


@task
def send(value: int) -> int:
    return value


def calls_of(body: object, reuse: Reuse) -> dict[str, tuple[str, int] | None]:
    """What each call of a flow may take, gone through as the engine does."""
    run = FlowRun(scheduled(flow=getattr(body, "__name__", ""), parameters=msgspec.Raw(b"{}"), reuse=reuse), 5)
    gone = Gone(body, run=run)  # type: ignore[arg-type]
    return {f"{one.call.task}/{one.call.index}": one.call.reuse for one in gone.planned if isinstance(one, PlannedCall)}


def test_calls_that_may_take_results_say_so() -> None:
    def plain() -> object:
        return send(load())

    async def waiting() -> object:
        return send(load())

    reuse = Reuse(RUN, ("load/0", "load/1"), 3, True)
    assert calls_of(plain, reuse) == {"load/0": (RUN, 3), "send/1": None}
    assert set(calls_of(waiting, reuse).values()) == {None}, "it was planned for a plain flow"
    assert calls_of(waiting, msgspec.structs.replace(reuse, is_plain=False))["load/0"] == (RUN, 3)


def test_a_result_is_looked_for_under_each_attempt_of_the_flow_its_own_first() -> None:
    call = msgspec.structs.replace(a_call(), run_id="cd" * 16, index="3.17~2", reuse=(RUN, 2))
    assert list(stored_places(call.run_id, call.index, call.reuse)) == [("cd" * 16, "3.17~2"), (RUN, "3.17~2"), (RUN, "3.17")]
    assert list(stored_places(call.run_id, call.index, None)) == [("cd" * 16, "3.17~2")]


def a_call() -> Call:
    def plain() -> object:
        return load()

    [planned] = [one for one in Gone(plain).planned if isinstance(one, PlannedCall)]
    return planned.call
