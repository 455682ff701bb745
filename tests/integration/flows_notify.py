"""What the notifier's own test tells of, and whom."""

from __future__ import annotations

import os
from pathlib import Path

from engine import State, StateChange, flow, notify, on, rule, task, webhook


def note(change: StateChange) -> None:
    with Path(os.environ["HOOK_FILE"]).open("a") as file:
        file.write(f"{change.run_id}\n")


GOOD = webhook(env="GOOD_URL", secret_env="HOOK_SECRET")
HANGING = webhook(env="HANGING_URL", secret_env="HOOK_SECRET")


@task
def halve(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n // 2


@flow(on("numbers"), on_state={State.FAILED: [HANGING, GOOD, notify(env="APPRISE_URL")], State.COMPLETED: note})
def half(n: int) -> int:
    return halve(n)


RULES = [rule("many", to=GOOD, failures=3, within_seconds=3_600)]
