"""The checker finds every fault that is planted into a good history, by its name, and has nothing to say against a good one."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chaos.checker import check
from tests.chaos.figures import figures, text
from tests.chaos.histories import Effect, Fault, Histories, Logged
from tests.chaos.memory_trial import MemoryTrial, quickly
from tests.chaos.mutable_log import Log, data_of, kind_of, run_of, with_data
from tests.chaos.mutations import MUTATIONS
from tests.chaos.points import Life

#: Recorded once by the tests themselves; a kill in it makes a second epoch.
_recorded: list[Histories] = []


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Histories:
    """A trial in which an engine was killed and nothing went wrong."""
    if not _recorded:
        quickly(monkeypatch.setattr)

        async def record() -> Histories:
            async with MemoryTrial(tmp_path) as trial:
                return await trial.run([Life("publisher: after send", 1), Life()])

        _recorded.append(asyncio.run(record()))
    return _recorded[0]


def test_a_good_history_has_no_violations(good: Histories) -> None:
    assert check(good) == []
    shown = figures(good, [])
    assert (shown.lost, shown.doubled, shown.rerun_by_engine_kills) == (0, 0, 0)
    assert (shown.events, shown.runs, shown.survived) == (16, 21, {"engine kills": 1})
    assert "engine kills 1" in text(shown)


def test_a_history_is_the_same_when_it_was_kept(good: Histories, tmp_path: Path) -> None:
    good.save(tmp_path / "kept.json")
    assert Histories.load(tmp_path / "kept.json") == good


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_fault_is_found_by_its_name(name: str, good: Histories) -> None:
    """Wherever it is planted."""
    mutate, kind = MUTATIONS[name]
    for seed in range(8):
        found = check(mutate(good, random.Random(seed).choice))
        assert kind in {violation.kind for violation in found}, f"planted by seed {seed}"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_answers_whatever_lies_on_the_topics(good: Histories, data: st.DataObject) -> None:
    """Values and headers of any kind are findings, never exceptions; and what they hide is missed."""
    one = data.draw(st.sampled_from(good.logged))
    leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    anything: st.SearchStrategy[Any] = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    strange = data.draw(
        st.builds(lambda value: msgspec.structs.replace(one, value=msgspec.json.encode(value).decode()), anything)
        | st.builds(lambda name, value: with_data(one, **{name: value}), st.sampled_from(["seq", "epoch", "event"]), anything)
        | st.builds(lambda headers: msgspec.structs.replace(one, headers=headers), st.dictionaries(st.text(), st.text()))
    )
    logged = [strange if other is one else other for other in good.logged]
    found = check(msgspec.structs.replace(good, logged=logged))
    assert "checker" not in {violation.kind for violation in found}


class TestALetterOfARunThatWentWell:
    """Legal in one case alone: whoever wrote it was not the one who told the end."""

    @staticmethod
    def history(good: Histories, *, hand_over: bool) -> Histories:
        log = Log(good)
        good_end = next(one for one in log.scheduled() if (data_of(one)["flow"], data_of(one)["event"]["id"]) == ("bad", "j"))
        run_id = next(
            run_of(one) for one in log.scheduled() if data_of(one)["flow"] == "bad" and data_of(one)["event"]["id"] == "j"
        )
        run_id = run_of(good_end)
        mine = log.of(run_id)
        epoch = next(one for one in log.records if kind_of(one) == "ownership" and one.partition == mine[0].partition)
        changes = mine[1:]
        others = [epoch] if hand_over else []
        # Its owner, its SCHEDULED, perhaps another owner, and its changes, all by the last of them.
        log.records = [epoch, mine[0], *others, *(with_data(one, epoch=2 if hand_over else 0) for one in changes)]
        lone = log.histories(keep_epochs=True)
        event = data_of(mine[0])["event"]
        headers = {"x-engine-run": run_id, "x-engine-flow": "bad", "x-engine-reason": "run-failed"}
        headers["x-engine-origin"] = f"{event['topic']}/{event['partition']}/{event['offset']}"
        letter = Logged(good.letters_topic, 0, 0, mine[0].at, headers)
        sent = [one for one in good.sent if one.id == "j"]
        effects = [one for one in good.effects if one.run_id == run_id]
        logged = [one for one in lone.logged if one.topic == good.states_topic]
        return msgspec.structs.replace(lone, sent=sent, asked=[], effects=effects, faults=[], logged=[*logged, letter])

    @pytest.mark.parametrize("hand_over", [True, False])
    def test_it_needs_another_owner(self, good: Histories, hand_over: bool) -> None:
        found = check(self.history(good, hand_over=hand_over))
        assert [one.kind for one in found] == ([] if hand_over else ["letter"])


class TestWhatIsNoFault:
    def test_a_repeat_of_a_change_by_the_same_owner(self, good: Histories) -> None:
        log = Log(good)
        for one in log.changes()[::3]:
            log.records.insert(log.records.index(one) + 1, one)
        assert check(log.histories()) == []

    def test_a_change_of_an_owner_that_has_lost_the_partition(self, good: Histories) -> None:
        """It is void, whatever it says."""
        log = Log(good)
        begun = [one for one in log.records if kind_of(one) == "ownership"]
        old, newer = next(
            (one, later)
            for one in log.inner()
            for later in begun
            if later.partition == one.partition and later.offset > one.offset
        )
        log.records.insert(log.records.index(newer) + 1, with_data(old, seq=500, state="FAILED"))
        assert check(log.histories()) == []

    def test_an_event_that_nobody_has_acknowledged_and_that_is_not_there(self, good: Histories) -> None:
        ghost = msgspec.structs.replace(good.sent[1], id="ghost", partition=-1, offset=-1)
        assert check(msgspec.structs.replace(good, sent=[*good.sent, ghost])) == []

    @pytest.mark.parametrize(
        ("whom", "pid", "is_excused"), [("worker", 7, True), ("scheduler", 1, True), ("worker", 8, False), ("engine", 7, False)]
    )
    def test_a_task_that_runs_again_because_its_worker_or_the_scheduler_died(
        self, good: Histories, whom: str, pid: int, is_excused: bool
    ) -> None:
        task = next(one for one in good.effects if one.what == "done")
        moved = [msgspec.structs.replace(one, pid=7) if one.task_run_id == task.task_run_id else one for one in good.effects]
        again = [
            Effect(what, task.run_id, task.task_run_id, task.attempt, 9, at)
            for what, at in (("start", task.at + 2), ("done", task.at + 3))
        ]
        death = Fault(task.at + 1, "kill", whom, "x", pid)
        found = check(msgspec.structs.replace(good, effects=[*moved, *again], faults=[death]))
        assert [one.kind for one in found] == ([] if is_excused else ["rerun"])
