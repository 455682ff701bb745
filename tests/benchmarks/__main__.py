"""Benchmarks, as commands: ``python -m tests.benchmarks [COMMAND] [--rounds N] …``; README.md says what each one shows.

The engine and a hand-written loop run as processes of their own on the same Kafka and the same Dask workers, and take
turns, so that what else the machine does hits both. Nothing here is asserted: ratios of one run are what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from engine import logs
from engine.errors import EngineError
from tests.benchmarks.beside import beside
from tests.benchmarks.depth import depth
from tests.benchmarks.flat import flat
from tests.benchmarks.history import history, rebuild
from tests.benchmarks.latency import latency
from tests.benchmarks.live import live
from tests.benchmarks.pressure import pressure
from tests.benchmarks.profiling import profile
from tests.benchmarks.restart import restart
from tests.benchmarks.throughput import one, packed, three, wide
from tests.benchmarks.tracing import tracing

#: Each takes the arguments of the command line.
COMMANDS: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, None]]] = {
    "one": lambda a: one(a.runs or 1_000, a.rounds),
    "packed": lambda a: packed(a.runs or 10_000, a.rounds),
    "three": lambda a: three(a.runs or 600, a.rounds),
    "wide": lambda a: wide(a.maps, a.rounds),
    "tracing": lambda a: tracing(a.runs or 1_000, a.rounds),
    "latency": lambda a: latency(a.runs or 1_000, a.rounds, a.events or 1_000, packed=a.packed),
    "depth": lambda a: depth(a.rounds, known=a.known),
    "flat": lambda a: flat(a.runs or 50_000, packed=a.packed, dedup_window_seconds=a.dedup_window_seconds),
    "pressure": lambda a: pressure(a.events or 200_000),
    "beside": lambda a: beside(a.runs or (10_000 if a.packed else 1_000), a.rounds, packed=a.packed, free_core=a.free_core),
    "history": lambda a: history(a.runs or 1_000_000, a.history, postgres=a.postgres),
    "rebuild": lambda a: rebuild(a.runs or 200_000, a.history, postgres=a.postgres),
    "live": lambda a: live(a.events or 10_500),
    "restart": lambda a: restart(a.runs or 1_000_000, a.open_runs, a.rounds),
    "profile": lambda a: profile(a.runs or 5_000, packed=a.packed, sampled=a.sampled),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["all", *COMMANDS], default="all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; one more warms up")
    parser.add_argument("--runs", type=int, help="runs a round; for flat and profile: in all")
    parser.add_argument("--open-runs", type=int, default=10_000, help="for restart, where --runs are those of the past")
    parser.add_argument("--maps", type=int, default=4, help="maps a round, for wide")
    parser.add_argument(
        "--events", type=int, help="events a round at most, for latency; events in all, for pressure; a second, for live"
    )
    parser.add_argument(
        "--free-core", action="store_true", help="beside: the projector has a core to itself, the rest the others"
    )
    parser.add_argument("--packed", action="store_true", help="packed runs, for latency, flat, beside and profile")
    parser.add_argument("--sampled", action="store_true", help="for profile: samples instead of every call")
    parser.add_argument("--known", action="store_true", help="for depth: the length is known when the event comes")
    parser.add_argument("--history", help="for history and rebuild: the URL of a PostgreSQL database, whose history is dropped")
    parser.add_argument("--postgres", action="store_true", help="for history and rebuild: on a PostgreSQL of its own")
    parser.add_argument("--dedup-window-seconds", type=float, default=60.0, help="the engine's setting, for flat")
    arguments = parser.parse_args()
    logs.configure(level="WARNING")
    failed = [name for name in (COMMANDS if arguments.what == "all" else [arguments.what]) if not _ran(name, arguments)]
    if failed:
        sys.exit(f"could not be measured: {', '.join(failed)}")


def _ran(name: str, arguments: argparse.Namespace) -> bool:
    """False where the engine of today cannot do what the command measures; the reason is printed, the others go on."""
    try:
        asyncio.run(COMMANDS[name](arguments))
    except SystemExit as error:
        print(f"\n{name}: {error}", flush=True)
        return False
    except EngineError as error:
        # A stack that did not come up says so with the end of the log of the part that failed.
        print(f"\n{name}: {error}", flush=True)
        return False
    return True


if __name__ == "__main__":
    main()
