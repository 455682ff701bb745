"""The commands of a user against a running stack: they speak only Kafka and HTTP."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import httpx

from engine.errors import EngineError
from engine.history import History
from engine.runs import run_id_of
from tests.acceptance.conftest import PATIENCE_SECONDS, SOURCE, Stack, command_environment, engine
from tests.waiting import eventually


async def test_the_ready_line_says_what_runs_where(stack: Stack) -> None:
    assert set(stack.ready) == {"kafka", "dask", "http", "jaeger", "otlp", "pid"}
    assert stack.ready["dask"].startswith("tcp://127.0.0.1:")
    assert stack.ready["pid"] == stack.process.pid
    async with httpx.AsyncClient(base_url=stack.ready["http"]) as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_an_event_becomes_a_run_whose_watcher_exits_0(stack: Stack) -> None:
    run_id = await stack.send("good", "ann")
    seen = await stack.tail("--run", run_id, "--flow", "process", "--count", "6")
    assert [change["seq"] for change in seen.lines] == [0, 1, 2, 3, 4, 5]
    assert seen.lines[0]["parameters"] == {"item": {"name": "ann"}}
    assert seen.lines[0]["event"]["id"] == "good"
    assert seen.lines[-1]["result"] == "ANN"
    watched = await engine("runs", "watch", run_id, *stack.where)
    assert watched.code == 0, watched.err
    assert "COMPLETED" in watched.out


async def test_a_run_that_fails_makes_its_watcher_exit_1(stack: Stack) -> None:
    run_id = await stack.send("failing", "bad")
    assert (await stack.tail("--run", run_id, "--state", "FAILED", "--count", "2")).code == 0
    watched = await engine("runs", "watch", run_id, "--json", *stack.where)
    assert watched.code == 1
    assert watched.lines[-1]["error"]["type"] == "ValueError"
    for_a_person = await engine("runs", "watch", run_id, *stack.where)
    assert "\\x1b[2J [bold]" in for_a_person.out
    assert "\x1b" not in for_a_person.out


async def test_ctrl_c_ends_a_tail_quietly(stack: Stack) -> None:
    await stack.send("to-tail", "ann")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", "states", "tail", "--from-beginning", "--json", *stack.where),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=command_environment(),
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


async def test_runs_are_listed_and_shown_from_the_topics_and_from_the_history_beside_the_engine(stack: Stack) -> None:
    good, bad = await stack.send("listed-good", "ann"), await stack.send("listed-bad", "bad")
    await stack.watch(good)
    await stack.watch(bad)
    first = await engine("runs", "ls", "--limit", "1", "--json", *stack.where)
    then = await engine("runs", "ls", "--limit", "1", "--json", "--cursor", first.lines[0]["cursor"], *stack.where)
    assert [run["run_id"] for run in first.lines + then.lines] == [bad, good]

    # What the projector of `engine dev` has written, which may be a moment behind.
    database = str(stack.log_file.parent / "cache" / "kafka-dask-engine" / stack.app / "history.db")
    await eventually(lambda: Path(database).is_file())
    await eventually(lambda: _is_failed(database, bad))
    failed = await engine("runs", "ls", "--state", "FAILED", "--since", "1h", *stack.where, "--history", database)
    assert failed.code == 0, failed.err
    assert bad in failed.out
    assert good not in failed.out

    shown = await engine("runs", "show", bad, "--json", *stack.where)
    [data] = shown.lines
    assert (data["run"]["state"], data["run"]["event_id"]) == ("FAILED", "listed-bad")
    assert data["run"]["parameters"] == {"item": {"name": "bad"}}
    [task] = data["task_runs"]
    [attempt] = task["attempts"]
    assert (task["name"], attempt["outcome"]) == ("shout/0", "FAILED")
    assert attempt["queued_at"] <= attempt["started_at"] <= attempt["ended_at"]
    assert [change["seq"] for change in data["changes"]] == [0, 1, 2, 3, 4, 5]
    for_a_person = await engine("runs", "show", bad[:16], *stack.where, "--history", database)
    assert for_a_person.code == 0, for_a_person.err
    assert "\\x1b[2J [bold]" in for_a_person.out
    assert "\x1b" not in for_a_person.out
    missing = await engine("runs", "show", "nope", *stack.where, "--history", database)
    assert missing.code == 3


def _is_failed(database: str, run_id: str) -> bool:
    try:
        with History.open(database) as found:
            run = found.run(run_id)
    except EngineError:
        return False  # its tables are being made
    return run is not None and run.state == "FAILED"


async def test_an_unknown_run_is_not_found(stack: Stack) -> None:
    await stack.send("some", "run")
    watched = await engine("runs", "watch", "nope", "--json", *stack.where)
    assert (watched.code, watched.out) == (3, "")
    assert '"NotFound"' in watched.err


async def test_an_event_over_http_becomes_a_run(stack: Stack) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "http", "ce-source": SOURCE, "ce-type": "item.made"}
    async with httpx.AsyncClient(base_url=stack.ready["http"]) as client:
        answer = await client.post("/events/items", json={"name": "web"}, headers=headers)
    assert answer.status_code == 202
    seen = await stack.tail("--run", run_id_of(stack.app, "process", SOURCE, "http"), "--count", "6")
    assert seen.lines[-1]["result"] == "WEB"


async def test_the_dashboard_answers_and_an_event_sent_from_its_form_becomes_a_run(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.ready["http"]) as client:
        for page in ("/", "/runs", "/flows", "/events", "/dead-letters", "/cluster", "/about"):
            answer = await client.get(page)
            assert answer.status_code == 200, (page, answer.text)
            assert "script-src 'self'" in answer.headers["content-security-policy"]
        form = {"topic": "items", "type": "item.made", "source": SOURCE, "id": "form", "data": '{"name": "form"}'}
        sent = await client.post("/send-event", data=form)
        assert sent.status_code == 204, sent.text
        foreign = await client.post("/send-event", data=form, headers={"origin": "https://evil.example"})
        assert foreign.status_code == 403
    seen = await stack.tail("--run", run_id_of(stack.app, "process", SOURCE, "form"), "--count", "6")
    assert seen.lines[-1]["result"] == "FORM"


async def test_a_file_of_events_names_its_bad_lines(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"name": "one"}\n{"name":\n{"name": "two"}\n')
    sent = await engine("events", "send", "items", "--file", str(file), "--json", "--kafka", stack.ready["kafka"])
    assert sent.code == 2
    assert sent.lines == [{"topic": "items", "sent": 2, "bad": 1}]
    assert f"{file}:2: not JSON" in sent.err


async def test_a_topic_that_does_not_exist_is_not_found(stack: Stack) -> None:
    sent = await engine("events", "send", "nowhere", "--data", "1", "--kafka", stack.ready["kafka"])
    assert sent.code == 3
    assert "topic nowhere: does not exist" in sent.err


async def test_a_run_is_started_by_hand_and_run_again_from_a_task(stack: Stack, tmp_path: Path) -> None:
    wrong = await engine("flows", "run", "summed", "--param", f"folder={tmp_path}", "--param", "times=x", *stack.where)
    assert wrong.code == 2
    assert "times: expected integer, got string" in wrong.err
    started = await engine("flows", "run", "summed", "--param", f"folder={tmp_path}", "--watch", "--json", *stack.where)
    assert started.code == 0, started.err
    assert (started.lines[-1]["result"], started.lines[0].get("event")) == (6, None)
    run_id = started.lines[0]["run_id"]

    # Beside the engine a projector is at work, which may or may not have come to this run.
    database = str(stack.log_file.parent / "cache" / "kafka-dask-engine" / stack.app / "history.db")
    again = await engine("runs", "rerun", run_id, "--from", "add", "--json", *stack.where, "--history", database)
    assert again.code == 0, again.err
    [told] = again.lines
    assert (told["repeats"], told["taken"], told["again"]) == (run_id, ["fetch/0"], ["add/1"])
    assert (await stack.watch(told["run_id"])).lines[-1]["result"] == 6
    assert (tmp_path / "fetched").read_text() == "x", "its result was taken from the store"
    unknown = await engine("runs", "rerun", run_id, "--from", "brew", *stack.where)
    assert unknown.code == 3
    assert "add, fetch" in unknown.err


async def test_of_each_event_it_is_told_what_became_of_it(stack: Stack, tmp_path: Path) -> None:
    for event_id, type, times in (
        ("sum", "sum.asked", 1),
        ("sum", "sum.asked", 1),
        ("none", "sum.asked", 0),
        ("odd", "odd", 1),
    ):
        await stack.send_event("sums", type, event_id, {"folder": str(tmp_path), "times": times})
    run_id = stack.run_id("summed", "sum")
    await stack.watch(run_id)

    async def fates() -> dict[str, list[tuple[str, str]]]:
        done = await engine("events", "ls", "sums", "--json", *stack.where)
        assert done.code == 0, done.err
        told: dict[str, list[tuple[str, str]]] = {}
        for one in reversed(done.lines):
            told.setdefault(one["id"], []).append((one["verdict"]["fate"], one["verdict"]["text"]))
        return told

    told = await fates()
    while any(fate == "waiting" for found in told.values() for fate, _ in found):
        told = await fates()  # its offsets are committed a moment later
    assert sorted(told["sum"]) == [
        ("duplicate", f"duplicate of the event that made summed {run_id}"),
        ("ran", f"made summed {run_id} COMPLETED"),
    ]
    assert told["none"][0] == ("where", "the where of summed (line 28) said no")
    assert told["odd"] == [("no-trigger", "no trigger takes type odd; triggers take sum.asked")]


async def test_doctor_finds_all_well_and_says_what_is_not(stack: Stack) -> None:
    where = [str(stack.handlers), *stack.where, "--dask", stack.ready["dask"], "--json"]
    well = await engine("doctor", *where)
    assert well.code == 0, well.out
    assert {"Kafka", "Dask scheduler", "versions", "handlers on the workers"} <= {check["check"] for check in well.lines}
    ill = await engine("doctor", *where, environment={"ENGINE_STATE_PARTITIONS": "3"})
    assert ill.code == 1
    (wrong,) = [check for check in ill.lines if not check["ok"]]
    assert wrong["check"] == "topic accept.states"
    assert "state_partitions = 8" in wrong["remedy"]


async def test_a_changed_handler_is_loaded_anew_and_a_broken_one_is_not(stack: Stack) -> None:
    good = stack.handlers.read_text()
    stack.handlers.write_text("from nowhere import nothing\n")
    await eventually(lambda: "does not load; the old handlers go on" in stack.log)
    folder = stack.handlers.parent
    hooked, log = folder / "hooked", folder / "cache" / "kafka-dask-engine" / stack.app / "logs" / "notify.log"
    hook = f"def note(change):\n    open({str(hooked)!r}, 'a').write(change.run_id)\n\n@flow("
    changed = good.replace(".upper()", ".title()").replace("@flow(", hook)
    stack.handlers.write_text(changed.replace('"item.made")', '"item.made"), on_state={"COMPLETED": note}'))
    await eventually(lambda: "\nreloaded\n" in stack.log)
    await eventually(lambda: log.is_file() and "notifier listens" in log.read_text())
    run_id = await stack.send("after-reload", "changed")
    seen = await stack.tail("--run", run_id, "--count", "6")
    assert seen.lines[-1]["result"] == "Changed"
    await eventually(lambda: hooked.is_file() and run_id in hooked.read_text())
