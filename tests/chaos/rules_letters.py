"""What must be true of the dead letters of failed runs, and of what was done with letters; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.decoding import Letter, Topics
from tests.chaos.histories import Histories
from tests.chaos.paths import Path, Paths
from tests.chaos.violations import BAD_ENDS, Violation


def letters(histories: Histories, topics: Topics, paths: Paths) -> Iterator[Violation]:
    """A run that failed has its letter before its end, where its flow asks for one, and no other run has."""
    written: dict[str, list[Letter]] = defaultdict(list)
    for letter in topics.letters:
        if letter.run_id:
            written[letter.run_id].append(letter)
    for run_id, path in paths.items():
        mine, ended = written.pop(run_id, []), path.ended
        asks = path.scheduled.flow in histories.lettered
        if mine and not asks:
            yield Violation("letter", run_id, f"{path.scheduled.flow} asks for no letters, and there is one")
        elif ended is not None and asks and ended.state in BAD_ENDS:
            if not any(letter.at <= ended.at for letter in mine):
                yield Violation("no letter", run_id, f"{ended.state} at {ended.at:.3f}; letters: {[one.at for one in mine]}")
        elif mine and not may_have_changed_its_mind(path, topics):
            yield Violation("letter", run_id, f"there is a letter, and the run is {ended and ended.state}")
        if strange := {letter.origin for letter in mine} - path.origins:
            yield Violation("letter", run_id, f"its letter is of {strange}, its event of {path.origins}")
    for run_id, left in written.items():
        yield Violation("invented", run_id, f"a letter at {left[0].partition}/{left[0].offset} for a run that never was")
    known = {f"{letter.partition}/{letter.offset}": letter for letter in topics.letters}
    for mark in topics.marks:
        about = known.get(mark.letter)
        if about is None or about.partition != mark.partition or about.offset > mark.offset:
            yield Violation("invented", "", f"a mark at {mark.partition}/{mark.offset} of {mark.letter}, which is no letter")


def may_have_changed_its_mind(path: Path, topics: Topics) -> bool:
    """Whether a run with a letter may have ended well all the same.

    Exactly then: the letter was written, its owner died or lost the partition before it told the end, and under the next
    owner the tasks went another way (a worker died with what had failed). So the run must have had two owners.
    """
    first, ended = path.scheduled, path.ended
    epochs = topics.epochs.get(first.partition, [])
    return ended is not None and any(first.offset < offset <= ended.epoch for offset, _, _ in epochs)
