"""engine.log_catcher: user code's lines are caught where somebody speaks, and standard logging goes on as before."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import engine
from engine.log_catcher import Catcher, catcher, speaker
from engine.log_outbox import LogOutbox, RunLog, Speaker, Voice
from engine.run_logs import decode_batch


class Talk:
    """Somebody who speaks, and what was said."""

    def __init__(self) -> None:
        self.logs = LogOutbox()

    @property
    def lines(self) -> list[tuple[str, str, str]]:
        batches = [decode_batch(mail.value) for mail in self.logs.take_all()]
        return [(line.level, line.logger, line.message) for batch in batches for line in batch.lines]


@pytest.fixture
def talk() -> Iterator[Talk]:
    made = Talk()
    voice = Voice(run_id="r", flow="fulfil", attempt=1, traceparent="")
    token = speaker.set(Speaker(made, lambda holder, subject: voice, None))
    with caught():
        yield made
    speaker.reset(token)


@contextmanager
def caught() -> Iterator[None]:
    catcher.begin("test")
    try:
        yield
    finally:
        catcher.end("test")


@contextmanager
def bare_root() -> Iterator[logging.Logger]:
    """The root logger as in a process where nobody has set logging up; pytest sets its own up before each test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        yield root
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_a_logger_is_named_after_its_module_and_has_fields(talk: Talk) -> None:
    log = engine.logger().bind(order=7, sku="tea")
    log.info("priced", cents=3)
    log.unbind("sku").warning("odd %s", "tea")
    log.bind().debug("of no interest")
    engine.logger("shop").critical("no tea")
    assert talk.lines == [
        ("info", __name__, "priced order=7 sku='tea' cents=3"),
        ("warning", __name__, "odd tea order=7"),
        ("critical", "shop", "no tea"),
    ]


def test_debug_is_caught_where_the_level_of_logging_says_so(talk: Talk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    engine.logger().debug("of interest")
    logging.getLogger("shop").debug("of interest, too")
    assert [line[2] for line in talk.lines] == ["of interest", "of interest, too"]


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError("no")

    __str__ = __repr__


@pytest.mark.parametrize(
    ("say", "text"),
    [
        (lambda: engine.logger().info("x", value=Unshowable()), "x value=<Unshowable, which cannot be shown>"),
        (lambda: engine.logger().info("%d", "x"), "%d 'x'"),
        (lambda: engine.logger().info(Unshowable()), "<Unshowable, which cannot be shown>"),  # type: ignore[arg-type]
        (lambda: logging.getLogger("a").warning("%d", "x"), "'%d' (its arguments do not fit: TypeError)"),
        (lambda: logging.getLogger("a").warning(Unshowable()), "<Unshowable, which cannot be shown> (its arguments do not fit"),
        (lambda: engine.logger().error("100% sure"), "100% sure"),
        (lambda: engine.logger().error("no error", exc_info=True), "no error"),
        (lambda: engine.logger().error("given", exc_info=KeyError("tea")), "given\nKeyError: 'tea'"),
        (lambda: engine.logger().error("odd", exc_info=Unshown()), "odd\n"),
        (lambda: engine.logger().warning("\ud800"), "\\ud800"),
    ],
)
def test_whatever_is_logged_is_said_and_raises_nothing(talk: Talk, say: Any, text: str) -> None:
    with bare_root(), caught():
        say()
    [(_, _, message)] = talk.lines
    assert message.startswith(text)


class Unshown(Exception):
    def __str__(self) -> str:
        raise ValueError("no")


def test_a_line_is_caught_once_however_it_was_said(talk: Talk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine.logger("shop").info("by the engine", n=1)
    logging.getLogger("shop").info("by logging")
    assert [line[2] for line in talk.lines] == ["by the engine n=1", "by logging"]
    assert caplog.messages == ["by the engine n=1", "by logging"]


def test_where_nobody_has_set_logging_up_info_is_caught_and_what_is_seen_stays_as_it_was(
    talk: Talk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))
    with bare_root() as root, caught():
        assert root.level == logging.INFO
        logging.getLogger("shop").info("quiet")
        logging.getLogger("shop").warning("loud")
        own = logging.getLogger("with.its.own")
        own.addHandler(handler := logging.StreamHandler(sys.stderr))
        own.warning("once")
        own.removeHandler(handler)
    assert [line[2] for line in talk.lines] == ["quiet", "loud", "once"]
    assert capsys.readouterr().err.splitlines() == ["loud", "once"]


def test_the_last_to_end_leaves_logging_as_it_was() -> None:
    own = Catcher()  # whoever else is in this process may have begun with the other one
    with bare_root() as root:
        factory = logging.getLogRecordFactory()
        own.begin("one")
        own.begin("another")
        own.end("another")
        own.end("another")
        own.end("one who never began")
        assert logging.getLogRecordFactory() == own.record
        own.end("one")
        assert (logging.getLogRecordFactory(), root.handlers, root.level) == (factory, [], logging.WARNING)


def test_who_makes_records_beside_us_goes_on_to(talk: Talk) -> None:
    def marked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.mark = 7
        return record

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(marked)  # on top of ours
    try:
        with caught():
            record = logging.getLogger("shop").makeRecord("shop", 30, "", 0, "said", (), None)
        assert record.mark == 7  # type: ignore[attr-defined]
        assert talk.lines == [("warning", "shop", "said")]
    finally:
        logging.setLogRecordFactory(before)


def test_who_has_set_logging_up_keeps_the_level() -> None:
    with bare_root() as root:
        root.addHandler(logging.NullHandler())
        with caught():
            assert root.level == logging.WARNING


def test_who_sets_logging_up_later_gets_what_was_asked_for(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    with bare_root(), caught():
        logging.basicConfig(level=logging.INFO, format="mine: %(message)s", stream=sys.stderr)
        logging.getLogger("shop").info("said")
        quiet = logging.getLogger("shop.quiet")
        quiet.propagate = False
        quiet.info("said by one that does not propagate")
        quiet.propagate = True
    assert capsys.readouterr().err == "mine: said\n"
    assert [line[2] for line in talk.lines] == ["said", "said by one that does not propagate"]


def test_a_record_from_elsewhere_is_nothing_that_is_said_here(talk: Talk) -> None:
    logging.makeLogRecord({"name": "shop", "msg": "said elsewhere"})
    assert talk.lines == []


def test_where_nobody_speaks_a_logger_is_one_of_standard_logging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine.logger("shop").bind(n=1).info("said")
    assert [(record.name, record.getMessage(), record.funcName) for record in caplog.records] == [
        ("shop", "said n=1", "test_where_nobody_speaks_a_logger_is_one_of_standard_logging")
    ]


def test_a_quota_that_is_spent_hurts_nobody(talk: Talk) -> None:
    closed = RunLog(LogOutbox(), Voice(run_id="r", flow="f", attempt=1, traceparent=""))
    closed.close()

    class Closed:
        log = closed

    token = speaker.set(Closed())
    engine.logger().info("too late")
    speaker.reset(token)
    assert talk.lines == []
