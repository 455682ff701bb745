"""The dashboard's projector as a process, on real Kafka: two on one database, and one that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import psutil
import pytest

from engine.broker import TopicSpec
from engine.history_opener import is_in_use
from engine.kafka import KafkaBroker
from engine.projector_process import ProjectorProcess
from engine.settings import Settings
from tests.waiting import eventually


def projector_of(parent: psutil.Process) -> list[psutil.Process]:
    return [child for child in parent.children(recursive=True) if is_projector(child)]


def is_projector(process: psutil.Process) -> bool:
    try:
        return "history" in process.cmdline()
    except psutil.NoSuchProcess:
        return False  # on its way out


async def test_one_of_two_writes_and_the_other_takes_over(
    tmp_path: Path, kafka_settings: Settings, kafka_broker: KafkaBroker, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "folder" / "history.db")
    settings = msgspec.structs.replace(kafka_settings, app="two-dashboards", history=path)
    own = (settings.states_topic, settings.dead_letters_topic, settings.logs_topic)
    await kafka_broker.ensure_topics([TopicSpec(topic, 1) for topic in own])
    first, second = ProjectorProcess(settings, os.environ), ProjectorProcess(settings, os.environ)
    first_running = asyncio.create_task(first.run())
    await eventually(lambda: not first.trouble)
    second_running = asyncio.create_task(second.run())
    await eventually(lambda: second.is_elsewhere)
    assert not second.trouble, "its pages need not say that anything is wrong"
    [projector] = projector_of(psutil.Process())
    assert os.getpgid(projector.pid) != os.getpgid(0), "Ctrl-C in a terminal is for its dashboard alone"

    # Killed, it is started again by its own dashboard or by the other one: whoever looks first.
    projector.send_signal(signal.SIGKILL)
    await eventually(lambda: any(one.pid != projector.pid for one in projector_of(psutil.Process())))
    first.stop()
    await first_running
    await eventually(lambda: not second.is_elsewhere and not second.trouble)
    await eventually(lambda: is_in_use(path))

    # A folder that is no folder any more: no record need come for that to be seen, and to be over.
    folder = Path(path).parent
    folder.rename(tmp_path / "gone")
    folder.write_text("")
    await eventually(lambda: path in second.trouble)
    assert "history waits" in capfd.readouterr().err, "its log is ours"
    folder.unlink()
    await eventually(lambda: not second.trouble and is_in_use(path))
    second.stop()
    await second_running
    assert not is_in_use(path)
    assert not projector_of(psutil.Process())
