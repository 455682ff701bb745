"""Notices: what a person, or a program, is told of a state change; the wording, and the JSON body of a webhook; pure.

What came from events or from user code is cut, and stands there as plain text: it calls nobody and links nowhere.
Parameters and results are left out: whoever is told may look, and where the text lies is not ours to say.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.episodes import Firing
from engine.rules import Kind, Rule
from engine.states import ABSENT, Failure, State, StateChange, encode, utc
from engine.terminal import printable

_TITLE_LENGTH = 150
_ERROR_LENGTH = 300
#: Of the JSON body, in characters.
_MESSAGE_LENGTH = 2_000
_TRACEBACK_LENGTH = 8_000
_FIELD_LENGTH = 500
#: Of the JSON body, in bytes; what is larger goes without the traceback and the event.
BODY_BYTES = 65_536


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What is told. ``id`` is the same however often it is delivered."""

    id: str
    app: str
    #: The flow, task or rule that has it told: ``flow fulfil``.
    origin: str
    title: str
    text: str
    at: datetime
    #: The rule's name, where it was one.
    rule: str | None = None
    #: What set it off; None where it was that nothing happened.
    change: StateChange | None = None
    #: The run's page, where the dashboard's address is known.
    link: str | None = None


def notice_of(app: str, origin: str, change: StateChange, dashboard_url: str = "", rule: Rule | None = None) -> Notice:
    """That a run has got into a state."""
    return Notice(
        id=_id(app, origin, change.run_id, change.seq, change.state),
        app=app,
        origin=origin,
        title=_title(app, rule, f"{_subject(change)} {change.state}"),
        text="\n".join([_sentence(change), *_reasons(change), *_next(app, change, dashboard_url)]),
        at=change.at,
        rule=None if rule is None else rule.name,
        change=change,
        link=_link(change, dashboard_url),
    )


def notice_of_firing(app: str, firing: Firing, dashboard_url: str = "") -> Notice:
    """That a rule over time has something to tell."""
    rule, change = firing.rule, firing.change
    about = _about(rule)
    if rule.kind is Kind.FAILURES:
        states = " or ".join(sorted(rule.states))
        told = f"{rule.failures} {states} within {_duration(firing.at - firing.since)}"
        lines = [f"{rule.failures} {about} got {states} since {_time(firing.since)}. The last one:"]
    elif rule.kind is Kind.NO_RUN:
        what = "" if rule.states == frozenset({State.SCHEDULED}) else f" {' or '.join(sorted(rule.states))}"
        told = f"no run{what} for {_duration(firing.at - firing.since)}"
        lines = [f"No {about}{what} since {_time(firing.since)}.", f"Look: engine runs ls --app {app}"]
    else:
        told = f"{_subject(change) if change else about} open for longer than {_duration(rule.seconds)}"
        lines = [f"It is open since {_time(firing.since)}."]
    if change is not None:
        lines += [_sentence(change), *_reasons(change), *_next(app, change, dashboard_url)]
    return Notice(
        id=_id(app, f"rule {rule.name}", firing.episode),
        app=app,
        origin=f"rule {rule.name}",
        title=_title(app, rule, told),
        text="\n".join(lines),
        at=utc(firing.at),
        rule=rule.name,
        change=change,
        link=None if change is None else _link(change, dashboard_url),
    )


def trial_notice(app: str) -> Notice:
    """That somebody wants to see whether notices arrive."""
    text = f"This is a test. It is how {app} tells of its runs."
    at = datetime.fromtimestamp(0, UTC)
    return Notice(id=_id(app, "trial"), app=app, origin="test", title=f"{app}: a test", text=text, at=at, rule="test")


def body_of(notice: Notice) -> bytes:
    """The JSON that a webhook gets; at most ``BODY_BYTES``."""
    body = _encode(notice, notice.change if notice.change is None else _cut_change(notice.change))
    if len(body) > BODY_BYTES and notice.change is not None:
        change = msgspec.structs.replace(_cut_change(notice.change), event=None, key=None, worker=None, error=None)
        body = _encode(notice, change)
    return body


def plain(text: str, limit: int = _ERROR_LENGTH) -> str:
    """Text from outside, in one line of at most ``limit`` characters, in which a chat sees nothing but text."""
    shown = printable(" ".join(text[: 4 * limit].split()))
    cut = shown if len(shown) <= limit and len(text) <= 4 * limit else f"{shown[: limit - 1]}…"
    # <!channel>, <b> and [text](address) are no longer that, nor are @everyone and a bare address.
    for found, instead in (("<", "‹"), (">", "›"), ("](", "] ("), ("@", "@\u2060"), ("://", ":\u2060//")):
        cut = cut.replace(found, instead)
    return cut


def _encode(notice: Notice, change: StateChange | None) -> bytes:
    fields: dict[str, Any] = {
        "id": notice.id,
        "app": notice.app,
        "origin": notice.origin,
        "rule": notice.rule,
        "at": notice.at,
        "title": notice.title,
        "text": notice.text,
        "link": notice.link,
        "change": change,
    }
    return encode({name: value for name, value in fields.items() if value is not None})


def _cut_change(change: StateChange) -> StateChange:
    error = change.error
    return msgspec.structs.replace(
        change,
        parameters=ABSENT,
        result=ABSENT,
        tasks=ABSENT,
        parents=(),
        handled=(),
        traceparent=None,
        reason=None if change.reason is None else change.reason[:_FIELD_LENGTH],
        key=None if change.key is None else change.key[:_FIELD_LENGTH],
        error=None
        if error is None
        else Failure(error.type[:_FIELD_LENGTH], error.message[:_MESSAGE_LENGTH], error.traceback[-_TRACEBACK_LENGTH:]),
    )


def _id(*identity: object) -> str:
    # Lengths keep ("a", "bc") apart from ("ab", "c").
    text = "".join(f"{len(str(part))}:{part}" for part in identity)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _title(app: str, rule: Rule | None, what: str) -> str:
    return plain(f"{app}: {what}" if rule is None else f"{app}: {rule.name}: {what}", _TITLE_LENGTH)


def _subject(change: StateChange) -> str:
    return change.flow if change.task is None else f"{change.task} of {change.flow}"


def _sentence(change: StateChange) -> str:
    what = "run" if change.task is None else f"task {change.task} of run"
    attempt = f" (attempt {change.attempt})" if change.attempt > 1 else ""
    return plain(f"{what} {change.run_id} of {change.flow} is {change.state}{attempt}")


def _reasons(change: StateChange) -> list[str]:
    lines = []
    if change.error is not None:
        lines.append(plain(f"{change.error.type}: {change.error.message}"))
    if change.reason is not None:
        lines.append(plain(change.reason))
    return lines


def _next(app: str, change: StateChange, dashboard_url: str) -> list[str]:
    link = _link(change, dashboard_url)
    return [f"Look: engine runs show {plain(change.run_id)} --app {app}", *([] if link is None else [link])]


def _link(change: StateChange, dashboard_url: str) -> str | None:
    # An id that is not ours has no page.
    return f"{dashboard_url.rstrip('/')}/runs/{change.run_id}" if dashboard_url and change.run_id.isalnum() else None


def _about(rule: Rule) -> str:
    of = f" of {', '.join(sorted(rule.flows))}" if rule.flows else ""
    return plain(
        f"runs of {', '.join(sorted(rule.tasks))}{' in flows' if of else ''}{of}" if rule.tasks else f"flow runs{of}", 200
    )


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
