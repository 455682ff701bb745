"""The crash-point sweep on the log in memory: an engine dies at a point, at every passage, and those that follow do, too."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chaos.histories import Histories
from tests.chaos.memory_trial import EVENTS, MemoryTrial
from tests.chaos.points import Life

PASSAGES = (1, 2, 3)
#: An engine must have left a checkpoint behind before the next can read it.
_BEFORE = ("dispatcher: after commit", 1)
RESTARTS = (0, 1, 2)
_ONCE = ("takeover: assigned", "takeover: done")


async def sweep(point: str, folder: Path, *, is_narrow: bool = False, is_thorough: bool = False) -> dict[str, Histories]:
    """Everything that can be done at one point, by a name that says what.

    Killed there at each passage; then the next engine goes on undisturbed, or is killed there as well if it comes there,
    and the one after that, too. How often one comes by hangs on how much it does in one go: a later passage may not be
    reached, and its trial is one without a death. Raises AssertionError where no engine comes by at all.

    A person asks for things in some of the trials, where it ``is_thorough`` in all.
    """

    async def trial(passage: int, restarts: int) -> tuple[str, Histories]:
        before = [Life(*_BEFORE)] if "a checkpoint" in point else []
        doomed = [Life(point, passage) for _ in range(restarts + 1)]
        name = f"passage {passage}, killed again at most {restarts} times"
        is_asked = is_thorough or passage + restarts <= 2 or "cancel" in point
        options = {} if is_asked else {"events": EVENTS, "requests": ()}
        async with MemoryTrial(folder, app=f"at-{passage}-{restarts}", is_narrow=is_narrow, **options) as one:
            histories = await one.run([*before, *doomed, Life()])
        assert doomed[0].is_dead or passage > 1, f"{name}: nobody comes there"
        return name, histories

    # An engine that owns all from its beginning takes over once, two partitions.
    passages = PASSAGES[:1] if point in _ONCE else PASSAGES[:2] if point.startswith("takeover: ") else PASSAGES
    return dict(await asyncio.gather(*(trial(passage, restarts) for passage in passages for restarts in RESTARTS)))
