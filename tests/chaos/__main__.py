"""``python -m tests.chaos``: a soak or a sweep by hand, or another look at the histories of one."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog

from tests.chaos.checker import check
from tests.chaos.controls import VARIANTS
from tests.chaos.figures import figures, text, total
from tests.chaos.histories import Histories
from tests.chaos.memory_trial import quickly
from tests.chaos.nemesis import PROFILES
from tests.chaos.points import NARROW, POINTS
from tests.chaos.soak import Plan, soak
from tests.chaos.sweep import sweep

SHOWN = 40


def main() -> int:
    """1 where the checker has found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("soak", help="events flow while a seeded nemesis is at work; then the checker looks at it")
    one.add_argument("--seconds", type=float, default=75.0)
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--profile", choices=[*PROFILES], default="all")
    one.add_argument("--rate", type=float, default=12.0, help="events a second")
    one.add_argument("--gap", type=float, default=1.5, help="mean seconds between two faults")
    one.add_argument("--variant", choices=[*VARIANTS], default="sound")
    one.add_argument("--session", type=float, default=2.0, help="the engines' session timeout, in seconds")
    one.add_argument("--directory", type=Path, help="where logs and histories go; default: a new one in the temporary folder")
    other = commands.add_parser("check", help="look once more at the histories that soaks have kept; several are added up")
    other.add_argument("files", type=Path, nargs="+")
    third = commands.add_parser("sweep", help="kill engines at every crash point, on the log in memory")
    third.add_argument("--point", action="append", choices=POINTS, help="only there; may be repeated")
    arguments = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that the broker is away is what the soak is about
    if arguments.command == "check":
        return report([Histories.load(file) for file in arguments.files])
    if arguments.command == "sweep":
        return sweep_all(arguments.point or POINTS)
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        parser.error(f"{directory} is not empty: what lies there would be taken for this soak's")
    plan = Plan(
        seconds=arguments.seconds,
        seed=arguments.seed,
        profile=arguments.profile,
        events_per_second=arguments.rate,
        gap_seconds=arguments.gap,
        variant=arguments.variant,
        session_seconds=arguments.session,
    )
    histories = asyncio.run(soak(plan, directory))
    histories.save(directory / "histories.json")
    print(f"histories: {directory / 'histories.json'}")
    return report([histories])


def sweep_all(points: Sequence[str]) -> int:
    """Everything that can be done at these points."""
    quickly(setattr)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    several: list[Histories] = []
    trials = [(point, False) for point in points] + [(point, True) for point in points if point in NARROW]
    for point, is_narrow in trials:
        with tempfile.TemporaryDirectory() as folder:  # of its own: what is done at two points has the same ids
            several += asyncio.run(sweep(point, Path(folder), is_narrow=is_narrow, is_thorough=True)).values()
    print(f"{len(several)} trials")
    return report(several)


def report(several: Sequence[Histories]) -> int:
    """Print what was survived and what is wrong."""
    found = [(histories, check(histories)) for histories in several]
    print(text(total([figures(histories, violations) for histories, violations in found])))
    wrong = [violation for _, violations in found for violation in violations]
    for violation in wrong[:SHOWN]:
        print(f"{violation.kind:>14}  {violation.run}  {violation.text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
