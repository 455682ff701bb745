"""engine.senders, engine.apprise_sender: over real sockets of this machine; what they do, and what they never say."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from engine.command_errors import NotDelivered, TargetError
from engine.errors import RetryableError, TerminalError
from engine.notices import Notice, notice_of
from engine.sender_builder import build
from engine.senders import Sender
from engine.settings import Settings
from engine.signatures import is_genuine
from engine.states import Failure, State, StateChange, utc
from engine.targets import Target, notify, read_targets, webhook
from tests.receiver import Receiver, Request, answering
from tests.waiting import eventually

TOKEN = "T0K3N-s3cr3t-9f"
SECRET = "both-sides-kn0w"
ENVIRONMENT = {"SECRET": SECRET}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHANGE = StateChange(
    run_id="3f9a",
    flow="f",
    state=State.FAILED,
    seq=3,
    epoch=1,
    attempt=1,
    at=utc(1.0),
    error=Failure("E", "no"),
    traceparent=TRACE,
)
NOTICE = notice_of("shop", "flow f", CHANGE)


def sender_of(target: Target, environment: Mapping[str, str] = ENVIRONMENT, **settings: Any) -> Sender:
    [sender] = build([target], Settings(**settings), environment).senders
    return sender


async def fails(target: Target, **environment: str) -> NotDelivered:
    sender = sender_of(target, ENVIRONMENT | environment)
    with pytest.raises(NotDelivered) as caught:
        await sender.send(NOTICE)
    sender.close()
    assert TOKEN not in f"{caught.value!r} {caught.value} {caught.value.__cause__}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


async def test_a_webhook_posts_signed_json_in_the_trace_of_the_change() -> None:
    async with Receiver() as receiver:
        await sender_of(webhook(receiver.url(f"/x/{TOKEN}?y=1"), secret_env="SECRET")).send(NOTICE)
        [request] = receiver.requests
    assert request.path == f"/x/{TOKEN}?y=1"
    assert request.json["change"]["run_id"] == "3f9a"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-engine-delivery"] == request.json["id"] == NOTICE.id
    assert request.headers["traceparent"] == TRACE
    timestamp, signature = request.headers["x-engine-timestamp"], request.headers["x-engine-signature"]
    assert is_genuine(SECRET, timestamp, signature, request.body, time.time())


@pytest.mark.parametrize(
    ("answer", "says", "is_final", "after"),
    [
        (answering(500), "it answered 500", False, None),
        (answering(404), "it answered 404", False, None),
        (answering(400), "it answered 400", True, None),
        (answering(503, "Retry-After: 7"), "it answered 503", False, 7.0),
        (answering(503, "Retry-After: 99999"), "it answered 503", False, 300.0),
        (answering(302, f"Location: http://127.0.0.1:1/{TOKEN}"), "it answered 302: redirects are not followed", True, None),
        (b"", "it closed the connection without an answer", False, None),
        (b"SSH-2.0 hello\r\n\r\n", "its answer is not HTTP, or too large", False, None),
        (b"HTTP/1.1 204 X\r\n" + b"x: y\r\n" * 10_000, "its answer is not HTTP, or too large", False, None),
    ],
)
async def test_any_answer_but_2xx_is_a_failure(answer: bytes, says: str, is_final: bool, after: float | None) -> None:
    async with Receiver(lambda request: answer) as receiver:
        error = await fails(webhook(receiver.url(f"/{TOKEN}"), secret_env="SECRET"))
        assert len(receiver.requests) == 1
    assert (str(error), error.is_final, error.retry_after_seconds) == (says, is_final, after)


async def test_an_interim_answer_is_not_the_answer() -> None:
    async with Receiver(lambda request: b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + answering(200)) as receiver:
        await sender_of(webhook(receiver.url(), secret_env="SECRET")).send(NOTICE)


async def test_an_answer_that_never_comes_or_drips_is_given_up_in_time() -> None:
    def drip(request: Request) -> bytes | None:
        return b"HTTP/1.1 200 OK\r\n" if "drip" in request.path else None

    async with Receiver(drip) as receiver:
        for path in ("/hang", "/drip"):
            error = await fails(webhook(receiver.url(path), secret_env="SECRET", timeout_seconds=0.2))
            assert not error.is_final


async def test_a_receiver_that_is_not_there_or_speaks_no_tls_is_told_without_its_address() -> None:
    async with Receiver() as receiver:
        port = receiver.port
        tls = await fails(webhook(f"https://localhost:{port}/{TOKEN}", secret_env="SECRET", timeout_seconds=5.0))
        assert str(tls) in ("it speaks no TLS that we do", "it closed the connection without an answer")
    gone = await fails(webhook(f"http://127.0.0.1:{port}/{TOKEN}", secret_env="SECRET"))
    assert str(gone) == "it refuses connections"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (webhook(f"http://hooks.example/{TOKEN}", secret_env="SECRET"), "plain text"),
        (webhook(f"https://me:{TOKEN}@hooks.example/", secret_env="SECRET"), "has credentials"),
        (webhook(f"ftp://127.0.0.1/{TOKEN}", secret_env="SECRET"), "no http URL"),
        (webhook(f"https://h:99999999/{TOKEN}", secret_env="SECRET"), "no URL"),
        (webhook(f"https://h/{TOKEN}\r\nx: y", secret_env="SECRET"), "characters that no URL has"),
        (webhook(f"https://h/{TOKEN}", secret_env="UNSET"), "UNSET is not set"),
        (webhook(env="UNSET", secret_env="SECRET"), "UNSET is not set"),
        (notify(env="UNSET"), "UNSET is not set"),
        (notify(f"nosuchservice://{TOKEN}"), "does not know such an address"),
        (notify(f"slack://{TOKEN}"), "does not know such an address"),
    ],
)
def test_a_target_that_cannot_be_used_is_refused_at_the_start_without_its_address(
    target: Target, says: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TargetError, match=says) as caught:
        build([target], Settings(), ENVIRONMENT)
    left_out: list[TargetError] = []
    assert not build([target], Settings(), ENVIRONMENT, left_out.append).all
    assert str(left_out[0]) == str(caught.value)
    assert TOKEN not in f"{caught.value!r} {caught.value} {caplog.text} {capfd.readouterr()}"


def test_plain_text_is_allowed_where_the_settings_say_so() -> None:
    assert sender_of(webhook("http://hooks.example/x", secret_env="SECRET"), allow_plaintext=True)


def test_targets_of_one_address_share_an_outbox() -> None:
    one, two = notify("json://127.0.0.1/x"), notify(env="SAME")
    made = build([one, two, notify("json://127.0.0.1/y")], Settings(), {"SAME": "json://127.0.0.1/x"})
    assert made.by_target[one] is made.by_target[two]
    assert len(made.all) == len(made.senders) == 2
    for sender in made.senders:
        sender.close()


async def test_apprise_tells_a_service_and_says_nothing_of_its_address(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING)
    async with Receiver() as receiver:
        target = notify(receiver.url(f"/{TOKEN}", scheme="json"))
        sender = sender_of(target)
        await sender.send(NOTICE)
        assert receiver.requests[0].json["title"] == "shop: f FAILED"
        assert receiver.requests[0].json["message"] == NOTICE.text
        assert receiver.requests[0].json["type"] == "failure"
        receiver.answer = lambda request: answering(500)
        error = await fails(target)
        assert not error.is_final
        receiver.answer = lambda request: answering(302, f"location: /{TOKEN}/again")
        await fails(target)
        assert {request.path for request in receiver.requests} == {f"/{TOKEN}"}, "redirects are not followed"
        receiver.answer = lambda request: None
        await fails(notify(receiver.url(f"/{TOKEN}", scheme="json"), timeout_seconds=0.2))
        sender.close()
    await fails(target)  # nobody is there any more
    assert TOKEN not in caplog.text + str(capfd.readouterr())


def hook(function: Any) -> Target:
    [target] = read_targets(function, "to", "f.py", 1)
    return target


async def test_a_hook_gets_the_change_and_for_a_rule_the_notice() -> None:
    heard: list[Any] = []
    sender = sender_of(hook(heard.append))
    await sender.send(NOTICE)
    of_a_rule = Notice(id="1", app="shop", origin="rule x", title="t", text="t", at=utc(1.0), rule="x")
    await sender.send(of_a_rule)
    assert heard == [CHANGE, of_a_rule]
    sender.close()


async def test_an_async_hook_keeps_its_loop_and_neither_blocks_ours() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def async_hook(change: StateChange) -> None:
        await asyncio.sleep(0)
        time.sleep(0.01)  # noqa: ASYNC251  # blocking, in a thread of its own: blockbuster would see it here
        loops.append(asyncio.get_running_loop())

    sender = sender_of(hook(async_hook))
    for _ in range(2):
        await sender.send(NOTICE)
    assert loops[0] is loops[1]
    assert loops[0] is not asyncio.get_running_loop()
    sender.close()


async def test_a_hook_that_fails_says_why_without_the_secrets_of_others() -> None:
    def fail(error: Exception) -> Any:
        def raising(change: StateChange) -> None:
            raise error

        return hook(raising)

    target = webhook(f"https://hooks.example/{TOKEN}", secret_env="SECRET")
    failing = fail(ValueError(f"POST https://hooks.example/{TOKEN}?x with {SECRET} failed"))
    made = build([target, failing], Settings(), ENVIRONMENT)
    with pytest.raises(NotDelivered) as caught:
        await made.senders[1].send(NOTICE)
    assert str(caught.value).startswith("ValueError: POST ***?x with *** failed (")
    assert "test_senders.py:" in str(caught.value)
    made.senders[1].close()
    assert (await fails(fail(TerminalError("never")))).is_final
    assert (await fails(fail(RetryableError("later", retry_after_seconds=5)))).retry_after_seconds == 5


async def test_a_hook_that_hangs_is_given_up_in_time_and_leaves_nothing_to_wait_for() -> None:
    release = threading.Event()
    target = hook(lambda change: release.wait(30))
    target.timeout_seconds = 0.1
    sender = sender_of(target)
    for _ in range(2):
        with pytest.raises(NotDelivered, match=r"not done within 0\.1 s"):
            await sender.send(NOTICE)
    release.set()
    sender.close()
    await eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "engine-hook"])
