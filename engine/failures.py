"""Failures: an exception of user code as text; no I/O.

Its ``__str__`` may be broken, its text no Unicode, its traceback endless: something is said all the same.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from types import FrameType

from engine.errors import TaskCrashed, TaskFailed
from engine.states import Failure, State

#: Longer texts of errors are cut: they travel in headers, state changes and logs.
MAX_MESSAGE = 4_096
MAX_TRACEBACK = 32_768


def failure_of(error: BaseException, own_files: tuple[str, ...] = ()) -> Failure:
    """An error as text, without the frames at its top that are in ``own_files``."""
    if isinstance(error, TaskFailed | TaskCrashed):
        return Failure(error.type, error.message, error.traceback)  # told once already: as it was told
    try:
        message = str(error)
    except Exception as broken:  # user code in __str__: the failure is told all the same
        message = f"<its text cannot be had: {type(broken).__name__}>"
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in own_files:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception as broken:  # as above
        text = f"<its traceback cannot be had: {type(broken).__name__}>"
    return Failure(type(error).__qualname__, sendable(message[:MAX_MESSAGE]), sendable(text[-MAX_TRACEBACK:]))


def stack_of(frames: Iterable[FrameType]) -> str:
    """Where code is that does not come back, as text; its innermost frame is the last."""
    lines = [traceback.format_stack(at, limit=1)[0] for at in frames]
    return sendable("".join(["It is stuck here (most recent call last):\n", *lines])[-MAX_TRACEBACK:])


def frames_of_thread(frame: FrameType | None, own_files: tuple[str, ...]) -> list[FrameType]:
    """The frames of code that runs, up to those at its top that are in ``own_files``."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_code.co_filename not in own_files:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def frames_of_coroutine(coroutine: object, own_files: tuple[str, ...]) -> list[FrameType]:
    """The frames of a coroutine that waits, and of those that it awaits, below those in ``own_files``."""
    frames: list[FrameType] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        frames = [] if frame.f_code.co_filename in own_files else [*frames, frame]
        coroutine = getattr(coroutine, "cr_await", None)
    return frames


def state_of(error: BaseException) -> State:
    """How a run ends whose flow has raised ``error``: CRASHED where nothing but the infrastructure is behind it."""
    if isinstance(error, BaseExceptionGroup):
        return State.CRASHED if all(state_of(one) is State.CRASHED for one in error.exceptions) else State.FAILED
    return State.CRASHED if isinstance(error, TaskCrashed) else State.FAILED


def sendable(text: str) -> str:
    """``text`` as valid Unicode: names of files from outside may hold what no JSON can."""
    return text.encode(errors="backslashreplace").decode()
