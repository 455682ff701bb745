"""Ctrl-C, SIGTERM and SIGHUP for the embedded stack: taken from the process while the stack runs, and given back."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StackSignals:
    """What these signals did before, while they call something else."""

    def __init__(self) -> None:
        self._old: dict[signal.Signals, Any] = {}

    def take(self, act: Callable[[], None]) -> None:
        """From now on each of them calls ``act`` in the running loop. Only in the main thread; elsewhere nothing changes."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._old[number] = signal.getsignal(number)
                asyncio.get_running_loop().add_signal_handler(number, act)

    def give_back(self) -> None:
        """As they were."""
        for number, handler in self._old.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, handler)
        self._old.clear()
