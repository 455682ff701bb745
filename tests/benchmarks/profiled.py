"""The engine under a profiler: ``python -m tests.benchmarks.profiled HOW FILE run …`` is ``engine run …``, profiled.

SIGUSR1 begins to profile, SIGUSR2 ends it and writes FILE, so that starting and warming up stay out; whatever ends the
engine, SIGTERM too, writes it as well. HOW is one of two:

``calls``: cProfile of the main thread, which is the one that the engine's loop runs in. Its clock is that thread's CPU
time, so that neither waiting nor the other processes of a busy machine count. It counts every call, and makes each one
dearer: small functions look worse than they are.
``samples``: where the main thread is, each time that the process has used a little more CPU. True shares, few samples.
"""

from __future__ import annotations

import cProfile
import json
import os
import signal
import sys
import time
from collections import Counter
from types import FrameType
from typing import Protocol

from engine.cli import main as engine_main

#: The kernel looks at its own ticks only, every 4 ms as a rule: asking for less gets just that.
_SAMPLE_SECONDS = 0.001


class Profiler(Protocol):
    """Something that can be switched on and off, and then written."""

    def enable(self) -> None: ...
    def disable(self) -> None: ...
    def dump_stats(self, file: str) -> None: ...


class Samples:
    """Counts the function that runs at each tick of the process's CPU time; what it calls in C counts as its own."""

    def __init__(self) -> None:
        self._found: Counter[tuple[str, int, str]] = Counter()
        signal.signal(signal.SIGPROF, self._take)

    def enable(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, _SAMPLE_SECONDS, _SAMPLE_SECONDS)

    def disable(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def dump_stats(self, file: str) -> None:
        with open(file, "w") as out:  # noqa: PTH123
            json.dump([[*place, count] for place, count in self._found.items()], out)

    def _take(self, _: int, frame: FrameType | None) -> None:
        if frame is not None:
            code = frame.f_code
            self._found[code.co_filename, code.co_firstlineno, code.co_name] += 1


def main(how: str, file: str, arguments: list[str]) -> None:
    profiler: Profiler = Samples() if how == "samples" else cProfile.Profile(time.thread_time)
    is_on = False

    def begin(*_: object) -> None:
        nonlocal is_on
        is_on = True
        profiler.enable()

    def end(*_: object) -> None:
        nonlocal is_on
        if is_on:
            is_on = False
            profiler.disable()
            profiler.dump_stats(f"{file}.part")
            os.replace(f"{file}.part", file)  # noqa: PTH105  # whole or not there, for who waits for it

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    try:
        engine_main(arguments)
    finally:
        end()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
