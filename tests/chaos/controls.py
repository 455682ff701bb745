"""Faulty engines, for the negative controls: each leaves out one thing that the promises rest on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from engine import letter_writer, repeats, translator
from engine.broker import Record
from engine.intake import Intake
from engine.ledger import Ledger
from engine.seen import Seen
from engine.states import Epochs
from engine.untold import Untold
from tests.chaos.doomed import DoomedSource

#: ``setattr``, or that of pytest's monkeypatch.
SetAttribute = Callable[[Any, str, Any], None]


def sound(_: SetAttribute) -> None:
    """The engine as it is."""


def dedup_off(set_attribute: SetAttribute) -> None:
    """No id is ever known again once its run has ended."""
    set_attribute(Seen, "__contains__", lambda self, id_: False)


def ids_at_random(set_attribute: SetAttribute) -> None:
    """A run's id does not come from its event."""
    set_attribute(translator, "run_id_of", lambda *identity: os.urandom(16).hex())


def automatic_commits(set_attribute: SetAttribute) -> None:
    """What was polled is committed, as Kafka's clients do unless they are told otherwise. In memory only."""
    poll = DoomedSource.poll

    async def polled(self: DoomedSource, **how: Any) -> list[Record]:
        records = await poll(self, **how)
        await self.commit({(record.topic, record.partition): record.offset + 1 for record in records})
        return records

    set_attribute(DoomedSource, "poll", polled)


def commit_before_send(set_attribute: SetAttribute) -> None:
    """The intake commits, and then writes what the records became."""
    take = Intake._take

    async def taken(self: Intake, records: list[Record]) -> None:
        self._done.update({(record.topic, record.partition): record.offset + 1 for record in records})
        self._committed_at = 0.0
        await self._commit()
        await take(self, records)

    set_attribute(Intake, "_take", taken)


def epochs_ignored(set_attribute: SetAttribute) -> None:
    """Whatever lies on the state topic counts, whoever wrote it."""
    set_attribute(Epochs, "admits", lambda self, change: True)


def letters_forgotten(set_attribute: SetAttribute) -> None:
    """The end of a failed run waits for no letter."""
    set_attribute(letter_writer.LetterWriter, "takes", lambda self, change: False)


def cancellations_forgotten(set_attribute: SetAttribute) -> None:
    """Nobody ends a run because somebody wants it."""

    def passed_by(self: Ledger, offset: int, cancellation: object) -> None:
        self.skip(offset)

    set_attribute(Ledger, "cancel", passed_by)


def repeats_at_random(set_attribute: SetAttribute) -> None:
    """A request that is made again makes another run."""
    set_attribute(repeats, "repeat_id_of", lambda *identity: os.urandom(16).hex())


def checkpoints_ahead(set_attribute: SetAttribute) -> None:
    """A checkpoint does not wait for what a run has yet to tell."""
    set_attribute(Untold, "__contains__", lambda self, run: False)


VARIANTS: dict[str, Callable[[SetAttribute], None]] = {
    variant.__name__.replace("_", "-"): variant
    for variant in (
        *(sound, dedup_off, ids_at_random, automatic_commits, commit_before_send),
        *(epochs_ignored, letters_forgotten, checkpoints_ahead),
        *(cancellations_forgotten, repeats_at_random),
    )
}
