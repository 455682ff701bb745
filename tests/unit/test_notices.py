"""engine.notices and engine.signatures: the wording, what it lets through, and the signature of a webhook."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import msgspec
import pytest

from engine.episodes import Episodes
from engine.notices import BODY_BYTES, body_of, notice_of, notice_of_firing, plain
from engine.rules import rule
from engine.signatures import is_genuine, sign
from engine.states import Failure, State, StateChange, utc
from engine.targets import notify

RUN = "3f9a" * 8
HOSTILE = "<!channel> @everyone [pay](http://evil.example) \x1b[2J\x07 <b>\r\nTo: you " + "x" * 5_000


def change(state: State = State.FAILED, **fields: Any) -> StateChange:
    given: dict[str, Any] = {"seq": 4, "epoch": 7, "attempt": 2, "at": utc(1e9), "run_id": RUN, "flow": "fulfil"}
    return StateChange(state=state, **{**given, **fields})


def test_a_notice_says_what_happened_why_and_how_to_look() -> None:
    failed = change(error=Failure("ValueError", "no such sku", "Traceback …"))
    notice = notice_of("shop", "flow fulfil", failed, "https://engine.example/")
    assert notice.title == "shop: fulfil FAILED"
    assert notice.text.splitlines() == [
        f"run {RUN} of fulfil is FAILED (attempt 2)",
        "ValueError: no such sku",
        f"Look: engine runs show {RUN} --app shop",
        f"https://engine.example/runs/{RUN}",
    ]


def test_a_task_and_a_reason_are_named_and_without_an_address_there_is_no_link() -> None:
    notice = notice_of("shop", "task price", change(State.CANCELLED, attempt=1, task="price", task_run_id="x", reason="enough"))
    assert notice.title == "shop: price of fulfil CANCELLED"
    assert notice.text.splitlines()[:2] == [f"task price of run {RUN} of fulfil is CANCELLED", "enough"]
    assert notice.link is None


def test_rules_over_time_say_what_they_have_seen() -> None:
    ops = notify(env="OPS")
    rules = [
        rule("too many", to=ops, flows="fulfil", failures=2, within_seconds=600),
        rule("quiet", to=ops, no_run_seconds=3_600),
        rule("slow", to=ops, longer_than_seconds=60),
    ]
    book = Episodes(rules, 1e9)
    book.take(change(), 1e9)
    [many] = book.take(change(at=utc(1e9 + 300)), 1e9 + 300)
    book.take(change(State.RUNNING, at=utc(1e9)), 1e9)
    quiet, slow = book.tick(1e9 + 7_200)
    texts = [notice_of_firing("shop", firing) for firing in (many, quiet, slow)]
    assert [notice.title for notice in texts] == [
        "shop: too many: 2 CRASHED or FAILED within 5 min",
        "shop: quiet: no run for 2 h",
        "shop: slow: fulfil open for longer than 60 s",
    ]
    assert texts[0].text.startswith(
        "2 flow runs of fulfil got CRASHED or FAILED since 2001-09-09 01:46:40 UTC. The last one:\n"
    )
    assert texts[1].text == "No flow runs since 2001-09-09 01:46:40 UTC.\nLook: engine runs ls --app shop"
    assert texts[1].change is None


def test_what_comes_from_outside_is_plain_text_of_one_line_and_cut() -> None:
    shown = plain(HOSTILE)
    assert len(shown) < 320
    assert "\n" not in shown
    for active in ("<", ">", "@everyone", "](", "://", "\x1b", "\x07"):
        assert active not in shown
    notice = notice_of(
        "shop", "flow fulfil", change(error=Failure(HOSTILE, HOSTILE), reason=HOSTILE, flow=HOSTILE, run_id=HOSTILE)
    )
    assert len(notice.title) < 160
    assert len(notice.text) < 2_000
    assert len(notice.text.splitlines()) == 4
    assert "@everyone" not in notice.title + notice.text


def test_the_same_change_has_the_same_id_whoever_wrote_it_and_others_have_others() -> None:
    first = notice_of("shop", "flow fulfil", change())
    assert notice_of("shop", "flow fulfil", change(epoch=99, at=utc(2e9))).id == first.id
    others = [
        notice_of("shop", "rule x", change()),
        notice_of("mall", "flow fulfil", change()),
        notice_of("shop", "flow fulfil", change(seq=5)),
        notice_of("shop", "flow fulfil", change(State.CRASHED)),
    ]
    assert first.id not in {other.id for other in others}


def test_the_body_of_a_webhook_is_the_change_without_parameters_and_results_and_bounded() -> None:
    secret = msgspec.Raw(b'{"card": "4111"}')
    big = change(
        parameters=secret,
        result=secret,
        parents=tuple(str(n) for n in range(10_000)),
        error=Failure("E", "m" * 10_000, "t" * 10**6),
    )
    body = body_of(notice_of("shop", "flow fulfil", big))
    assert len(body) <= BODY_BYTES
    read = json.loads(body)
    assert read["change"]["run_id"] == RUN
    assert read["change"]["state"] == "FAILED"
    assert read["change"]["error"]["message"] == "m" * 2_000
    assert not {"parameters", "result", "parents"} & set(read["change"])
    assert (read["app"], read["origin"], len(read["id"])) == ("shop", "flow fulfil", 32)
    worse = change(error=Failure("E", "\x01" * 10_000, "\x01" * 10**6))
    assert len(body_of(notice_of("shop", "flow fulfil", worse))) <= BODY_BYTES


def test_a_receiver_can_tell_a_genuine_request_by_what_the_readme_says() -> None:
    body, secret, now = b'{"id": "1"}', "s3cr3t", 1_700_000_000
    signature = sign(secret, now, body)
    assert signature == "sha256=" + hmac.new(b"s3cr3t", b"1700000000." + body, hashlib.sha256).hexdigest()
    assert is_genuine(secret, str(now), signature, body, now + 200)
    assert not is_genuine(secret, str(now), signature, body, now + 301)
    assert not is_genuine(secret, str(now + 1), signature, body, now)
    assert not is_genuine(secret, str(now), signature, body + b" ", now)
    assert not is_genuine("other", str(now), signature, body, now)


@pytest.mark.parametrize("timestamp", ["", "now", "1e9", "-5", "٣", "9" * 400])
def test_a_time_that_is_none_is_not_genuine(timestamp: str) -> None:
    assert not is_genuine("s", timestamp, "sha256=é", b"", 0.0)
