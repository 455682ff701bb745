"""Dead letters, replays and repeats by the commands of a user against a running stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.runs import repeat_id_of
from tests.acceptance.conftest import Stack, engine
from tests.waiting import eventually

HANDLERS = """
import pathlib
import time
import msgspec
from engine import flow, on, task

NEEDED = pathlib.Path(__file__).with_name("money")

class Item(msgspec.Struct):
    name: str

@task
def buy(name: str) -> str:
    if name == "dear" and not NEEDED.exists():
        raise LookupError("no money \\x1b[2J [bold]")
    return name.upper()

@task
def linger(item: Item) -> None:
    while True:
        NEEDED.with_name("lingers").touch()
        time.sleep(0.01)

@flow(on("items", type="item.lingers"))
def stay(item: Item):
    return linger(item)

@flow(on("items", type="item.made"), on_failure="dead-letter")
def process(item: Item):
    return buy(item.name)
"""


@pytest.fixture(scope="module")
def shop(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("shop")
    handlers = folder / "buying.py"
    handlers.write_text(HANDLERS)
    running = Stack(folder, "letters", ["--kafka", kafka, "--workers", "1", "--json"], handlers=handlers)
    try:
        running.wait_ready()
        yield running
    finally:
        code, rest = running.stop()
    assert (code, rest) == (0, b""), running.log


async def letters(shop: Stack, *arguments: str) -> list[dict[str, object]]:
    done = await engine("dead-letters", "ls", "--json", *arguments, *shop.where)
    assert done.code == 0, done.err
    return done.lines


async def ended(shop: Stack, run_id: str) -> list[dict[str, object]]:
    seen = await shop.tail("--run", run_id, "--state", "COMPLETED", "--state", "FAILED", "--count", "2")
    assert seen.code == 0, seen.err
    return (await shop.watch(run_id)).lines


async def test_a_poison_record_is_mended_replayed_once_and_hidden(shop: Stack, tmp_path: Path) -> None:
    await shop.send_event("items", "item.made", "poison", {"name": 7})
    run_id = shop.run_id("process", "poison")
    [letter] = await _eventually_letters(shop, "--reason", "invalid-parameters")
    assert (letter["flow"], letter["topic"], letter["status"]) == ("process", "items", "open")
    assert "$.name" in str(letter["error"])
    shown = await engine("dead-letters", "show", str(letter["id"]), "--json", *shop.where)
    assert json.loads(shown.lines[0]["value"])["name"] == 7
    assert {"name": "ce_id", "value": "poison"} in shown.lines[0]["headers"]
    mended = tmp_path / "mended.json"
    mended.write_text('{"name": "tea"}')
    command = ["dead-letters", "replay", str(letter["id"]), "--value", str(mended), "--replay-id", "mine", "--json"]
    for _ in range(2):
        done = await engine(*command, *shop.where)
        assert (done.code, done.lines) == (0, [{"letter": letter["id"], "replay": "mine"}])
    changes = await ended(shop, repeat_id_of(run_id, "mine"))
    assert changes[-1]["result"] == "TEA"
    assert changes[0]["event"]["replay"]["letter"] == letter["id"]  # type: ignore[index]
    assert await letters(shop, "--reason", "invalid-parameters") == []
    [after] = await letters(shop, "--reason", "invalid-parameters", "--all")
    assert (after["status"], after["replays"]) == ("replayed", 1)


async def test_a_failed_run_is_a_letter_that_steers_no_terminal_and_can_be_dropped_retried_and_rerun(shop: Stack) -> None:
    run_id = await shop.send("dear", "dear")
    assert (await ended(shop, run_id))[-1]["state"] == "FAILED"
    [letter] = await letters(shop, "--reason", "run-failed", "--flow", "process", "--since", "1h", "--limit", "5")
    assert letter["run_id"] == run_id
    for command in (["ls", "--all"], ["show", str(letter["id"])]):
        done = await engine("dead-letters", *command, *shop.where)
        assert done.code == 0
        assert "\x1b" not in done.out
        assert "no money" in " ".join(done.out.split())
    dropped = await engine("dead-letters", "drop", "--reason", "run-failed", "--json", *shop.where)
    assert dropped.lines == [{"letter": letter["id"]}]
    assert await letters(shop, "--reason", "run-failed") == []
    [after] = await letters(shop, "--reason", "run-failed", "--all")
    assert after["status"] == "dropped"
    shop.handlers.with_name("money").touch()
    # The same request makes one run, sent as often as one likes.
    ids = set()
    for _ in range(2):
        done = await engine("runs", "retry", run_id, "--request-id", "r", "--json", *shop.where)
        assert done.code == 0, done.err
        assert done.lines[0]["repeats"] == run_id
        ids.add(done.lines[0]["run_id"])
    [retried] = ids
    changes = await ended(shop, retried)
    assert (changes[0]["repeats"], changes[-1]["result"]) == (run_id, "DEAR")
    assert changes[0]["event"] == (await shop.watch(run_id)).lines[0]["event"]
    refused = await engine("runs", "retry", retried, *shop.where)
    assert refused.code == 1
    assert "engine runs rerun" in refused.err
    again = await engine("runs", "rerun", retried, *shop.where)
    assert (await ended(shop, again.out.strip()))[-1]["result"] == "DEAR"


async def test_a_run_is_cancelled_once_and_can_be_run_again(shop: Stack) -> None:
    await shop.send_event("items", "item.lingers", "long", {"name": "tea"})
    run_id = shop.run_id("stay", "long")
    lingers = shop.handlers.with_name("lingers")
    await eventually(lingers.exists)
    done = await engine("runs", "cancel", run_id, "--reason", "wrong [bold]price\x1b", "--json", *shop.where)
    assert (done.code, done.lines) == (0, [{"run_id": run_id, "cancelling": True}])
    watched = await shop.watch(run_id)
    assert watched.code == 1
    ends = [(line.get("task"), line["state"], line["reason"]) for line in watched.lines[-2:]]
    assert ends == [("linger", "CANCELLED", "cancelled"), (None, "CANCELLED", "wrong [bold]price\x1b")]
    shown = await engine("runs", "watch", run_id, *shop.where)
    assert "\x1b" not in shown.out
    assert "[bold]price" in shown.out

    def stays_away() -> bool:
        lingers.unlink(missing_ok=True)
        return not lingers.exists()

    await eventually(stays_away)
    twice = await engine("runs", "cancel", run_id, *shop.where)
    assert twice.code == 1
    assert "CANCELLED already" in twice.err
    again = await engine("runs", "retry", run_id, *shop.where)
    assert again.code == 0, again.err
    assert (await engine("runs", "cancel", again.out.strip(), *shop.where)).code == 0
    assert (await shop.watch(again.out.strip())).lines[-1]["state"] == "CANCELLED"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["runs", "retry", "0" * 32], 3),
        (["runs", "rerun", "nothing"], 3),
        (["runs", "cancel", "0" * 32], 3),
        (["dead-letters", "show", "0/9999"], 3),
        (["dead-letters", "show", "nonsense"], 2),
        (["dead-letters", "drop"], 2),
        (["dead-letters", "replay", "0/1", "--reason", "run-failed"], 2),
        (["dead-letters", "ls", "--since", "yesterday"], 2),
    ],
)
async def test_what_cannot_be_meant_is_refused_with_the_next_step(shop: Stack, arguments: list[str], code: int) -> None:
    done = await engine(*arguments, *shop.where)
    assert done.code == code, done.err
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err


async def _eventually_letters(shop: Stack, *arguments: str) -> list[dict[str, object]]:
    for _ in range(50):
        if found := await letters(shop, *arguments):
            return found
    raise AssertionError("no dead letter came")
