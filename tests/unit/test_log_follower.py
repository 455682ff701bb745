"""The log of a child reaches our standard error."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.log_follower import LogFollower
from tests.waiting import eventually


async def test_what_is_appended_is_passed_on_and_what_was_there_before_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "engine.log"
    file.write_text("of an earlier start\n")
    seen: list[str] = []

    def has(text: str) -> bool:
        seen.append(capsys.readouterr().err)
        return text in "".join(seen)

    following = asyncio.create_task(LogFollower(file).run())
    with file.open("a") as log:
        log.write("one\n")
    await eventually(lambda: has("one\n"))
    # The child starts again, with a file of its own.
    (tmp_path / "new").write_text("two\n")
    (tmp_path / "new").rename(file)
    await eventually(lambda: has("two\n"))
    with file.open("a") as log:
        log.write("last words\n")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert has("last words\n")
    assert "".join(seen) == "one\ntwo\nlast words\n"


async def test_a_file_may_come_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    following = asyncio.create_task(LogFollower(tmp_path / "engine.log").run())
    (tmp_path / "engine.log").write_text("one\n")
    await eventually(lambda: capsys.readouterr().err == "one\n")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
