"""Flows whose events become dead letters: they fail where a file of the test is missing, and do well once it is there."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine import flow, on, task


class Errand(msgspec.Struct):
    name: str
    #: A file; the errand fails until it exists.
    needs: str = ""
    shop: str = ""


@task
def fetch(name: str, needs: str) -> str:
    if needs and not Path(needs).exists():
        raise LookupError(f"{needs} is missing")
    return name.upper()


@flow(on("errands", key=lambda event: event.data.shop), on_failure="dead-letter")
def errand(job: Errand) -> object:
    return fetch(job.name, job.needs)


@flow(on("packed-errands"), pack=True, on_failure="dead-letter")
def packed_errand(job: Errand) -> object:
    return fetch(job.name, job.needs)


@flow()
def by_hand(job: Errand) -> object:
    """Nothing starts it but a replay."""
    return fetch(f"{job.name} by hand", "")


@flow()
def by_hand_or_letter(job: Errand) -> object:
    """Nothing starts it but a person or a replay."""
    return fetch(job.name, job.needs)
