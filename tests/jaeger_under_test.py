"""A real Jaeger v2 for the tests: the one on PATH, or one built from its own sources, every checksum verified, and kept.

``python -m tests.jaeger_under_test`` builds it where there is none, which takes about five minutes; then it only looks.
It ends with 3 where there is no Go that can.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs

#: The Go module of Jaeger 2.13.
VERSION = "1.76.0"
MODULE = "github.com/jaegertracing/jaeger"
_LEAST_GO = (1, 24)
_BUILD_SECONDS = 1_800.0
#: Exit code where there is neither a Jaeger nor what could make one.
_NONE = 3


class NoJaeger(Exception):
    """Raised where there is no Jaeger, with the reason."""


def find() -> Path:
    """The program. Raises NoJaeger where it was neither installed nor built."""
    built = _kept()
    if os.access(built, os.X_OK):
        return built
    installed = shutil.which("jaeger")
    if installed is not None:
        return Path(installed)
    if go() is None:
        raise NoJaeger("no jaeger binary and no Go")
    raise NoJaeger("no jaeger binary yet: build it with `python -m tests.jaeger_under_test`")


def go() -> str | None:
    """The Go that can build it; None where there is none, or one that is too old."""
    found = shutil.which("go")
    if found is None:
        return None
    said = subprocess.run([found, "version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"go(\d+)\.(\d+)", said)
    return found if version and tuple(map(int, version.groups())) >= _LEAST_GO else None


def build() -> Path:
    """Build it, unless somebody has. Raises NoJaeger, or CalledProcessError with what Go said on standard error."""
    folder = _kept().parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return find()
        except NoJaeger:
            if (program := go()) is None:
                raise
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = _build(program, Path(scratch))
            made.replace(_kept())  # at once: nobody sees half of it
    return _kept()


def _build(program: str, folder: Path) -> Path:
    """From a module of our own with Jaeger's own pins and sums: the checksum database does not know all it depends on."""
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GOWORK": "off"}

    def run(*words: str) -> str:
        command, out = [program, *words], subprocess.PIPE
        return subprocess.run(
            command, cwd=folder, env=environment, stdout=out, text=True, timeout=_BUILD_SECONDS, check=True
        ).stdout

    source = Path(json.loads(run("mod", "download", "-json", f"{MODULE}@v{VERSION}"))["Dir"])
    pins = re.sub(r"(?m)^module .*$", "module build", (source / "go.mod").read_text())
    (folder / "go.mod").write_text(f"{pins}\nrequire {MODULE} v{VERSION}\n")
    (folder / "go.sum").write_bytes((source / "go.sum").read_bytes())
    run("build", "-o", "jaeger", f"{MODULE}/cmd/jaeger")
    return folder / "jaeger"


def _kept() -> Path:
    return platformdirs.user_cache_path("kafka-dask-engine") / f"jaeger-{VERSION}" / "jaeger"


if __name__ == "__main__":
    try:
        print(build())
    except NoJaeger as error:
        print(error, file=sys.stderr)
        sys.exit(_NONE)
