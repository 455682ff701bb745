"""How large a folder is: an example of tasks that start tasks, one for each folder below.

An event names a folder; which one is a path below a root that whoever runs the workers chooses. What an event says must
not decide what a worker may read, so everything that leads out of the root is refused: ``..``, absolute paths, links.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import msgspec

from engine import TerminalError, flow, on, task

#: Environment variable of the workers: the folder that may be measured. Without it, only this package's own.
ROOT_VARIABLE = "HANDLERS_FOLDERS_ROOT"


class Measure(msgspec.Struct, frozen=True):
    """The data of a folder.named event: one that names anything but a path below the root becomes a dead letter."""

    #: With / between its parts; "." is the root itself.
    folder: str = "."

    def __post_init__(self) -> None:
        path = PurePosixPath(self.folder)
        if path.is_absolute() or ".." in path.parts or "\0" in self.folder:
            raise ValueError("not a path below the root")


class Size(msgspec.Struct, frozen=True):
    """A folder with all that lies below it."""

    folder: str
    files: int
    folders: int
    bytes: int
    #: The folder with the most bytes in files of its own, itself included, and how many those are.
    fullest: str
    fullest_bytes: int


@task
def measure_folder(folder: str) -> Size:
    """Start a task for each folder inside, and one that adds up what they find; wait for none of them.

    What it returns is the handle of the sum: whoever waits for this task's result waits for that of the whole tree, while
    the task itself has long ended and left its place on the worker to others.
    """
    files, size, inside = 0, 0, []
    with os.scandir(below_root(folder)) as entries:
        for entry in entries:
            # A link may lead out of the root, or round in a circle.
            if entry.is_dir(follow_symlinks=False):
                inside.append(str(PurePosixPath(folder, entry.name)))
            elif entry.is_file(follow_symlinks=False):
                files += 1
                size += entry.stat(follow_symlinks=False).st_size
    own = Size(folder, files, len(inside), size, folder, size)
    if not inside:
        return own
    return add_up.spawn(own, measure_folder.map(sorted(inside)))


@task
def add_up(own: Size, inside: list[Size]) -> Size:
    """The folder's own files, and all below it."""
    fullest = max([own, *inside], key=lambda size: size.fullest_bytes)
    return Size(
        folder=own.folder,
        files=own.files + sum(size.files for size in inside),
        folders=own.folders + sum(size.folders for size in inside),
        bytes=own.bytes + sum(size.bytes for size in inside),
        fullest=fullest.fullest,
        fullest_bytes=fullest.fullest_bytes,
    )


@flow(on("folders", type="folder.named"))
def folder_size(named: Measure) -> Size:
    """One call here; the tree decides how many tasks it becomes."""
    return measure_folder(named.folder)


def below_root(folder: str) -> Path:
    """Where the folder lies. Raises TerminalError where that is not below the root, by whatever links it gets there."""
    root = Path(os.environ.get(ROOT_VARIABLE) or Path(__file__).parent).resolve()
    path = (root / folder).resolve()
    if not path.is_relative_to(root) or ".." in PurePosixPath(folder).parts:
        raise TerminalError(f"{folder} does not lie below the folder that may be measured (see {ROOT_VARIABLE})")
    if not path.is_dir():
        raise TerminalError(f"there is no folder {folder}")
    return path
