"""engine.projector where the database takes nothing, or is gone: it says so, waits, and ends with what the topics have."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from engine.history import History
from engine.history_store import HistoryStore
from engine.projector import Projector
from engine.settings import Settings
from engine.sqlite import SqliteWriter
from tests.dashboard_under_test import APP, a_log
from tests.history_records import STATES, Topics, a_run
from tests.waiting import eventually


class Disk(HistoryStore):
    """A database that may grow no further while the disk is full."""

    is_full = False

    def open(self, *, fresh: bool = False) -> bool:
        is_new = super().open(fresh=fresh)
        self.limit()
        return is_new

    def limit(self) -> None:
        assert isinstance(self.database, SqliteWriter)
        db = self.database.connection
        [pages] = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages if self.is_full else 1 << 30}")


def runs_of(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        return int(db.execute("SELECT count(*) FROM runs").fetchone()[0])
    finally:
        db.close()


async def test_a_full_disk_and_a_deleted_file_are_told_and_outlived(tmp_path: Path) -> None:
    broker, path, told = await a_log(), tmp_path / "history.db", list[str]()
    settings = Settings(app=APP, history=str(path), history_retention_seconds=1e10)
    topics, store = Topics(gaps=False), Disk(str(path), APP)

    def run_some(first: int) -> None:
        for number in range(first, first + 300):
            a_run(topics, f"{number:032x}")
        log = broker.log((STATES, 0))
        log += topics.records[len(log) :]
        broker.tell()

    projector = Projector(settings, broker, store)
    ready = asyncio.Event()
    running = asyncio.create_task(projector.run(ready.set, told.append))
    await ready.wait()
    store.is_full = True
    store.limit()
    run_some(0)
    await eventually(lambda: any("full" in trouble for trouble in told))
    assert not any(trouble == "" for trouble in told), "that it can be opened is no news"
    with History.open(str(path)) as history:
        assert history.runs().items == [], "pages answer from what is there"
    store.is_full = False
    await eventually(lambda: told[-1] == "")
    assert runs_of(path) == 300

    for file in [path, Path(f"{path}-wal"), Path(f"{path}-shm")]:
        file.unlink(missing_ok=True)
    await eventually(path.is_file)  # though nothing comes
    await eventually(lambda: told[-1] == "" and "deleted" in told[-2])
    assert runs_of(path) == 300
    projector.stop()
    await running
