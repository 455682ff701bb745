"""The engine under a profiler: ``python -m tests.benchmarks.profiled FILE run …`` is ``engine run …``, profiled.

SIGUSR1 begins to profile, SIGUSR2 ends it and writes FILE, so that starting and warming up stay out; whatever ends the
engine, SIGTERM too, writes it as well. Only the main thread is seen, which is the one that the engine's loop runs in. Its
clock is that thread's CPU time: neither waiting nor the other processes of a busy machine count.
"""

from __future__ import annotations

import cProfile
import os
import signal
import sys
import time

from engine.cli import main as engine_main


def main(file: str, arguments: list[str]) -> None:
    profile = cProfile.Profile(time.thread_time)
    is_on = False

    def begin(*_: object) -> None:
        nonlocal is_on
        is_on = True
        profile.enable()

    def end(*_: object) -> None:
        nonlocal is_on
        if is_on:
            is_on = False
            profile.disable()
            profile.dump_stats(f"{file}.part")
            os.replace(f"{file}.part", file)  # noqa: PTH105  # whole or not there, for who waits for it

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    try:
        engine_main(arguments)
    finally:
        end()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
