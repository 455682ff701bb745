"""Catches what user code logs, by ``engine.logger()`` or standard logging, and hands it to the voice that speaks there.

Which attempt a line is of follows from its context, as with ``engine.attempt()``: threads that a task starts have none.
Standard logging is caught where it makes its records. A handler would do, too, but not for loggers that do not propagate, and
whoever calls ``logging.basicConfig`` behind it would get nothing: what else becomes of a line is none of our business.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from engine.log_outbox import RunLog

__all__ = ["Logger", "catcher", "logger", "speaker"]


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
        if not is_enabled:
            return
        token = speaker.set(None)  # it is said already
        try:
            text = _text(event, args, self._fields | fields, None)
            self._logger.log(number, "%s", text, exc_info=error, stacklevel=3)
        finally:
            speaker.reset(token)


def logger(name: str | None = None) -> Logger:
    """A logger named after the module that asks for it, or as given. Inside tasks and flows its lines go to the run's log, too.

    From ``info`` on they always do, whatever the level of standard logging is; to where that goes, as that says.
    """
    return Logger(logging.getLogger(name or sys._getframe(1).f_globals.get("__name__", "task")), {})


class Catcher:
    """Makes the records of standard logging, while anybody wants lines caught here."""

    def __init__(self) -> None:
        self._wanting: set[object] = set()
        self._changes = threading.Lock()
        #: Who made them before; None while it is not we who are asked.
        self._make: Callable[..., logging.LogRecord] | None = None
        self._has_lowered = False

    def begin(self, who: object) -> None:
        """Catch from now on, for this one."""
        with self._changes:
            self._wanting.add(who)
            if self._make is None:
                self._make = logging.getLogRecordFactory()
                logging.setLogRecordFactory(self.record)
            root = logging.getLogger()
            if not root.handlers and root.level == logging.WARNING:
                # Nobody has set logging up here, so nobody sees more of it than before.
                root.setLevel(logging.INFO)
                self._has_lowered = True

    def end(self, who: object) -> None:
        """No longer, where nobody else wants it. Who has ended, or never begun, changes nothing for others."""
        with self._changes:
            self._wanting.discard(who)
            if self._wanting:
                return
            if self._make is not None and logging.getLogRecordFactory() == self.record:
                logging.setLogRecordFactory(self._make)
                self._make = None  # else somebody else's calls ours, which then only passes on
            root = logging.getLogger()
            if self._has_lowered and root.level == logging.INFO:
                root.setLevel(logging.WARNING)
            self._has_lowered = False

    def record(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """Make a record, and say what it says. Raises nothing of its own."""
        made = (self._make or logging.LogRecord)(*args, **kwargs)
        name: object = made.name
        # Without a name it is one that came from elsewhere, still empty (``logging.makeLogRecord``).
        if self._wanting and isinstance(name, str) and (log := _log_here()) is not None:
            log.say(made.created, made.levelno, made.name, lambda: _text_of(made))
        return made


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
