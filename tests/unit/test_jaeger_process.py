"""engine.jaeger_process: which program is started, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.command_errors import JaegerMissing
from engine.jaeger_process import find_jaeger


def program(folder: Path, mode: int = 0o755) -> Path:
    file = folder / "jaeger"
    file.write_text("#!/bin/sh\n")
    file.chmod(mode)
    return file


def test_the_one_on_the_path_is_taken_unless_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("path", "elsewhere"):
        (tmp_path / name).mkdir()
    installed, named = program(tmp_path / "path"), program(tmp_path / "elsewhere")
    monkeypatch.setenv("PATH", str(installed.parent))
    assert find_jaeger("") == installed
    assert find_jaeger(str(named)) == named


def test_where_there_is_none_it_is_said_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JaegerMissing) as caught:
        find_jaeger("")
    for way in ("https://www.jaegertracing.io/download/", "ENGINE_JAEGER", "README.md", "docker compose up -d jaeger"):
        assert way in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, None], ids=["no program", "nothing there"])
def test_what_is_named_has_to_be_a_program(tmp_path: Path, mode: int | None) -> None:
    file = tmp_path / "jaeger" if mode is None else program(tmp_path, mode)
    with pytest.raises(JaegerMissing, match=r"the setting jaeger names .*jaeger, which is no program"):
        find_jaeger(str(file))
