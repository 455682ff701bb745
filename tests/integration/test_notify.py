"""`engine notify` on real Kafka beside a running engine: killed and started again it tells of all, and shows no address."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from engine.settings import Settings
from engine.signatures import is_genuine
from tests.integration import flows_notify
from tests.integration.conftest import Apps
from tests.receiver import Receiver, answering
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
TOKEN = "T0K3N-s3cr3t-9f"
SECRET = "both-sides-kn0w"


async def notifier(settings: Settings, folder: Path, **environment: str) -> asyncio.subprocess.Process:
    quick = {"ENGINE_GRACE_SECONDS": "0.5", "ENGINE_SESSION_TIMEOUT_SECONDS": "3", "ENGINE_LOG_LEVEL": "DEBUG"}
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "engine", "notify", "tests.integration.flows_notify", "--json"),
            *("--app", settings.app, "--kafka", settings.kafka),
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | quick | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    assert b'"targets":5' in (line := await process.stdout.readline()), line
    return process


async def test_killed_in_the_middle_it_tells_all_and_a_target_that_hangs_delays_no_other_and_no_run(
    apps: Apps, tmp_path: Path
) -> None:
    app = await apps.start(flows_notify.half)
    async with Receiver() as receiver:
        receiver.answer = lambda request: None if "hang" in request.path else answering(204)
        hook_file = tmp_path / "hooked"
        url = receiver.url(f"/{TOKEN}/rule", scheme="json")
        table = f'[[rules]]\nname = "first"\nstates = ["FAILED"]\nto = [{{url = "{url}"}}]\n'
        (tmp_path / "engine.toml").write_text(table)
        environment = {
            "GOOD_URL": receiver.url(f"/{TOKEN}/good"),
            "HANGING_URL": receiver.url(f"/{TOKEN}/hang"),
            "APPRISE_URL": receiver.url(f"/{TOKEN}/apprise", scheme="json"),
            "HOOK_SECRET": SECRET,
            "HOOK_FILE": str(hook_file),
        }

        def told(path: str) -> set[str]:
            bodies = receiver.bodies(f"/{TOKEN}/{path}")
            return {body["change"]["run_id"] for body in bodies if "change" in body and "rule" not in body}

        def runs(numbers: range) -> set[str]:
            return {app.run_id("half", str(n)) for n in numbers if n % 2}

        process = await notifier(app.settings, tmp_path, **environment)
        try:
            await app.send_many("numbers", [(str(n), {"n": n}) for n in range(20)])
            await eventually(lambda: told("good"))
        finally:
            # Wherever it is just then: some are told, some are not, and one target has taken nothing.
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await app.send_many("numbers", [(str(n), {"n": n}) for n in range(20, 40)])
        await eventually(lambda: len(app.ends()) == 40)
        process = await notifier(app.settings, tmp_path, **environment)
        try:
            await eventually(lambda: told("good") == runs(range(40)))
            await eventually(lambda: len({r.json["message"] for r in receiver.requests if r.path.endswith("/apprise")}) == 20)
            await eventually(lambda: len({r.json["message"] for r in receiver.requests if r.path.endswith("/rule")}) == 20)
            evens = {app.run_id("half", str(n)) for n in range(0, 40, 2)}
            await eventually(lambda: set(hook_file.read_text().split()) == evens)
            assert told("hang")
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    good = [request for request in receiver.requests if request.path.endswith("/good")]
    for request in good:
        timestamp = request.headers["x-engine-timestamp"]
        assert is_genuine(SECRET, timestamp, request.headers["x-engine-signature"], request.body, float(timestamp))
    many = {request.headers["x-engine-delivery"] for request in good if request.json.get("rule") == "many"}
    assert len(many) == 1, "one episode, however often it was told"
    log = (tmp_path / "log").read_text()
    assert "notifier listens" in log
    topics = (app.settings.states_topic, app.settings.dead_letters_topic)
    records = [record for topic in topics for record in await app.records(topic)]
    assert records
    shown = log.encode() + repr(records).encode()
    assert TOKEN.encode() not in shown
    assert SECRET.encode() not in shown
