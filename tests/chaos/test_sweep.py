"""Wherever an engine dies, the next ones go on: nothing is lost, nothing is doubled, nothing finished runs again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.checker import check
from tests.chaos.memory_trial import quickly
from tests.chaos.points import NARROW, POINTS
from tests.chaos.sweep import sweep


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at(point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch.setattr)
    for name, histories in (await sweep(point, tmp_path)).items():
        assert check(histories) == [], name


@pytest.mark.parametrize("point", NARROW)
async def test_killed_under_pressure_at(point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most runs wait on the log, and not in memory."""
    quickly(monkeypatch.setattr)
    for name, histories in (await sweep(point, tmp_path, is_narrow=True)).items():
        assert check(histories) == [], name
