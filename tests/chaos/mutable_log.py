"""The state topic of a history, to be changed: what mutations and tests plant their faults with."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tests.chaos.histories import Histories, Logged

ENDS = ("completed", "failed", "crashed", "cancelled")


def data_of(record: Logged) -> dict[str, Any]:
    """What a record says; nothing where that is no object of JSON."""
    try:
        found = json.loads(record.value or "")
    except ValueError:
        return {}  # a letter's value, or planted
    return found if isinstance(found, dict) else {}


def kind_of(record: Logged) -> str:
    """Its type without the word before it: ``flow_run.completed``."""
    return record.headers.get("ce_type", "").removeprefix("engine.")


def run_of(record: Logged) -> str:
    return record.headers.get("ce_subject", "")


def with_data(record: Logged, **data: Any) -> Logged:
    """The record, saying something else."""
    return msgspec.structs.replace(record, value=json.dumps(data_of(record) | data))


class Log:
    """The state topic of a history, to be changed."""

    def __init__(self, histories: Histories) -> None:
        self._histories = histories
        ours = [one for one in histories.logged if one.topic == histories.states_topic]
        # Checkpoints name offsets, which move here; they have mutations of their own.
        kept = [one for one in ours if kind_of(one) in ("ownership", "cancellation") or "_run." in kind_of(one)]
        self.records = sorted(kept, key=lambda one: (one.partition, one.offset))

    def changes(self) -> list[Logged]:
        """Everything that its owner has told of a run: all but its SCHEDULED."""
        return [one for one in self.records if "_run." in kind_of(one) and kind_of(one) != "flow_run.scheduled"]

    def scheduled(self) -> list[Logged]:
        """The first of each run."""
        found: dict[str, Logged] = {}
        for one in self.records:
            if kind_of(one) == "flow_run.scheduled":
                found.setdefault(run_of(one), one)
        return list(found.values())

    def ends(self) -> list[Logged]:
        """The runs' own."""
        return [one for one in self.changes() if kind_of(one).startswith("flow_run.") and kind_of(one).endswith(ENDS)]

    def inner(self) -> list[Logged]:
        """Changes that are neither a run's first nor its own end."""
        ends = self.ends()
        return [one for one in self.changes() if one not in ends]

    def of(self, run_id: str) -> list[Logged]:
        """All changes of one run."""
        return [one for one in self.records if run_of(one) == run_id and "_run." in kind_of(one)]

    def cancellations(self) -> list[Logged]:
        return [one for one in self.records if kind_of(one) == "cancellation"]

    def histories(self, *, keep_epochs: bool = False) -> Histories:
        """The histories with this topic, each partition numbered anew; what refers to offsets refers to the new ones.

        With ``keep_epochs`` the changes' epochs are those of the new numbers already.
        """
        numbers: dict[int, int] = {}
        moved: dict[tuple[int, int], int] = {}
        renumbered = []
        for one in self.records:
            offset = numbers.get(one.partition, 0)
            numbers[one.partition] = offset + 1
            moved.setdefault((one.partition, one.offset), offset)
            renumbered.append(msgspec.structs.replace(one, offset=offset))
        records = []
        for one in [] if keep_epochs else renumbered:
            old = data_of(one).get("epoch")
            is_known = old is not None and (one.partition, old) in moved and kind_of(one) != "flow_run.scheduled"
            records.append(with_data(one, epoch=moved[one.partition, old]) if is_known else one)
        others = [one for one in self._histories.logged if one.topic != self._histories.states_topic]
        # Offsets that were looked at belong to the old numbers.
        return msgspec.structs.replace(self._histories, logged=[*(records or renumbered), *others], committed=[], snapshots=[])
