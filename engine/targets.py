"""Targets: whom a flow, a task or a rule tells of a state change, as declared; pure. None of them ever shows its address.

An address that stands in an environment variable is looked up by the notifier alone, so that workers, which import the same
modules, need neither the variable nor apprise. A target is never pickled: nothing of it travels.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeAlias

from engine.errors import DeclarationError
from engine.retries import Retry, exponential
from engine.secrets import MASKED, Secret
from engine.states import State, StateChange

#: Waits of 1, 2, 4 … 256 s: given up after eight and a half minutes.
DEFAULT_RETRY = Retry(10, exponential(1.0, max_seconds=300.0))
#: How long one attempt may take.
APPRISE_SECONDS = 30.0
WEBHOOK_SECONDS = 10.0
HOOK_SECONDS = 30.0

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://")

Place: TypeAlias = tuple[str, int]


class Target:
    """Somebody to be told. ``retry`` is None where the default counts."""

    __slots__ = ("place", "retry", "timeout_seconds")

    def __init__(self, place: Place, retry: Retry | None, timeout_seconds: float) -> None:
        self.place, self.retry, self.timeout_seconds = place, retry, timeout_seconds

    @property
    def name(self) -> str:
        """How logs call it: without anything that might be a secret."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} is not pickled: its address is a secret, and only the notifier needs it")


class Address:
    """A URL that is a secret, given as it is or as the name of an environment variable."""

    __slots__ = ("_url", "env")

    def __init__(self, url: str | None, env: str | None) -> None:
        self._url, self.env = None if url is None else Secret(url), env

    def __repr__(self) -> str:
        return f"${self.env}" if self.env is not None else MASKED

    @property
    def scheme(self) -> str:
        """``slack`` of ``slack://…``; empty where the variable has it."""
        found = None if self._url is None else _SCHEME.match(self._url.reveal())
        return found[1].lower() if found else ""

    def resolve(self, environment: Mapping[str, str]) -> Secret | None:
        """The URL; None where the variable is not set."""
        if self.env is None:
            return self._url
        return Secret(environment[self.env].strip()) if environment.get(self.env, "").strip() else None


class AppriseTarget(Target):
    """A chat, a phone, a mailbox: whatever apprise reaches."""

    __slots__ = ("address",)

    def __init__(
        self, address: Address, place: Place, retry: Retry | None = None, timeout_seconds: float = APPRISE_SECONDS
    ) -> None:
        super().__init__(place, retry, timeout_seconds)
        self.address = address

    @property
    def name(self) -> str:
        """``slack://*** (orders.py:12)`` or ``notify $SLACK_URL``."""
        return f"notify ${self.address.env}" if self.address.env else f"{self.address.scheme}://{MASKED} ({_short(self.place)})"


class WebhookTarget(Target):
    """An HTTP endpoint that gets a signed JSON body."""

    __slots__ = ("address", "secret_env")

    def __init__(
        self,
        address: Address,
        secret_env: str,
        place: Place,
        retry: Retry | None = None,
        timeout_seconds: float = WEBHOOK_SECONDS,
    ) -> None:
        super().__init__(place, retry, timeout_seconds)
        self.address, self.secret_env = address, secret_env

    @property
    def name(self) -> str:
        """``webhook https://*** (orders.py:12)`` or ``webhook $HOOK_URL``; the host may be as telling as the path."""
        env = self.address.env
        return f"webhook ${env}" if env else f"webhook {self.address.scheme}://{MASKED} ({_short(self.place)})"


class HookTarget(Target):
    """A Python function, run in the notifier's process."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[Any], object], place: Place) -> None:
        super().__init__(place, None, HOOK_SECONDS)
        self.function = function

    @property
    def name(self) -> str:
        """``hook handlers.orders:page``."""
        function = self.function
        kind = type(function)
        return f"hook {getattr(function, '__module__', kind.__module__)}:{getattr(function, '__qualname__', kind.__qualname__)}"


#: What ``on_state`` takes for a state: a target, or a function that gets the StateChange.
Listener: TypeAlias = Target | Callable[[StateChange], object]
OnState: TypeAlias = Mapping[State, Listener | Sequence[Listener]]


def notify(
    url: str | None = None,
    *,
    env: str | None = None,
    retry: Retry | None = None,
    timeout_seconds: float = APPRISE_SECONDS,
    **unknown: Any,
) -> AppriseTarget:
    """Tell somebody by apprise: ``notify("slack://…")``, or ``notify(env="SLACK_URL")`` where a variable has the URL.

    The variable is the better place: the URL has tokens in it. Needs the extra ``notifications`` where `engine notify` runs.
    Tried again by ``retry``, ten times within eight minutes unless given. Raises DeclarationError, which never shows the URL.
    """
    frame = sys._getframe(1)
    _refuse_unknown(frame, "notify", unknown, ("url", "env", "retry", "timeout_seconds"))
    _check_common(frame, "notify", retry, timeout_seconds)
    return AppriseTarget(_address(frame, "notify", url, env), _place(frame), retry, timeout_seconds)


def webhook(
    url: str | None = None,
    *,
    secret_env: str,
    env: str | None = None,
    retry: Retry | None = None,
    timeout_seconds: float = WEBHOOK_SECONDS,
    **unknown: Any,
) -> WebhookTarget:
    """Tell an HTTP endpoint: ``webhook("https://…", secret_env="HOOK_SECRET")`` posts the change as JSON, signed.

    ``secret_env`` names the environment variable with the secret that both sides know. It must be https beyond loopback, unless
    the setting ``allow_plaintext`` is on. Redirects are not followed. Raises DeclarationError, which never shows the URL.
    """
    frame = sys._getframe(1)
    _refuse_unknown(frame, "webhook", unknown, ("url", "secret_env", "env", "retry", "timeout_seconds"))
    _check_common(frame, "webhook", retry, timeout_seconds)
    if not _NAME.match(str(secret_env)):
        # It may be the secret itself: not shown.
        _refuse(
            frame, "webhook(secret_env=…) is no name of an environment variable", 'Write secret_env="HOOK_SECRET", and set it.'
        )
    return WebhookTarget(_address(frame, "webhook", url, env), secret_env, _place(frame), retry, timeout_seconds)


def read_on_state(on_state: object, file: str, line: int) -> dict[State, tuple[Target, ...]]:
    """``on_state`` of a declaration, each value a tuple of targets. Raises DeclarationError, which shows no value of it."""
    if on_state is None:
        return {}
    if not isinstance(on_state, Mapping):
        cause = f"on_state is a {type(on_state).__name__}"
        raise DeclarationError(file, line, cause, 'Write on_state={State.FAILED: notify(env="SLACK_URL")}.')
    found: dict[State, tuple[Target, ...]] = {}
    for key, value in on_state.items():
        try:
            state = State(key)
        except ValueError:
            known = ", ".join(state.name for state in State)
            raise DeclarationError(file, line, "on_state has a key that is no state", f"The states are {known}.") from None
        found[state] = read_targets(value, f"on_state of {state.name}", file, line)
    return found


def read_targets(value: object, what: str, file: str, line: int) -> tuple[Target, ...]:
    """A target, a function, or a sequence of them, as targets. Raises DeclarationError, which shows no value of it."""
    listeners: Sequence[object] = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    targets: list[Target] = []
    for listener in listeners:
        if isinstance(listener, Target):
            targets.append(listener)
        elif callable(listener) and _takes_one(listener):
            targets.append(HookTarget(listener, (file, line)))
        else:
            kind = "a function that does not take one argument" if callable(listener) else f"a {type(listener).__name__}"
            remedy = "Give notify(…), webhook(…), a function of one argument, or a list of them."
            raise DeclarationError(file, line, f"{what} has {kind}", remedy)
    return tuple(targets)


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:
        return True  # A builtin does not say: it is tried.
    return True


def _address(frame: FrameType, function: str, url: object, env: object) -> Address:
    if (url is None) == (env is None):
        _refuse(frame, f"{function}() needs an address, given once", f'Write {function}(env="NAME") or {function}("…://…").')
    if env is not None:
        if not isinstance(env, str) or not _NAME.match(env):
            _refuse(frame, f"{function}(env=…) is no name of an environment variable", 'Write env="SLACK_URL", say.')
        return Address(None, env)
    if not isinstance(url, str) or not _SCHEME.match(url):
        _refuse(frame, f"the address given to {function}() is no URL", f'Write {function}(env="NAME") or {function}("…://…").')
    return Address(url, None)


def _check_common(frame: FrameType, function: str, retry: object, timeout_seconds: object) -> None:
    if retry is not None and not isinstance(retry, Retry):
        _refuse(frame, f"{function}(retry=…) is a {type(retry).__name__}", "Give engine.Retry(attempts, wait).")
    if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, int | float) or not 0 < timeout_seconds <= 600:
        _refuse(frame, f"{function}(timeout_seconds=…) is no time for one attempt", "Give seconds, at most 600.")


def _refuse_unknown(frame: FrameType, function: str, unknown: dict[str, Any], known: Sequence[str]) -> None:
    if unknown:
        _refuse(frame, f"{function}() has no argument {next(iter(unknown))!r}", f"It takes {', '.join(known)}.")


def _refuse(frame: FrameType, cause: str, remedy: str) -> NoReturn:
    raise DeclarationError(*_place(frame), cause, remedy)


def _place(frame: FrameType) -> Place:
    return frame.f_code.co_filename, frame.f_lineno


def _short(place: Place) -> str:
    file = place[0].replace("\\", "/").rpartition("/")[2]
    return f"{file}:{place[1]}" if place[1] else file
