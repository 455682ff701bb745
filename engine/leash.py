"""Run as a script, ``leash.py PARENT_PID COMMAND…``: become the command, but die with the parent; imports nothing of ours.

A script and not a ``preexec_fn``, because Python code between fork and exec can hang where the parent has threads. On systems
without ``PR_SET_PDEATHSIG`` (all but Linux) it only becomes the command.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    """Does not return. The exit code is 127 where the command cannot be run."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            # The parent was gone before the kernel knew of our wish.
            sys.exit(128 + signal.SIGKILL)
    try:
        os.execvp(command[0], command)  # noqa: S606  # becoming the command is what this script is for
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
