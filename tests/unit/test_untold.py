"""engine.untold: a checkpoint waits for what memory says and the queue does not, and not for longer."""

from __future__ import annotations

import asyncio

from engine.runs import FlowRun
from engine.states import State, StateChange, utc
from engine.untold import Untold


def run(number: int) -> FlowRun:
    run_id = f"{number:032x}"
    return FlowRun(StateChange(run_id=run_id, flow="f", state=State.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1.0)), number)


async def test_a_run_that_fails_as_it_begins_is_told_when_its_end_is_queued_too() -> None:
    """Its end waits for a letter while its beginning is told."""
    untold, failed = Untold(), run(1)
    untold.add(failed)
    untold.add(failed)
    untold.tell([failed])
    assert failed in untold
    untold.tell([failed])
    assert failed not in untold


async def test_who_waits_for_what_was_told_meanwhile_does_not_wait_for_the_next() -> None:
    """There may be none for days: a checkpoint would hang, and so would the engine that is to stop."""
    untold, one, other = Untold(), run(1), run(2)
    untold.add(one)
    untold.add(other)
    untold.tell([one])
    async with asyncio.timeout(30):
        await untold.wait([one, other])


async def test_what_is_told_of_other_runs_ends_no_wait() -> None:
    untold, one, other = Untold(), run(1), run(2)
    untold.add(one)
    untold.add(other)
    waiting = asyncio.ensure_future(untold.wait([one]))
    await asyncio.sleep(0)
    untold.tell([other])
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    untold.tell([one])
    await waiting
