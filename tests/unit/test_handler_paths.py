"""Where handlers lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.command_errors import HandlerError
from engine.handler_paths import import_paths, watched_paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module and a package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    for name in ("alone.py", "shop/__init__.py", "shop/orders.py"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_file_is_imported_from_its_folder_and_a_package_from_the_one_above(folder: Path) -> None:
    assert import_paths(["alone.py"]) == (folder,)
    assert import_paths(["shop"]) == import_paths(["shop/orders.py"]) == (folder,)


def test_a_module_is_looked_for_in_the_current_folder(folder: Path) -> None:
    assert import_paths(["engine.testing", "alone"]) == (folder,)


def test_files_and_folders_are_watched_themselves_and_modules_with_what_lies_beside_them(folder: Path) -> None:
    assert watched_paths(["alone.py", "shop", "alone.py"]) == (folder / "alone.py", folder / "shop")
    (found,) = watched_paths(["handlers.flights"])
    assert found.name == "handlers"


def test_what_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(HandlerError):
        import_paths(["nothing.py"])
