"""The flow of handlers.folders: what it finds, and what an event cannot make it read."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import State
from engine.testing import Outcome, Run, bench, run
from handlers import folders
from handlers.folders import Measure, Size


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with two levels of folders in it, and something beside it that is nobody's business."""
    root = tmp_path / "root"
    for name, size in (("a.txt", 10), ("docs/b.txt", 20), ("docs/old/c.txt", 400), ("docs/old/d.txt", 5), ("src/e.txt", 1)):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    (root / "empty").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"x" * 10_000)
    monkeypatch.setenv(folders.ROOT_VARIABLE, str(root))
    return root


async def sent(data: object) -> Outcome:
    async with bench(folders.folder_size) as engine:
        return await engine.send("folders", data, type="folder.named")


def ends(made: Run, task: str) -> int:
    return sum(change.task == task and change.state is State.COMPLETED for change in made.changes)


def test_a_tree_is_measured_with_a_task_for_each_folder() -> None:
    made = run(folders.folder_size, {})
    assert made.result(Size) == Size(".", files=5, folders=4, bytes=436, fullest="docs/old", fullest_bytes=405)
    assert (ends(made, "measure_folder"), ends(made, "add_up")) == (5, 2)


def test_tasks_say_which_task_has_started_them() -> None:
    made = run(folders.folder_size, {"folder": "docs"})
    scheduled = [change for change in made.changes if change.task == "measure_folder" and change.state is State.SCHEDULED]
    assert [change.spawned_by for change in scheduled] == [None, scheduled[0].task_run_id]
    assert made.result(Size).folder == "docs"


def test_a_task_does_not_wait_for_those_that_it_has_started() -> None:
    made = run(folders.folder_size, {})
    order = [(change.task, change.state) for change in made.changes if not change.is_flow_run]
    assert order.index(("measure_folder", State.COMPLETED)) < order.index(("add_up", State.RUNNING))


def test_a_folder_without_folders_is_one_task() -> None:
    made = run(folders.folder_size, {"folder": "empty"})
    assert made.result(Size) == Size("empty", 0, 0, 0, "empty", 0)
    assert {change.task for change in made.changes if not change.is_flow_run} == {"measure_folder"}


@pytest.mark.parametrize("folder", ["..", "docs/..", "docs/../../secret", "../secret", "/", "/etc", "a\0b"])
async def test_an_event_that_names_no_path_below_the_root_is_a_dead_letter(folder: str) -> None:
    outcome = await sent({"folder": folder})
    assert outcome.runs == []
    [letter] = outcome.dead_letters
    assert b"not a path below the root" in dict(letter.headers)["x-engine-error"]


def test_a_link_out_of_the_root_is_neither_followed_nor_measured(tree: Path) -> None:
    (tree / "docs" / "way-out").symlink_to(tree.parent / "secret")
    assert run(folders.folder_size, {}).result(Size).bytes == 436
    refused = run(folders.folder_size, {"folder": "docs/way-out"})
    assert refused.state is State.FAILED
    assert refused.error is not None
    assert "does not lie below" in refused.error.message


def test_a_folder_that_is_not_there_fails_the_run_and_is_named() -> None:
    missing = run(folders.folder_size, {"folder": "docs/none"})
    assert missing.state is State.FAILED
    assert missing.error is not None
    assert missing.error.message == "there is no folder docs/none"


def test_a_path_that_no_event_could_have_brought_is_refused_too() -> None:
    with pytest.raises(folders.TerminalError, match="does not lie below"):
        folders.below_root("docs/../docs")
    with pytest.raises(ValueError, match="not a path below the root"):
        Measure("..")


def test_without_a_root_it_is_the_folder_of_these_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(folders.ROOT_VARIABLE)
    assert folders.below_root(".") == Path(folders.__file__).parent.resolve()
    with pytest.raises(folders.TerminalError):
        folders.below_root("../engine")


def test_called_by_hand_it_is_plain_python() -> None:
    size = folders.add_up(Size("a", 1, 1, 5, "a", 5), [Size("a/b", 2, 0, 9, "a/b", 9)])
    assert size == Size("a", 3, 1, 14, "a/b", 9)
