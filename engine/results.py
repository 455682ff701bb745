"""The result store: files for results that do not travel in a state change; the only importer of fsspec.

Where a result lies follows from its run, task and index alone, which are checked; never from a reference that somebody
sent, because what is not JSON is unpickled when it is read. Everything here blocks: call it on a thread of a worker.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import uuid
from collections.abc import Iterator
from typing import Any, Literal

import cloudpickle
import fsspec
import msgspec
from fsspec.spec import AbstractFileSystem

from engine.errors import ResultMissing, ResultStoreError, ResultStuck, ResultTooLarge, SettingsError
from engine.settings import check_results
from engine.states import encode

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_TASK = re.compile(r"[\w.]{1,200}")
_INDEX = re.compile(r"[0-9a-z~]{1,64}(\.[0-9a-z~]{1,64}){0,4}")
_APP = re.compile(r"(?!\.{1,2}\Z)[\w.-]{1,200}")
#: Formats, in the order in which a result is looked for.
_FORMATS: tuple[Literal["json", "pickle"], ...] = ("json", "pickle")


class Stored(msgspec.Struct, frozen=True):
    """A result that is there."""

    #: URL of the file, free of credentials. For people and other programs: the engine never opens one.
    ref: str
    format: Literal["json", "pickle"]
    size: int


class ResultStore:
    """Saves and loads results of one app: ``<url>/<app>/<run_id>/<task>-<index>.<json|pickle>``; for many threads."""

    def __init__(self, url: str, app: str, max_bytes: int) -> None:
        """Raises SettingsError for a URL that is no store, or whose file system is not installed."""
        if not url:
            raise SettingsError("results", url, "names no result store", "Write file:///var/lib/engine/results, say.")
        check_results(url)
        if not _APP.fullmatch(app):
            raise SettingsError("app", app, "cannot be a folder of the result store", "Use letters, digits, . _ and -.")
        try:
            self._files: AbstractFileSystem
            self._files, root = fsspec.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise SettingsError(
                "results", url, f"cannot be used here: {error}", "Correct it, or install what it needs here and on the workers."
            ) from error
        self._url = f"{url.rstrip('/')}/{app}"
        self._root = f"{root.rstrip('/')}/{app}"
        self._max_bytes = max_bytes
        # A store that can rename gets a file whole by that. The others (object stores, memory) show a file when its last
        # byte is in, and their move would be a copy.
        self._can_rename = type(self._files).mv is not AbstractFileSystem.mv

    def save(self, run_id: str, task: str, index: str, value: Any, *, type: Any = None) -> str:
        """Write a result; answers its reference. A second attempt's replaces the first one's.

        Without ``type`` whatever can be JSON becomes JSON, for readers in any language. With the task's annotated return
        type (``Any`` where it has none) the value will stand in for the task's own: it becomes JSON only if it comes back
        equal from there, a tuple without annotation is pickled, say. Raises ResultTooLarge (nothing was written),
        ResultStuck and ResultStoreError.
        """
        name = _name(run_id, task, index)
        format, data = self._encode(task, value, type)
        with self._trouble(f"{self._url}/{name}.{format}", "cannot be written"):
            self._write(f"{self._root}/{name}.{format}", data)
            for other in _FORMATS:  # what an earlier attempt left, after ours is there: a reader always finds one
                if other != format and self._files.exists(f"{self._root}/{name}.{other}"):
                    with contextlib.suppress(FileNotFoundError):  # another attempt was quicker
                        self._files.rm_file(f"{self._root}/{name}.{other}")
        return f"{self._url}/{name}.{format}"

    def find(self, run_id: str, task: str, index: str) -> Stored | None:
        """The result if it is there; it is not read. Raises ResultStoreError."""
        name = _name(run_id, task, index)
        with self._trouble(f"{self._url}/{name}", "cannot be looked for"):
            # Some file systems remember listings, and the result may have been written on another machine since.
            self._files.invalidate_cache(f"{self._root}/{run_id}")
            for format in _FORMATS:
                with contextlib.suppress(FileNotFoundError):  # the other format then, or there is none
                    size = int(self._files.info(f"{self._root}/{name}.{format}")["size"] or 0)
                    return Stored(f"{self._url}/{name}.{format}", format, size)
        return None

    def load(self, run_id: str, task: str, index: str, type: Any = Any) -> Any:
        """The value of a result, JSON decoded as ``type``. Raises ResultMissing and ResultStoreError.

        What is not JSON is unpickled: the store is trusted like the workers' own code.
        """
        name = _name(run_id, task, index)
        found = self.find(run_id, task, index)
        if found is None:
            raise ResultMissing(f"{self._url}/{name}")
        with self._trouble(found.ref, "cannot be read"):
            try:
                data = self._files.cat_file(f"{self._root}/{name}.{found.format}")
            except FileNotFoundError as error:  # deleted since we looked
                raise ResultMissing(found.ref) from error
        try:
            return msgspec.json.decode(data, type=type) if found.format == "json" else pickle.loads(data)  # noqa: S301
        except Exception as error:  # a type that has changed, or whatever unpickling runs into
            cause = f"is not what this release of the handlers expects: {_text(error)}"
            raise ResultStoreError(found.ref, cause, "Run the task again, or with the handlers that wrote it.") from error

    def _encode(self, task: str, value: Any, type: Any) -> tuple[Literal["json", "pickle"], bytes]:
        data = _as_json(value, type)
        if data is not None:
            if len(data) > self._max_bytes:
                raise ResultTooLarge(task, len(data), self._max_bytes)
            return "json", data
        buffer = _Limited(task, self._max_bytes)
        try:
            cloudpickle.Pickler(buffer, protocol=5).dump(value)
        except ResultTooLarge:
            raise  # it came from the buffer, in the middle of pickling
        except Exception as error:  # whatever user code raises there
            raise ResultStuck(task, _qualname(value), _text(error)) from None
        return "pickle", buffer.getvalue()

    def _write(self, path: str, data: bytes) -> None:
        if not self._can_rename:
            self._files.pipe_file(path, data)
            return
        # No result has a name like this, so half a file of a killed worker is never found; it goes with its run.
        part = f"{path}-{uuid.uuid4().hex}.part"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self._files.pipe_file(part, data)
            self._files.mv(part, path)
        except BaseException:  # a full disk, a task out of time: it is raised on, less the debris
            with contextlib.suppress(Exception):  # what went wrong first is what counts
                self._files.rm_file(part)
            raise

    @contextlib.contextmanager
    def _trouble(self, ref: str, what: str) -> Iterator[None]:
        try:
            yield
        except (ResultMissing, ResultStoreError):
            raise  # said already
        except Exception as error:  # each file system has errors of its own
            remedy = "Check the setting `results`, and that workers and engine may use that place."
            raise ResultStoreError(ref, f"{what}: {_text(error)}", remedy) from error


class _Limited(io.BytesIO):
    """A file in memory that refuses to grow beyond the limit."""

    def __init__(self, task: str, limit: int) -> None:
        super().__init__()
        self._task, self._limit = task, limit

    def write(self, data: Any) -> int:
        size = self.tell() + memoryview(data).nbytes
        if size > self._limit:
            raise ResultTooLarge(self._task, size, self._limit)
        return super().write(data)


def _as_json(value: Any, type: Any) -> bytes | None:
    """``value`` as JSON; None where it cannot be that, or would not come back as it is."""
    try:
        data = encode(value)
        if type is not None:
            back = msgspec.json.decode(data, type=type)
            if back.__class__ is not value.__class__ or back != value:
                return None
    except Exception:  # any value may come, and its __eq__ may be anything: it is pickled
        return None
    return data


def _name(run_id: str, task: str, index: str) -> str:
    """Path of a result below the app's folder, without its ending; of nothing but what cannot leave that folder."""
    task = task or "result"  # the step that puts a flow's result together has no name
    for what, pattern, text in (("run_id", _RUN_ID, run_id), ("task", _TASK, task), ("index", _INDEX, index)):
        _check(what, pattern, text)
    return f"{run_id}/{task}-{index}"


def _check(what: str, pattern: re.Pattern[str], text: str) -> None:
    if not pattern.fullmatch(text):
        cause = f"{what} {text[:100]!r} cannot be part of the name of a result"
        raise ResultStoreError("(none)", cause, f"It must fit {pattern.pattern}.")


def _qualname(value: Any) -> str:
    return str(value.__class__.__qualname__)


def _text(error: BaseException) -> str:
    try:
        return f"{error.__class__.__name__}: {error}"
    except Exception:  # user code in __str__
        return error.__class__.__name__
