"""Runs listed and shown: by the projector that ``engine dev`` has beside it, and straight from the topics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.conftest import Done, Stack, engine
from tests.waiting import PATIENCE_SECONDS


def database(stack: Stack) -> Path:
    """Where ``engine dev`` keeps its history."""
    return stack.log_file.parent / "cache" / "kafka-dask-engine" / stack.app / "history.db"


async def listed(stack: Stack, *arguments: str, until: int) -> Done:
    """``runs ls`` until it has so many lines: the history is a moment behind."""
    for _ in range(int(PATIENCE_SECONDS)):
        done = await engine("runs", "ls", "--json", *stack.where, *arguments)
        if done.code != 0 or len(done.lines) >= until:
            break
    return done


@pytest.mark.parametrize("from_database", [True, False])
async def test_runs_are_listed_by_state_and_page_after_page(stack: Stack, from_database: bool) -> None:
    good, bad = await stack.send("listed-good", "ann"), await stack.send("listed-bad", "bad")
    for run_id in (good, bad):
        await stack.watch(run_id)
    where = ["--history", str(database(stack))] if from_database else []
    failed = await listed(stack, "--state", "FAILED", "--flow", "process", "--since", "1h", *where, until=1)
    assert (failed.code, [run["run_id"] for run in failed.lines]) == (0, [bad]), failed.err
    assert failed.lines[0]["error_type"] == "ValueError"
    both = await listed(stack, "--flow", "process", *where, until=2)
    assert {good, bad} <= {run["run_id"] for run in both.lines}
    first = await listed(stack, "--limit", "1", *where, until=1)
    then = await listed(stack, "--limit", "1", "--cursor", first.lines[0]["cursor"], *where, until=1)
    assert [run["run_id"] for run in first.lines + then.lines] == [run["run_id"] for run in both.lines[:2]]
    for_a_person = await engine("runs", "ls", *stack.where, *where)
    assert for_a_person.code == 0
    assert good in for_a_person.out
    assert "\x1b" not in for_a_person.out


async def test_a_run_is_shown_with_its_tasks_attempts_and_changes(stack: Stack) -> None:
    run_id = await stack.send("shown", "bad")
    await stack.watch(run_id)
    shown = await engine("runs", "show", run_id, "--json", *stack.where)
    assert shown.code == 0, shown.err
    [data] = shown.lines
    assert (data["run"]["state"], data["run"]["event_id"]) == ("FAILED", "shown")
    assert data["run"]["parameters"] == {"item": {"name": "bad"}}
    [task] = data["task_runs"]
    [attempt] = task["attempts"]
    assert (task["name"], attempt["outcome"]) == ("shout/0", "FAILED")
    assert attempt["queued_at"] <= attempt["started_at"] <= attempt["ended_at"]
    assert [change["seq"] for change in data["changes"]] == [0, 1, 2, 3, 4, 5]
    for_a_person = await engine("runs", "show", run_id[:16], *stack.where)
    assert for_a_person.code == 0
    assert "\\x1b[2J [bold]" in for_a_person.out
    assert "\x1b" not in for_a_person.out


async def test_a_run_that_is_not_there_and_a_cursor_that_is_none_are_errors(stack: Stack) -> None:
    missing = await engine("runs", "show", "nope", *stack.where)
    assert missing.code == 3
    assert "engine runs ls" in missing.err
    wrong = await engine("runs", "ls", "--cursor", "x", *stack.where)
    assert wrong.code == 2


async def test_a_history_without_a_name_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    unnamed = await engine("history", "rebuild")
    assert unnamed.code == 2
    assert "--history" in unnamed.err
    other = await engine("history", "run", "--history", "postgres://user:secret@db/x")
    assert other.code == 2
    assert "secret" not in other.err
    text = tmp_path / "letter.txt"
    text.write_text("dear friend, " * 100)
    refused = await engine("history", "run", "--history", str(text), "--kafka", "127.0.0.1:1")
    assert refused.code == 1
    assert "no SQLite database" in refused.err
