"""A member that its group has expelled while it stood still: it comes back, nothing is doubled, nobody crashes."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

from tests.integration import flows_takeover as flows
from tests.integration.conftest import Apps
from tests.integration.test_takeover import assert_one_story, engine_process, notes
from tests.waiting import eventually

PATIENCE_SECONDS = 60.0


async def test_an_engine_that_was_expelled_between_poll_and_commit_rejoins_and_doubles_nothing(
    apps: Apps, tmp_path: Path
) -> None:
    watching = apps.make(flows.single, state_partitions=4)
    settings = watching.settings
    async with engine_process(settings, tmp_path / "first.log") as first:
        await watching.follow_only()
        await watching.do("singles", {"folder": str(tmp_path), "number": 0}, "single", id="e0")
        # What it has in hand when it stops was polled, and not committed.
        await watching.send_many("singles", [(f"e{n}", {"folder": str(tmp_path), "number": n}) for n in range(1, 60)])
        await eventually(lambda: len(watching.ends()) >= 5, PATIENCE_SECONDS)
        first.send_signal(signal.SIGSTOP)
        try:
            second = await apps.start(flows.single, settings=settings)
            await eventually(lambda: len(second.epochs) == 4, PATIENCE_SECONDS)
            await second.send_many("singles", [(f"e{n}", {"folder": str(tmp_path), "number": n}) for n in range(60, 90)])
            for n in range(90):
                await second.run("single", f"e{n}")
        finally:
            first.send_signal(signal.SIGCONT)
        # It hears that it was expelled when it commits or polls, drops what it had, and gets its share again.
        await eventually(lambda: len(second.epochs) < 4, PATIENCE_SECONDS)
        await second.send_many("singles", [(f"e{n}", {"folder": str(tmp_path), "number": n}) for n in range(90, 120)])
        for n in range(120):
            assert_one_story(await second.run("single", f"e{n}"))
        assert first.returncode is None
    assert len(second.ends()) == 120
    assert Counter(notes(tmp_path)) == Counter(f"{word} {n}" for n in range(120) for word in ("begin", "end"))
