"""An engine of a trial: ``python -m tests.chaos.engine_process VARIANT run …`` is ``engine run …`` of that variant.

On SIGUSR1 it writes what its ledgers say into the file that the environment names.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

import engine.cli_run
from engine import checkpointer, checkpoints
from engine.app import App
from engine.broker import Broker
from engine.cli import main
from engine.executor import Executor
from engine.flows import Flow
from engine.settings import Settings
from tests.chaos.controls import VARIANTS
from tests.chaos.doomed import DoomedBroker, DoomedExecutor
from tests.chaos.histories import Snapshot
from tests.chaos.points import Life

#: Names the file for snapshots; the process's id is added.
SNAPSHOTS = "CHAOS_SNAPSHOTS"
#: Names the crash point and the passage at which this process is to die: "executor: after submit|2".
POINT = "CHAOS_POINT"


def snapshots(app: App) -> list[Snapshot]:
    """What an engine's ledgers say now."""
    ledgers = app._dispatcher._ledgers.values()
    return [
        Snapshot(
            ledger.partition,
            ledger.epoch,
            ledger.next_offset,
            {run.run_id: (run.state.value, run.seq) for run in ledger},
        )
        for ledger in ledgers
        if ledger.is_recovered
    ]


class _MortalLife(Life):
    """The life of a whole process: where it ends, the process does."""

    def reach(self, point: str) -> bool:
        if super().reach(point):
            os.kill(os.getpid(), signal.SIGKILL)
        return False


class _WatchedApp(App):
    """Tells what it knows when it is asked to, and dies at a point where it is doomed."""

    def __init__(self, settings: Settings, flows: Mapping[str, Flow[..., Any]], broker: Broker, executor: Executor) -> None:
        point, _, passage = os.environ.get(POINT, "").partition("|")
        if point:
            life = _MortalLife(point, int(passage))
            broker, executor = DoomedBroker(broker, life, settings.states_topic), DoomedExecutor(executor, life)
        super().__init__(settings, flows, broker, executor)

    async def run(self, *args: Any) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._dump)
        await super().run(*args)

    def _dump(self) -> None:
        file = Path(f"{os.environ[SNAPSHOTS]}.{os.getpid()}")
        written = file.with_suffix(".new")
        written.write_bytes(msgspec.json.encode(snapshots(self)))
        written.rename(file)  # whole, or not there


def checkpoint_often() -> None:
    """So that a trial sees many, in parts and with blocks of ids, though it lasts for minutes and not for days."""
    often = {"_RECORDS": 300, "_TIMES_ITS_SIZE": 1, "_QUIET_SECONDS": 5.0, "_HANDOVER_RECORDS": 50}
    for name, value in (often | {"PART_BYTES": 16_384, "BLOCK_IDS": 256}).items():
        setattr(checkpointer, name, value)
    checkpoints._INLINE_BYTES = 8_192


if __name__ == "__main__":
    checkpoint_often()
    engine.cli_run.App = _WatchedApp  # type: ignore[misc]
    VARIANTS[sys.argv[1]](setattr)
    main(sys.argv[2:])
