"""Negative controls: an engine that leaves out what a promise rests on breaks it, and the checker says so, by its name.

Each is run as long as it takes until that is found; one that is never found fails in the end, with what was found instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checker import check
from tests.chaos.controls import VARIANTS
from tests.chaos.histories import Histories
from tests.chaos.memory_trial import MemoryTrial, quickly
from tests.chaos.points import Life

SetAttribute = Callable[[Any, str, Any], None]


def kinds_of(histories: Histories) -> set[str]:
    return {violation.kind for violation in check(histories)}


def until(kinds: set[str]) -> Callable[[Histories], bool]:
    return lambda histories: bool(kinds & kinds_of(histories))


@pytest.fixture
def set_attribute(monkeypatch: pytest.MonkeyPatch) -> SetAttribute:
    quickly(monkeypatch.setattr)
    return monkeypatch.setattr


async def told_twice(trial: MemoryTrial) -> Histories:
    """Everything ends; then a producer sends an event once more, and another engine comes."""
    await trial.run([Life()])
    await trial.send("single", "a", 1)
    await trial.live(Life(), 2)
    return trial.histories()


async def killed_before_send(trial: MemoryTrial) -> Histories:
    """The intake dies with events in hand."""
    return await trial.run([Life("intake: after bind, before send", 2), Life()])


async def killed_with_events_in_hand(trial: MemoryTrial) -> Histories:
    """The intake dies when it has written what they became, and has not committed."""
    return await trial.run([Life("intake: before commit", 1), Life()])


async def paused_and_revived(trial: MemoryTrial) -> Histories:
    """A write of an owner lands when the next one has the partition; the one after that reads it."""
    return await trial.run([Life("publisher: before send", is_late=True), Life("takeover: done"), Life()])


async def killed_with_results_in_hand(trial: MemoryTrial) -> Histories:
    """The engine dies when it hears of results, before it tells of them."""
    return await trial.run([Life("executor: before a result", 3), Life()])


async def killed_when_it_was_asked_to_cancel(trial: MemoryTrial) -> Histories:
    """The engine dies with a run under way that somebody wants to end; the next one reads that."""
    life = Life()

    async def kill() -> None:
        while not any(one.what == "cancel" and one.is_acknowledged for one in trial.asker.asked):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        life.die()

    killing = asyncio.create_task(kill())
    histories = await trial.run([life, Life()])
    await killing
    return histories


async def undisturbed(trial: MemoryTrial) -> Histories:
    """Nobody dies."""
    return await trial.run([Life()])


Story = Callable[[MemoryTrial], Any]
#: What happens to the engine that leaves something out, and what it is to be found as: one of these.
CONTROLS: dict[str, tuple[Story, set[str]]] = {
    "dedup-off": (told_twice, {"rerun"}),
    "ids-at-random": (killed_with_events_in_hand, {"doubled"}),
    "automatic-commits": (killed_before_send, {"lost"}),
    "commit-before-send": (killed_before_send, {"lost"}),
    "epochs-ignored": (paused_and_revived, {"gap", "ledger", "checkpoint"}),
    "letters-forgotten": (undisturbed, {"no letter"}),
    "cancellations-forgotten": (killed_when_it_was_asked_to_cancel, {"uncancelled"}),
    "repeats-at-random": (undisturbed, {"doubled"}),
}
STORIES = [told_twice, killed_before_send, killed_with_events_in_hand, paused_and_revived, killed_with_results_in_hand]
STORIES.append(killed_when_it_was_asked_to_cancel)


@pytest.mark.parametrize("name", CONTROLS)
async def test_what_is_left_out_is_missed(name: str, tmp_path: Path, set_attribute: SetAttribute) -> None:
    story, kinds = CONTROLS[name]
    VARIANTS[name](set_attribute)
    async with MemoryTrial(tmp_path) as trial:
        trial.is_enough = until(kinds)
        assert kinds & (found := kinds_of(await story(trial))), found


async def test_futures_that_nobody_holds_are_run_again(tmp_path: Path, set_attribute: SetAttribute) -> None:
    """As if the scheduler let a dead engine's tasks go."""
    async with MemoryTrial(tmp_path) as trial:
        trial.executor.is_holding = False
        trial.is_enough = until({"rerun"})
        assert "rerun" in kinds_of(await killed_with_results_in_hand(trial))


@pytest.mark.parametrize("story", STORIES)
async def test_the_same_does_a_sound_engine_no_harm(story: Story, tmp_path: Path, set_attribute: SetAttribute) -> None:
    async with MemoryTrial(tmp_path) as trial:
        assert check(await story(trial)) == []
