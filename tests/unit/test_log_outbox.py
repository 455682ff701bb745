"""engine.log_outbox: whatever is logged, what waits and what leaves is bounded, in order, and nobody waits or fails."""

from __future__ import annotations

import threading

import pytest

from engine import log_outbox
from engine.log_outbox import MAX_BYTES, MAX_LINES, MAX_UNSENT_BYTES, Allowance, LogOutbox, RunLog, Speaker, Voice
from engine.run_logs import MAX_RECORD_BYTES, MAX_RECORD_LINES, Line, LogBatch, decode_batch


def voice(name: str = "price/0") -> Voice:
    return Voice(run_id="r", flow="fulfil", attempt=1, traceparent="", task="price", task_run_id=f"r/{name}")


def say(log: RunLog, *messages: str) -> None:
    for message in messages:
        log.say(1.0, 20, "orders", lambda message=message: message)  # type: ignore[misc]


def taken(outbox: LogOutbox) -> list[LogBatch]:
    return [decode_batch(mail.value) for mail in outbox.take_all()]


def lines(outbox: LogOutbox) -> list[Line]:
    return [line for batch in taken(outbox) for line in batch.lines]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may log as fast as it likes."""
    monkeypatch.setattr(log_outbox, "BURST_BYTES", 1e12)


def test_lines_of_one_voice_leave_in_order_and_once() -> None:
    outbox = LogOutbox()
    log, other = RunLog(outbox, voice()), RunLog(outbox, voice("price/1"))
    say(log, "1", "2")
    say(other, "a")
    say(log, "3")
    assert [(batch.task_run_id, [line.message for line in batch.lines]) for batch in taken(outbox)] == [
        ("r/price/0", ["1", "2", "3"]),
        ("r/price/1", ["a"]),
    ]
    assert not outbox
    say(log, "4")
    assert outbox
    assert [line.message for line in lines(outbox)] == ["4"]


def test_no_two_batches_have_one_id() -> None:
    outboxes = [LogOutbox(), LogOutbox()]
    ids = []
    for outbox in outboxes * 2:
        say(RunLog(outbox, voice()), "x")
        ids += [mail.id for mail in outbox.take_all()]
    assert len(set(ids)) == 4


def test_records_are_never_too_large(unhurried: None) -> None:
    outbox = LogOutbox()
    say(RunLog(outbox, voice()), *("\x00" * 8_000 for _ in range(60)))
    say(RunLog(outbox, voice("b/0")), *("" for _ in range(2_500)))
    mails = outbox.take_all()
    assert max(len(mail.value) for mail in mails) < 6 * MAX_RECORD_BYTES + MAX_RECORD_LINES * 100 < 1_000_000
    batches = [decode_batch(mail.value) for mail in mails]
    assert [len(batch.lines) for batch in batches if batch.task_run_id == "r/b/0"][:2] == [655, 655]
    assert sum(len(batch.lines) for batch in batches) == 2_560


@pytest.mark.parametrize(("text", "kept"), [("x", MAX_LINES), ("x" * 924, MAX_BYTES // 1_024)])
def test_an_attempt_has_so_many_lines_and_bytes_and_says_in_the_end_what_was_dropped(
    unhurried: None, text: str, kept: int
) -> None:
    outbox = LogOutbox()
    log = RunLog(outbox, voice())
    say(log, *(text for _ in range(kept + 77)))
    log.close()
    log.close()
    say(log, "too late")
    *before, last = lines(outbox)
    assert [line.message for line in before] == [text] * kept
    assert (last.level, last.logger) == ("warning", "engine")
    assert last.message.startswith("77 more lines were dropped")


def test_a_text_is_not_made_where_there_is_no_room_for_it(unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_outbox, "MAX_LINES", 1)
    log = RunLog(LogOutbox(), voice())
    made: list[int] = []
    for number in range(1_000):
        log.say(1.0, 20, "orders", lambda number=number: made.append(number) or "x")  # type: ignore[misc]
    assert made == [0]


def test_attempts_that_log_all_they_may_do_not_fill_the_process() -> None:
    outbox = LogOutbox()
    logs = [RunLog(outbox, voice(f"price/{number}")) for number in range(20)]
    for log in logs:
        say(log, *("x" * 8_000 for _ in range(200)))
        log.close()
    said = taken(outbox)
    assert sum(len(line.message) for batch in said for line in batch.lines) < log_outbox.BURST_BYTES + 1_048_576
    assert "dropped" in said[-1].lines[-1].message


def test_what_nobody_takes_away_is_bounded(unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_outbox, "MAX_BYTES", 1 << 40)
    outbox = LogOutbox()
    log = RunLog(outbox, voice())
    say(log, *("x" * 8_000 for _ in range(3_000)))
    log.close()
    found = lines(outbox)
    assert sum(len(line.message) + 100 for line in found[:-1]) <= MAX_UNSENT_BYTES
    assert "dropped" in found[-1].message


def test_an_allowance_grows_again_with_time_and_never_beyond_itself() -> None:
    allowance = Allowance(100, 10)
    assert allowance.takes(100, 1.0)
    assert not allowance.takes(1, 1.0)
    assert allowance.takes(20, 3.0)
    assert not allowance.takes(101, 1e9)
    assert allowance.takes(100, 1e9)
    assert not allowance.takes(1, 5.0), "a clock that goes back gives nothing"


def test_who_waits_is_woken_by_the_first_line_and_a_closed_loop_hurts_nobody() -> None:
    outbox = LogOutbox()
    woken: list[int] = []
    outbox.wake = lambda: woken.append(1)
    log = RunLog(outbox, voice())
    say(log, "1", "2")
    assert len(woken) == 1
    outbox.take_all()

    def is_closed() -> None:
        raise RuntimeError("Event loop is closed")

    outbox.wake = is_closed
    say(log, "3")
    assert len(lines(outbox)) == 1


def test_a_voice_that_cannot_be_told_keeps_nobody_from_being_heard() -> None:
    outbox = LogOutbox()
    say(RunLog(outbox, voice("\ud800/0")), "x")
    say(RunLog(outbox, voice()), "heard")
    assert [line.message for line in lines(outbox)] == ["heard"]


def test_threads_lose_no_line_of_one_another(unhurried: None) -> None:
    outbox = LogOutbox()
    logs = [RunLog(outbox, voice(f"price/{number}")) for number in range(4)]
    found: list[LogBatch] = []
    threads = [threading.Thread(target=say, args=(log, *map(str, range(500)))) for log in logs]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found += taken(outbox)
    found += taken(outbox)
    for number in range(4):
        own = [line.message for batch in found if batch.task_run_id == f"r/price/{number}" for line in batch.lines]
        assert own == list(map(str, range(500)))


def test_a_speaker_makes_its_log_when_it_says_something_and_none_while_it_is_muted() -> None:
    class Holder:
        @property
        def logs(self) -> LogOutbox:
            raise AssertionError("nothing was said")

    speaker = Speaker(Holder(), lambda holder, subject: voice(), None)
    speaker.is_muted = True
    assert speaker.log is None
    speaker.close()
