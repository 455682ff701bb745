"""Where handlers lie: the folders they are imported from and the files that change them; imports no handler."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from engine.loader import places


def import_paths(handlers: Sequence[str]) -> tuple[Path, ...]:
    """The folders that other processes must have on their path to import the handlers. Raises HandlerError."""
    # A bare module name may lie in the current folder, where the engine itself looks.
    roots = [Path.cwd() if place.root is None else Path(place.root) for place in places(handlers)]
    return tuple(dict.fromkeys(roots))


def watched_paths(handlers: Sequence[str]) -> tuple[Path, ...]:
    """The files and folders whose change changes the handlers. Of a module, that is the folder it lies in."""
    found: list[Path] = []
    for handler in handlers:
        path = Path(handler)
        if path.exists():
            found.append(path.resolve())
        elif (spec := importlib.util.find_spec(handler)) is not None and spec.origin is not None:
            # Handlers import what lies beside them.
            found.append(Path(spec.origin).resolve().parent)
    return tuple(dict.fromkeys(found))
