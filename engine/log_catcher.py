"""Catches what user code logs, by ``engine.logger()`` or standard logging, and hands it to the voice that speaks there.

Which attempt a line is of follows from its context, as with ``engine.attempt()``: threads that a task starts have none.
Standard logging is caught by a handler of the root logger, which changes nothing of what else becomes of a line.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from contextvars import ContextVar
from typing import Any, Protocol

from engine.log_outbox import RunLog

__all__ = ["Logger", "catcher", "logger", "speaker"]

#: Marks records that were told already.
_TOLD = "_told_to_engine"


class Speaking(Protocol):
    """Code that may say something (engine.log_outbox.Speaker is one)."""

    @property
    def log(self) -> RunLog | None:
        """Where its lines go; None while they go nowhere."""
        ...


#: Whose code runs in this context.
speaker: ContextVar[Speaking | None] = ContextVar("speaker", default=None)


class Logger:
    """A logger with fields, as structlog's are: ``logger().bind(order=7).info("priced", lines=3)``."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, logger: logging.Logger, fields: dict[str, Any]) -> None:
        self._logger, self._fields = logger, fields

    def bind(self, **fields: Any) -> Logger:
        """The same logger with more fields on each of its lines."""
        return Logger(self._logger, self._fields | fields)

    def unbind(self, *names: str) -> Logger:
        """The same logger without these fields."""
        return Logger(self._logger, {name: value for name, value in self._fields.items() if name not in names})

    def debug(self, event: str, *args: Any, **fields: Any) -> None:
        """Say what is of interest to who looks for a mistake."""
        self._say(logging.DEBUG, event, args, fields)

    def info(self, event: str, *args: Any, **fields: Any) -> None:
        """Say what happens."""
        self._say(logging.INFO, event, args, fields)

    def warning(self, event: str, *args: Any, **fields: Any) -> None:
        """Say what is odd."""
        self._say(logging.WARNING, event, args, fields)

    def error(self, event: str, *args: Any, **fields: Any) -> None:
        """Say what went wrong."""
        self._say(logging.ERROR, event, args, fields)

    def critical(self, event: str, *args: Any, **fields: Any) -> None:
        """Say what went badly wrong."""
        self._say(logging.CRITICAL, event, args, fields)

    def exception(self, event: str, *args: Any, **fields: Any) -> None:
        """Say what went wrong, with the traceback of the exception that is being handled."""
        self._say(logging.ERROR, event, args, {"exc_info": True} | fields)

    def _say(self, number: int, event: str, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        is_enabled = self._logger.isEnabledFor(number)
        if number < logging.INFO and not is_enabled:
            return
        error = _exc_info(fields.pop("exc_info", None))
        log = _log_here()
        if log is not None:
            log.say(time.time(), number, self._logger.name, lambda: _text(event, args, self._fields | fields, error))
        if is_enabled:
            text = _text(event, args, self._fields | fields, None)
            self._logger.log(number, "%s", text, exc_info=error, extra={_TOLD: True}, stacklevel=3)


def logger(name: str | None = None) -> Logger:
    """A logger named after the module that asks for it, or as given. Inside tasks and flows its lines go to the run's log, too.

    From ``info`` on they always do, whatever the level of standard logging is; to where that goes, as that says.
    """
    return Logger(logging.getLogger(name or sys._getframe(1).f_globals.get("__name__", "task")), {})


class Catcher(logging.Handler):
    """The handler of standard logging. ``begin`` and ``end`` are called by each who wants lines caught in this process."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted = 0
        self._changes = threading.Lock()
        self._has_lowered = False

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """None: an exception that ends a task might leave it taken."""
        self.lock = None

    def begin(self) -> None:
        """Catch from now on."""
        with self._changes:
            self._wanted += 1
            root = logging.getLogger()
            if self in root.handlers:
                return
            if not root.handlers and root.level == logging.WARNING:
                # Nobody has set logging up here, so nobody sees more of it than before.
                root.setLevel(logging.INFO)
                self._has_lowered = True
            root.addHandler(self)

    def end(self) -> None:
        """No longer, where nobody else wants it."""
        with self._changes:
            self._wanted -= 1
            if self._wanted:
                return
            root = logging.getLogger()
            root.removeHandler(self)
            if self._has_lowered and root.level == logging.INFO:
                root.setLevel(logging.WARNING)
            self._has_lowered = False

    def handle(self, record: logging.LogRecord) -> bool:
        """Take a record, without any lock. Raises nothing of its own."""
        if not hasattr(record, _TOLD) and (log := _log_here()) is not None:
            log.say(record.created, record.levelno, record.name, lambda: _text_of(record))
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and self._is_alone(record.name):
            last.handle(record)  # as if we were not there
        return True

    def _is_alone(self, name: str) -> bool:
        at: logging.Logger | None = logging.getLogger(name)
        while at is not None:
            if any(handler is not self for handler in at.handlers):
                return False
            at = at.parent if at.propagate else None
        return True


catcher = Catcher()


def _log_here() -> RunLog | None:
    speaking = speaker.get()
    return None if speaking is None else speaking.log


def _text_of(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception as error:  # arguments that do not fit their message, or a message whose text cannot be had
        text = f"{_shown(record.msg)} (its arguments do not fit: {type(error).__name__})"
    return _with_error(text, record.exc_info)


def _text(event: object, args: tuple[Any, ...], fields: dict[str, Any], error: Any) -> str:
    text = event if isinstance(event, str) else _shown(event)
    if args:
        try:
            text = text % args
        except Exception:  # as above; what was meant can still be read
            text = f"{text} {' '.join(_shown(arg) for arg in args)}"
    return _with_error(" ".join([text, *(f"{name}={_shown(value)}" for name, value in fields.items())]), error)


def _with_error(text: str, error: Any) -> str:
    if not error or error[0] is None:
        return text
    try:
        return f"{text}\n{''.join(traceback.format_exception(*error)).rstrip()}"
    except Exception:  # an error whose text cannot be had
        return f"{text}\n{error[0].__name__}"


def _exc_info(given: Any) -> Any:
    """What standard logging takes, from what callers give: an exception, True, or that already."""
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    return sys.exc_info() if given is True else given or None


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # user code
        return f"<{type(value).__name__}, which cannot be shown>"
