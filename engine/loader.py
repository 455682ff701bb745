"""The loader: imports handler modules and collects the flows they declare; says what is wrong with one that does not load."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from engine.command_errors import HandlerError
from engine.errors import DeclarationError, EngineError
from engine.flows import Flow


class Place(msgspec.Struct, frozen=True):
    """Where a handler module lies: its name, and the folder that must be on ``sys.path`` to import it by that name."""

    module: str
    root: str | None


def places(handlers: Sequence[str]) -> list[Place]:
    """The modules that names, files and folders of handlers mean. Raises HandlerError for what is not there."""
    found: list[Place] = []
    for handler in handlers:
        path = Path(handler)
        if path.is_dir():
            files = [file for file in sorted(path.glob("*.py")) if file.stem != "__init__"]
            if not files:
                raise HandlerError(handler, "the folder has no Python modules", "Name a module, a file or another folder.")
            found.extend(_of_file(file) for file in files)
        elif path.suffix == ".py":
            if not path.is_file():
                raise HandlerError(handler, "there is no such file", "Check the path.")
            found.append(_of_file(path))
        else:
            found.append(Place(handler, None))
    return list(dict.fromkeys(found))


def load(handlers: Sequence[str]) -> dict[str, Flow[..., Any]]:
    """The flows of ``handlers`` by name. Raises HandlerError or DeclarationError; nothing is half loaded then."""
    flows: dict[str, Flow[..., Any]] = {}
    for place in places(handlers):
        module = _import(place)
        for flow in vars(module).values():
            # A flow that a module has only imported belongs to the module that declares it.
            if not isinstance(flow, Flow) or flow.module != module.__name__:
                continue
            other = flows.setdefault(flow.name, flow)
            if other is not flow:
                cause = f"there is a flow {flow.name} already, at {other.place[0]}:{other.place[1]}"
                raise DeclarationError(*flow.place, cause, "Rename one of them, or give one a name: @flow(…, name=…).")
    return flows


def _of_file(file: Path) -> Place:
    """A file's module name counts from the topmost folder that is a package."""
    file = file.resolve()
    parts = [file.stem]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return Place(".".join(parts), str(folder))


def _import(place: Place) -> ModuleType:
    if place.root is not None and place.root not in sys.path:
        sys.path.insert(0, place.root)
    elif place.root is None and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; the installed command does not
    try:
        module = importlib.import_module(place.module)
    except EngineError:
        raise  # a declaration that says itself where and what
    except ModuleNotFoundError as error:
        if error.name is not None and (place.module == error.name or place.module.startswith(f"{error.name}.")):
            raise HandlerError(
                place.module, "there is no such module", "Check the name, or give the path of its file."
            ) from error
        raise HandlerError(place.module, f"it needs {error.name}, which is not installed", "Install it.") from error
    except BaseException as error:  # whatever a module does when it is imported, sys.exit too
        if isinstance(error, KeyboardInterrupt):
            raise
        where = _last_line_in(place, error)
        raise HandlerError(
            place.module, f"it does not import: {type(error).__name__}: {error}{where}", "Correct it; nothing was started."
        ) from error
    _check_is_own(place, module)
    return module


def _check_is_own(place: Place, module: ModuleType) -> None:
    """Of two modules of one name Python imports the first: its flows, or none, would silently stand for the file's."""
    if place.root is None:
        return
    file = Path(place.root, *place.module.split(".")).with_suffix(".py")
    other = getattr(module, "__file__", None)
    if other is None or Path(other).resolve() != file:
        cause = f"{file} cannot be imported, because another module of that name is there: {other or 'built in'}"
        raise HandlerError(place.module, cause, "Rename the file.")


def _last_line_in(place: Place, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" ({error.filename}:{error.lineno})"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    inside = [frame for frame in own if frame.filename != __file__]
    return f" ({inside[-1].filename}:{inside[-1].lineno})" if inside else f" (module {place.module})"
