"""What tasks may be called with, and what becomes of calls with what cannot travel, on real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.states import State
from tests.integration import flows_calls as flows
from tests.integration.conftest import Apps

S = State


@pytest.mark.parametrize("waits", [False, True])
async def test_a_generator_is_mapped_over_inside_a_task(apps: Apps, waits: bool) -> None:
    app = await apps.start(flows.generators)
    run = await app.do("generators", {"number": 6, "waits": waits}, "generators")
    assert (run.end.state, run.result) == (S.COMPLETED, 30)
    assert sorted(c.map_index for c in run.of("double") if c.state is S.COMPLETED) == list(range(6))


async def test_huge_arguments_and_what_all_elements_share_arrive_whole(apps: Apps) -> None:
    app = await apps.start(flows.huge, flows.shared)
    huge = await app.do("huge", {}, "huge")
    assert huge.result == [flows.HUGE, [0, flows.HUGE, 2]]
    assert max(len(record.value or b"") for record in await app.records(app.settings.states_topic)) < 10_000
    shared = await app.do("shared", {}, "shared")
    assert shared.result == [[6, 6], [1, 2]]


async def test_arguments_that_cannot_travel_fail_the_run_and_name_the_task(apps: Apps) -> None:
    app = await apps.start(flows.locked, flows.locked_below, flows.sour)
    id = await app.send("locked", {})
    ends = {name: (await app.run(name, id)).end for name in ("locked", "locked_below", "sour")}
    assert {end.state for end in ends.values()} == {S.FAILED}
    told = {name: f"{end.error.type}: {end.error.message}" for name, end in ends.items() if end.error is not None}
    for name in ("locked", "locked_below"):
        assert told[name].startswith("WiringError: ")
        assert "measure" in told[name]
        assert "lock" in told[name]
    assert told["sour"] == "LookupError: milk is sour"


async def test_waits_of_chance_differ_stay_within_their_limit_and_are_told(apps: Apps, tmp_path: Path) -> None:
    app = await apps.start(flows.chances)
    run = await app.do("chances", {"folder": str(tmp_path)}, "chances")
    assert (run.end.state, run.result) == (S.COMPLETED, 4)
    changes = run.of("falter")
    waits = [c.next_attempt_at - c.at for c in changes if c.state is S.RETRYING and c.next_attempt_at is not None]
    assert len(waits) == 3
    assert len(set(waits)) == 3
    assert all(0 <= wait.total_seconds() <= 0.2 for wait in waits)
    begins = [change.at for change in changes if change.state is S.RUNNING]
    nexts = [change.next_attempt_at for change in changes if change.state is S.RETRYING]
    assert all(begun >= due for begun, due in zip(begins[1:], nexts, strict=True) if due is not None)
