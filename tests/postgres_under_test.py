"""A real PostgreSQL for the tests: a cluster of its own from the binaries that are installed, on a free port of loopback."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import psycopg

#: Whom it runs as where the tests run as root, which it refuses: ``nobody``.
_NOBODY = 65_534
_START_SECONDS = 60.0
USER, PASSWORD = "ada", "l0ve/lace@1"  # with what has to be encoded in a URL
_ENCODED = "l0ve%2Flace%401"
#: What nobody will miss when the machine loses power.
_OPTIONS = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "unix_socket_directories=",
    "log_min_messages=fatal",
    # A test of many examples keeps the stores of all of them open.
    "max_connections=500",
)


class NoPostgres(Exception):
    """Raised where there is no PostgreSQL, with the reason."""


def program(name: str) -> str:
    """A program of PostgreSQL's. Raises NoPostgres where it is not installed."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(places[-1]) if places else shutil.which(name)
    if found is None:
        raise NoPostgres(f"no {name}: install PostgreSQL (apt-get install postgresql)")
    return found


class PostgresUnderTest:
    """Started when it is made. Raises NoPostgres."""

    def __init__(self) -> None:
        initdb, self._postgres = program("initdb"), program("postgres")
        # Not in pytest's own folder, into which nobody else may look.
        self._folder = Path(tempfile.mkdtemp(prefix="engine-postgres-"))
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        try:
            self._initdb(initdb)
            self.start()
        except BaseException:
            self.close()
            raise

    def _initdb(self, initdb: str) -> None:
        words = self._folder / "word"
        words.write_text(PASSWORD)
        if os.getuid() == 0:
            for path in (self._folder, words):
                os.chown(path, _NOBODY, _NOBODY)
        command = [initdb, "-D", str(self._data), "-U", USER, "--pwfile", str(words), "-A", "scram-sha-256"]
        command = [*_as_nobody(), *command, "-E", "UTF8", "--locale=C", *_people_order(initdb), "--no-sync"]
        made = subprocess.run(command, capture_output=True, check=False, cwd="/")
        if made.returncode != 0:
            raise NoPostgres(f"initdb: {made.stderr.decode(errors='replace').strip()[-500:]}")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def start(self) -> None:
        """Start it again, with what is in it."""
        options = [word for option in (*_OPTIONS, f"port={self.port}", "listen_addresses=127.0.0.1") for word in ("-c", option)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_nobody(), self._postgres, "-D", str(self._data), *options], stdout=log, stderr=log, cwd="/"
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._folder / "log").read_text(errors="replace").strip()[-500:]
                    raise NoPostgres(f"postgres: {error} {said}") from error
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it; connections are cut."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(2)  # fast: it waits for nobody
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def cpu_seconds(self) -> float:
        """What it and all of its processes have spent."""
        if self._process is None:
            return 0.0
        server = psutil.Process(self._process.pid)
        spent = sum(server.cpu_times()[:4])  # with its children that have ended
        for child in server.children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                spent += sum(child.cpu_times()[:2])
        return spent

    def close(self) -> None:
        """Stop it, and leave nothing behind."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, schema: str = "public", *, password: str = _ENCODED) -> str:
        """Where a schema is; it need not be there."""
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/postgres?options=-csearch_path%3D{schema}"

    def schema(self) -> str:
        """The URL of a new and empty schema."""
        name = f"test_{next(self._numbers)}"
        self.run(f"CREATE SCHEMA {name}")
        return self.url(name)

    def run(self, statement: str, url: str | None = None) -> None:
        """Run a statement as somebody else would."""
        with psycopg.connect(url or self.url(), autocommit=True) as db:
            db.execute(statement.encode())


def _people_order(initdb: str) -> list[str]:
    """By which text is sorted as people do, not by its code points, where the history does not ask for those."""
    said = subprocess.run([initdb, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"(\d+)", said)
    return ["--locale-provider=icu", "--icu-locale=en-US"] if version and int(version[1]) >= 15 else []


def _as_nobody() -> list[str]:
    """Before a command: as a user that PostgreSQL runs as, and gone with us should we be killed."""
    setpriv = shutil.which("setpriv")
    if os.getuid() == 0:
        if setpriv is None:
            raise NoPostgres("PostgreSQL does not run as root, and there is no setpriv to become nobody")
        return [setpriv, f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--pdeathsig=INT"]
    return [setpriv, "--pdeathsig=INT"] if setpriv else []


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
